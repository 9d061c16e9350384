"""Raw values to preprocessed ones, here or in worker processes that run ahead of the encoder.

Workers are forks: they share the table and the encoder's tokenizer or statistics without a copy, read files and
preprocess, and never touch a GPU. What they send back is pickled between processes of this program alone. Memory is
that of the values of two chunks.
"""

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch

from cache.errors import UserError
from extract.encoders.base import Encoder
from extract.encoding import Item
from extract.engines.chunks import Chunk
from extract.samples import SamplesTable
from extract.values import UnreadableValue, read_value

SLICE = 16
"""Samples that a process is given at a time."""
Prepared = tuple[list[Item], dict[str, tuple[str, str]]]
"""Preprocessed samples, and of the others (digest, reason) by id."""


@dataclass(frozen=True)
class Reader:
    """Reads and preprocesses values of one modality."""

    table: SamplesTable
    modality: str
    encoder: Encoder
    row_of: dict[str, int]

    @classmethod
    def of(cls, table: SamplesTable, modality: str, encoder: Encoder) -> "Reader":
        """Index the table by sample id."""
        return cls(table, modality, encoder, {str(i): row for row, i in enumerate(table.frame["sample_id"])})

    def read(self, samples: Sequence[tuple[str, str]]) -> Prepared:
        """Prepare samples, each an id and the digest of its raw value."""
        items: list[Item] = []
        failures: dict[str, tuple[str, str]] = {}
        for sample_id, digest in samples:
            row: Any = self.table.frame.iloc[self.row_of[sample_id]]
            try:
                items.append((sample_id, digest, self.encoder.preprocess(read_value(self.table, row, self.modality))))
            except UnreadableValue as error:
                failures[sample_id] = (digest, str(error))
        return items, failures


class Preparation:
    """Prepares chunks, with `workers` processes or, with none, in this one; use it in a `with`."""

    def __init__(self, reader: Reader, workers: int) -> None:
        self.reader, self.workers = reader, workers
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Preparation":
        if self.workers:
            context = multiprocessing.get_context("fork")
            self._pool = ProcessPoolExecutor(self.workers, context, initializer=_start, initargs=(self.reader,))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=kind is None, cancel_futures=True)

    def begin(self, chunk: Chunk) -> "Iterator[Prepared]":
        """Start on a chunk; iterating gives its slices in order, each as soon as it is there.

        Raises:
            UserError: a worker was killed, while iterating.
        """
        samples = list(chunk.samples.items())
        slices = [samples[start : start + SLICE] for start in range(0, len(samples), SLICE)]
        if self._pool is None:
            return map(self.reader.read, slices)
        return _results([self._pool.submit(_read, part) for part in slices])


def _results(futures: list[Future[Prepared]]) -> Iterator[Prepared]:
    try:
        for future in futures:
            yield future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "A process that prepares values was killed, perhaps for memory. Lower extract.workers or "
            "extract.batch_size and run the same command: what is finished is kept."
        ) from error


_READER: list[Reader] = []
"""Of a worker process."""


def _start(reader: Reader) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes; the first one ends the others
    torch.set_num_threads(1)
    _READER[:] = [reader]


def _read(samples: Sequence[tuple[str, str]]) -> Prepared:
    return _READER[0].read(samples)
