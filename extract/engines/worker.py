"""What encodes chunks, in this process or in a Ray actor: raw values to parts of the cache.

A worker keeps the tokens of its chunks until a part is full or old enough. Large parts make few files, which is what
copying, pushing and opening a cache cost; a bound on the time keeps small what a kill can lose under a slow encoder.
Memory is that of one part in float32. What a worker holds when it dies is encoded again by another.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cache.parts import SampleTokens
from cache.precision import token_bytes
from cache.store import TokenStore
from extract.config import ExtractSettings
from extract.encoders.base import Encoder
from extract.encoders.registry import load_encoder
from extract.encoding import Item, encode_items
from extract.engines.chunks import Chunk
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
        """Encode a chunk; True when `publish` is due: another chunk of this size would not fit, or time is up.

        Args:
            chunk: samples of the table.
            progress: is told the number of samples after each batch.
        """
        items = self._preprocessed(chunk)
        progress(len(chunk.samples) - len(items))
        extract, before = self.job.extract, self.held_tokens
        for start in range(0, len(items), extract.batch_size):
            encoded = encode_items(self.encoder, items[start : start + extract.batch_size], extract.precision)
            self.encoded += encoded
            self.held_tokens += sum(len(sample.tokens) for sample in encoded)
            progress(len(encoded))
        next_size = (2 * self.held_tokens - before) * token_bytes(self.store.width, self.store.dtype)
        return next_size > extract.part_bytes or time.monotonic() - self.since > extract.part_minutes * 60

    def publish(self) -> str | None:
        """Publish what is held as one part; returns its id, None if there was nothing."""
        self.store.record_failures(self.failures)
        part = self.store.append(self.encoded)
        self._clear()
        return part

    def _clear(self) -> None:
        self.encoded: list[SampleTokens] = []
        self.failures: dict[str, tuple[str, str]] = {}
        self.held_tokens, self.since = 0, time.monotonic()

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
