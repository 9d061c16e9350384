"""What encodes chunks, in this process or in a Ray actor: raw values to parts of the cache.

A worker keeps the tokens of its chunks until a part is full or old enough. Large parts make few files, which is what
copying, pushing and opening a cache cost; a bound on the time keeps small what a kill can lose under a slow encoder.
Memory is that of one part in float32. What a worker holds when it dies is encoded again by another.
"""

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from cache.parts import SampleTokens
from cache.precision import token_bytes
from cache.store import TokenStore
from extract.config import ExtractSettings
from extract.encoders.base import Encoder
from extract.encoders.registry import load_encoder
from extract.encoding import Item, MemoryLimit, batches
from extract.engines.preparing import Preparation, Prepared, Reader
from extract.precision import require_precision
from extract.samples import SamplesTable


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
        self.job, self.encoder, self.store = job, encoder, store
        self.reader = Reader.of(table, job.modality, encoder)  # before the encoder is compiled or moved
        require_precision(job.extract.precision, device())
        encoder.to(device())
        if job.extract.compile:
            encoder.encode = torch.compile(encoder.encode, dynamic=True)  # type: ignore[method-assign]
        self.memory = MemoryLimit(encoder, job.extract.precision)
        self._clear()

    @classmethod
    def load(cls, job: Job) -> "Worker":
        """Load table, encoder and cache from their folders."""
        return cls(job, SamplesTable.read(job.samples), load_encoder(job.encoder), TokenStore.open(job.out))

    def preparation(self) -> Preparation:
        """Return what prepares chunks for `encode`, to be used in a `with`."""
        return Preparation(self.reader, self.job.extract.workers)

    def encode(self, prepared: Iterable[Prepared], progress: Callable[[int, int], None]) -> bool:
        """Encode a chunk; True when `publish` is due: another chunk of this size would not fit, or time is up.

        Args:
            prepared: what `Preparation.begin` gives for the chunk.
            progress: is told the number of samples and of tokens after each batch.
        """
        items: list[Item] = []
        for ready, failures in prepared:
            items += ready
            self.failures |= failures
            progress(len(failures), 0)
        extract, before = self.job.extract, self.held_tokens
        for batch in batches(self.encoder, items, extract.batch_size, extract.batch_tokens):
            encoded = self.memory.encode(batch)
            tokens = sum(len(sample.tokens) for sample in encoded)
            self.encoded += encoded
            self.held_tokens += tokens
            progress(len(encoded), tokens)
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


def device() -> torch.device:
    """Return where this process encodes: under `torchrun` the GPU of its local rank."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
