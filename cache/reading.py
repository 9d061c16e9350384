"""Where samples lie in a cache, and their tokens read in parallel straight into one buffer.

An uncompressed part is a file of exactly its tokens' bytes, so the wanted samples go by `preadv` from the file to their
place in the buffer: no copy in between, no page faults of a mapping. Neighbours in a file are read at once, so that a
part which is wanted whole costs a few large reads. The index costs 24 bytes a sample.
"""

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache.errors import CorruptCacheError
from cache.gather import FlatTokens
from cache.manifest import PART_REMEDY
from cache.parts import PartArrays
from cache.precision import stored_dtype
from cache.store import TokenStore

READERS = min(8, os.cpu_count() or 1)
READ_BYTES = 2**23
"""Of one read: large enough for the disk, small enough to share one part among the readers."""
Array = np.ndarray


@dataclass(frozen=True)
class _Run:
    """Neighbouring tokens of one part: place there, place in the buffer, how many."""

    part: int
    source: int
    target: int
    count: int


@dataclass(frozen=True)
class _Buffer:
    tokens: Array
    """[tokens + 1, width] in the stored type; the last row is padding."""
    maskable: Array
    scales: Array | None


@dataclass(frozen=True)
class StoredSamples:
    """Where the tokens of N samples lie in one modality's cache."""

    store: TokenStore
    entries: list[dict[str, Any]]
    part: Array
    """Which entry; int64 [N], -1 where a sample has no tokens."""
    start: Array
    """First token in the part; int64 [N]."""
    length: Array
    """Tokens; int64 [N]."""
    _mapped: dict[int, PartArrays] = field(default_factory=dict)

    @classmethod
    def locate(cls, store: TokenStore, sample_ids: Sequence[str]) -> "StoredSamples":
        """Find the view's tokens of each sample; errors as of `TokenStore.locate`."""
        places, entries = store.locate(sample_ids), store.entries()
        number = {entry["part"]: k for k, entry in enumerate(entries)}
        part = np.array([-1 if place is None else number[place.part] for place in places], np.int64)
        row = np.array([0 if place is None else place.row for place in places], np.int64)
        found = cls(store, entries, part, np.zeros_like(row), np.zeros_like(row))
        for k in np.unique(part[part >= 0]):
            own, offsets = part == k, found.read_part(int(k)).offsets
            found.start[own] = offsets[row[own]]
            found.length[own] = offsets[row[own] + 1] - offsets[row[own]]
        return found

    @property
    def row_bytes(self) -> int:
        """Bytes of one token."""
        return self.store.width * stored_dtype(self.store.dtype).itemsize

    @property
    def token_bytes(self) -> Array:
        """Bytes of each sample's tokens in memory; int64 [N]."""
        return self.length * self.row_bytes

    def storage_rank(self) -> Array:
        """Return each sample's rank in storage, int64 [N]; N where it has no tokens.

        Parts count by the first of these samples in them, so that the order does not depend on their random names.
        """
        size = len(self.part)
        first = np.full(len(self.entries) + 1, size, np.int64)
        np.minimum.at(first, self.part, np.arange(size))  # -1, no tokens, is the additional last place
        order = np.lexsort((self.start, first[self.part], self.part < 0))
        rank = np.empty(size, np.int64)
        rank[order] = np.arange(size)
        return np.where(self.part < 0, size, rank)

    def read_part(self, k: int) -> PartArrays:
        """Return a part; mapped ones are kept, decoded ones would fill the memory."""
        if k in self._mapped:
            return self._mapped[k]
        arrays = self.store.read_part(self.entries[k])
        if _is_mapped(arrays):
            self._mapped[k] = arrays
        return arrays

    def read(self, rows: Array, storage: Array | None = None, pin: bool = False) -> FlatTokens:
        """Read samples, int64 [B], into one buffer; a sample that is asked for twice is read once.

        Args:
            rows: samples; starts and lengths of the result are in this order, the tokens in that of storage.
            storage: bytes to read into, at least the tokens' and one row; new by default.
            pin: new storage is page-locked, for copies to a GPU.

        Raises:
            CorruptCacheError: a part has shrunk since the cache was opened.
        """
        own, inverse = np.unique(rows, return_inverse=True)
        order = np.lexsort((self.start[own], self.part[own]))
        lengths = self.length[own[order]]
        target = np.empty(len(own), np.int64)
        target[order] = np.cumsum(lengths) - lengths
        buffer = self._buffer(int(lengths.sum()), storage, pin)
        present = order[lengths > 0]
        self._fill(buffer, self._runs(own[present], target[present]))
        return FlatTokens(
            _as_tensor(buffer.tokens, self.store.dtype),
            torch.from_numpy(buffer.maskable),
            torch.from_numpy(target[inverse]),
            torch.from_numpy(self.length[rows]),
            None if buffer.scales is None else torch.from_numpy(buffer.scales),
        )

    def _buffer(self, tokens: int, storage: Array | None, pin: bool) -> _Buffer:
        needed = (tokens + 1) * self.row_bytes
        if storage is None:  # NumPy's own memory comes in huge pages, torch's only when it is pinned
            storage = torch.empty(needed, dtype=torch.uint8, pin_memory=True).numpy() if pin else np.empty(needed, "u1")
        values = storage[:needed].view(stored_dtype(self.store.dtype)).reshape(tokens + 1, self.store.width)
        values[-1] = 0
        scales = np.ones(tokens + 1, np.float32) if self.store.dtype == "int8" else None
        return _Buffer(values, np.zeros(tokens + 1, bool), scales)

    def _runs(self, own: Array, target: Array) -> list[_Run]:
        """Join neighbours, and cut the joined at `READ_BYTES`; samples come in the order of storage."""
        part, start, length = self.part[own], self.start[own], self.length[own]
        apart = (part[1:] != part[:-1]) | (start[1:] != (start + length)[:-1])
        first = np.flatnonzero(np.concatenate([np.ones(min(1, len(own)), bool), apart]))
        counts = np.add.reduceat(length, first) if len(own) else length
        limit = max(1, READ_BYTES // self.row_bytes)
        return [
            _Run(k, source + done, into + done, min(limit, count - done))
            for k, source, into, count in np.stack([part[first], start[first], target[first], counts], 1).tolist()
            for done in range(0, count, limit)
        ]

    def _fill(self, buffer: _Buffer, runs: list[_Run]) -> None:
        by_part: dict[int, list[_Run]] = {}
        for run in runs:
            by_part.setdefault(run.part, []).append(run)
        with ThreadPoolExecutor(READERS) as pool:
            jobs: list[Future[None]] = []
            for k, own in by_part.items():
                arrays = self.read_part(k)
                jobs += [pool.submit(_copy, arrays, own[i::READERS], buffer) for i in range(min(READERS, len(own)))]
                if not _is_mapped(arrays):  # one decoded part at a time
                    _finish(jobs)
            _finish(jobs)


def _finish(jobs: list[Future[None]]) -> None:
    while jobs:
        jobs.pop().result()


def _is_mapped(arrays: PartArrays) -> bool:
    return isinstance(arrays.tokens, np.memmap) or not arrays.tokens.size


def _copy(arrays: PartArrays, runs: list[_Run], buffer: _Buffer) -> None:
    scales = arrays.scales
    for run in runs:
        source, target = slice(run.source, run.source + run.count), slice(run.target, run.target + run.count)
        buffer.maskable[target] = arrays.maskable[source]
        if buffer.scales is not None and scales is not None:
            buffer.scales[target] = scales[source]
    if isinstance(arrays.tokens, np.memmap):
        _read_file(arrays.tokens, runs, buffer.tokens)
    else:
        for run in runs:
            buffer.tokens[run.target : run.target + run.count] = arrays.tokens[run.source : run.source + run.count]


def _read_file(tokens: np.memmap[Any, Any], runs: list[_Run], into: Array) -> None:
    raw, row_bytes = into.reshape(-1).view(np.uint8).data, into.shape[1] * into.itemsize
    descriptor = os.open(str(tokens.filename), os.O_RDONLY)
    try:
        for run in runs:
            done, end = 0, run.count * row_bytes
            while done < end:
                here = raw[run.target * row_bytes + done : run.target * row_bytes + end]
                got = os.preadv(descriptor, [here], tokens.offset + run.source * row_bytes + done)
                if not got:
                    raise CorruptCacheError(f"{tokens.filename} is shorter than the manifest says. {PART_REMEDY}")
                done += got
    finally:
        os.close(descriptor)


def _as_tensor(tokens: Array, dtype: str) -> Tensor:
    if dtype == "bfloat16":
        return torch.from_numpy(tokens.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(tokens)
