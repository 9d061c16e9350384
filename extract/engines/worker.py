"""What encodes chunks, in this process or in a Ray actor: raw values to parts of the cache.

A worker keeps the tokens of its chunks until a part is full, so parts are as large as those of one process; memory is
that of one part. What it holds when it dies is encoded again by another.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cache.parts import SampleTokens
from cache.store import TokenStore
from extract.config import ExtractSettings
from extract.encoders.base import Encoder
from extract.encoders.registry import load_encoder
from extract.encoding import Item, encode_items
from extract.engines.chunks import Chunk, chunk_samples
from extract.samples import SamplesTable
from extract.values import UnreadableValue, read_value


@dataclass(frozen=True)
class Job:
    """One extraction in plain values, so that it can be sent to another machine with the same files."""

    samples: Path
    """Folder of the samples table."""
    modality: str
    encoder: Path
    """Folder of the fitted encoder."""
    extract: ExtractSettings
    out: Path
    """`<modality>.zarr`; exists already."""

    def absolute(self) -> "Job":
        """Return the job with paths that hold in another working directory."""
        return Job(self.samples.resolve(), self.modality, self.encoder.resolve(), self.extract, self.out.resolve())


class Worker:
    """Encodes chunks and publishes them as parts."""

    def __init__(self, job: Job, table: SamplesTable, encoder: Encoder, store: TokenStore) -> None:
        self.job, self.table, self.encoder, self.store = job, table, encoder, store
        self.row_of = {str(i): row for row, i in enumerate(table.frame["sample_id"])}
        self._clear()

    @classmethod
    def load(cls, job: Job) -> "Worker":
        """Load table, encoder and cache from their folders."""
        encoder = load_encoder(job.encoder)
        encoder.to("cuda" if torch.cuda.is_available() else "cpu")
        return cls(job, SamplesTable.read(job.samples), encoder, TokenStore.open(job.out))

    def encode(self, chunk: Chunk, progress: Callable[[int], None]) -> bool:
        """Encode a chunk; True when the part is full, so that `publish` is due.

        Args:
            chunk: samples of the table.
            progress: is told the number of samples after each batch.
        """
        items = self._preprocessed(chunk)
        progress(len(chunk.samples) - len(items))
        batch = self.job.extract.batch_size
        for start in range(0, len(items), batch):
            encoded = encode_items(self.encoder, items[start : start + batch], self.job.extract.precision)
            self.encoded += encoded
            progress(len(encoded))
        self.held += len(chunk.samples)
        return self.held + chunk_samples(self.job.extract) > self.job.extract.samples_per_part

    def publish(self) -> str | None:
        """Publish what is held as one part; returns its id, None if there was nothing."""
        self.store.record_failures(self.failures)
        part = self.store.append(self.encoded)
        self._clear()
        return part

    def _clear(self) -> None:
        self.encoded: list[SampleTokens] = []
        self.failures: dict[str, tuple[str, str]] = {}
        self.held = 0

    def _preprocessed(self, chunk: Chunk) -> list[Item]:
        """Values of similar length side by side, so that little is spent on padding."""
        items: list[Item] = []
        for sample_id, digest in chunk.samples.items():
            row: Any = self.table.frame.iloc[self.row_of[sample_id]]
            try:
                value = self.encoder.preprocess(read_value(self.table, row, self.job.modality))
                items.append((sample_id, digest, value))
            except UnreadableValue as error:
                self.failures[sample_id] = (digest, str(error))
        return sorted(items, key=lambda item: len(next(iter(item[2].values()))))
