"""The form of token caches that do not fit the memory: windows of shuffled blocks, read ahead by threads.

Two windows are in memory: the one that minibatches are gathered from, and the next, which threads read meanwhile into
the memory of the one before. All modalities of a sample are read together, wherever their parts lie. Memory: the
budget, the index (24 bytes a sample and modality) and one minibatch. An epoch costs one pass over the cache.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, tee

import numpy as np
import torch
from torch import Tensor

from cache.bank import TokenBank, check_samples, padded_batch
from cache.errors import UserError
from cache.gather import FlatTokens, TokenBatch
from cache.reading import StoredSamples
from cache.shuffle import Shuffle, Window, share_of
from cache.store import TokenStore

WINDOWS = 2
Flats = dict[str, FlatTokens]
"""By modality."""


class StreamingBank:
    """Aligned tokens of N samples over M modalities, on disk; attributes as of `TokenBank`."""

    def __init__(
        self,
        located: Mapping[str, StoredSamples],
        labels: Tensor | None,
        memory_bytes: int,
        buckets: Sequence[int] = (),
    ) -> None:
        if memory_bytes < 1:
            raise UserError(f"A memory budget of {memory_bytes} bytes holds no tokens. Set train.memory_gb above zero.")
        self.modalities = tuple(located)
        self.widths = {m: own.store.width for m, own in located.items()}
        self.lengths = {m: torch.from_numpy(own.length) for m, own in located.items()}
        self.observed = torch.stack([length > 0 for length in self.lengths.values()], dim=-1)
        self.labels = labels
        self.device = torch.device("cpu")
        self.memory_bytes = memory_bytes
        self.buckets = tuple(buckets)
        self._located = dict(located)

    @classmethod
    def open(
        cls,
        stores: Mapping[str, TokenStore],
        sample_ids: Sequence[str],
        labels: np.ndarray | None,
        memory_bytes: int,
        buckets: Sequence[int] = (),
    ) -> "StreamingBank":
        """Find the tokens of `sample_ids` in each modality's complete cache; errors as of `TokenBank.load`.

        Args:
            stores: by modality.
            sample_ids: N ids, in the order of the bank's rows.
            labels: float [N] or [N, L], or None.
            memory_bytes: what the tokens in memory may take, of all ranks together.
            buckets: as of `TokenBank.load`.
        """
        known = check_samples(stores, sample_ids, labels)
        return cls({m: StoredSamples.locate(s, sample_ids) for m, s in stores.items()}, known, memory_bytes, buckets)

    def __len__(self) -> int:
        return len(self.observed)

    def batch(self, rows: Tensor) -> TokenBatch:
        """Read the given samples, int64 [B], and gather them as `TokenBank.batch` does: the same values."""
        chosen = rows.cpu().numpy()
        flats = {m: own.read(chosen) for m, own in self._located.items()}
        return self._gather(flats, chosen, np.arange(len(chosen)))

    def epoch(
        self,
        seed: int,
        epoch: int,
        batch_size: int,
        *,
        start: int = 0,
        rows: Tensor | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> Iterator[TokenBatch]:
        """Yield the minibatches of `shares`; arguments as of it."""
        for _, batch in self.shares(seed, epoch, batch_size, start=start, rows=rows, rank=rank, world_size=world_size):
            yield batch

    def shares(
        self,
        seed: int,
        epoch: int,
        batch_size: int,
        *,
        start: int = 0,
        rows: Tensor | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> Iterator[tuple[Tensor, TokenBatch]]:
        """Yield the minibatches of one epoch, every sample once, in an order that (seed, epoch) determine.

        With each come the samples, int64 [B], of the minibatch over all ranks.

        Args:
            seed: of the run.
            epoch: number of the epoch.
            batch_size: samples of a minibatch over all ranks; the last one may be smaller.
            start: minibatches to leave out, to go on in mid-epoch: the others are the same as without it.
            rows: the samples to use, int64; all by default.
            rank: this process takes its consecutive share of each minibatch, and reads no other sample; of a
                minibatch too small for all, one sample.
            world_size: how many processes share a minibatch.
        """
        plan = self._shuffle(np.arange(len(self)) if rows is None else rows.numpy())
        windows, again = tee(plan.windows(seed, epoch, batch_size))
        whole = islice((batch for window in again for batch in window.batches), start, None)
        for window, flats in self._read_ahead(windows, start, rank, world_size):
            first = 0
            for chosen in window.batches:
                yield torch.from_numpy(next(whole)), self._gather(flats, chosen, np.arange(first, first + len(chosen)))
                first += len(chosen)

    def _shuffle(self, rows: np.ndarray) -> Shuffle:
        """Blocks follow the storage of the largest modality; the next ones order the samples that lack it."""
        by_size = sorted(self._located.values(), key=lambda own: int(own.token_bytes.sum()), reverse=True)
        ranks = [own.storage_rank()[rows] for own in by_size]
        order = rows[np.lexsort(ranks[::-1])]
        sizes = np.sum([own.token_bytes[order] for own in by_size], axis=0)
        return Shuffle(order, sizes, self.memory_bytes // WINDOWS)

    def _read_ahead(
        self, windows: Iterator[Window], start: int, rank: int, world_size: int
    ) -> Iterator[tuple[Window, Flats]]:
        wanted = _shares(windows, start, rank, world_size)
        memory = [_Memory() for _ in range(WINDOWS)]
        with ThreadPoolExecutor(1) as reader:
            window = next(wanted, None)
            reading = reader.submit(self._read, window, memory[0]) if window else None
            turn = 0
            while window and reading:
                flats, following, turn = reading.result(), next(wanted, None), (turn + 1) % WINDOWS
                reading = reader.submit(self._read, following, memory[turn]) if following else None
                yield window, flats
                window = following

    def _read(self, window: Window, memory: "_Memory") -> Flats:
        rows = np.concatenate(window.batches)
        needed = [_aligned((int(own.length[rows].sum()) + 1) * own.row_bytes) for own in self._located.values()]
        pieces = memory.pieces(needed)
        return {m: own.read(rows, piece) for (m, own), piece in zip(self._located.items(), pieces, strict=True)}

    def _gather(self, flats: Flats, rows: np.ndarray, places: np.ndarray) -> TokenBatch:
        """Gather the samples `rows` of the bank, which are the samples `places` of `flats`."""
        chosen = torch.from_numpy(rows)
        lengths = {m: own[chosen] for m, own in self.lengths.items()}
        labels = None if self.labels is None else self.labels[chosen]
        return padded_batch(flats, torch.from_numpy(places), lengths, self.observed[chosen], labels, self.buckets)


class _Memory:
    """Bytes that one window after the other is read into; they grow to the largest."""

    def __init__(self) -> None:
        self.storage = np.empty(0, np.uint8)

    def pieces(self, sizes: Sequence[int]) -> list[np.ndarray]:
        if len(self.storage) < sum(sizes):
            self.storage = np.empty(0, np.uint8)  # first, or the old and the new would be there at once
            self.storage = np.empty(sum(sizes), np.uint8)
        ends = np.cumsum(sizes)
        return [self.storage[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def _aligned(size: int) -> int:
    return -(-size // 64) * 64


CachedBank = TokenBank | StreamingBank


def open_banks(
    stores: Mapping[str, TokenStore],
    splits: Mapping[str, tuple[Sequence[str], np.ndarray | None]],
    device: torch.device | str = "cpu",
    memory_bytes: int | None = None,
) -> dict[str, CachedBank]:
    """Open one bank per split: resident if the tokens of all of them fit the budget together, else streaming.

    Args:
        stores: by modality.
        splits: sample ids and labels by split.
        device: where resident tokens stay; streamed minibatches are on the CPU.
        memory_bytes: the budget; None for resident banks whatever they take.
    """
    labels = {split: check_samples(stores, *own) for split, own in splits.items()}
    located = {
        split: {m: StoredSamples.locate(store, ids) for m, store in stores.items()}
        for split, (ids, _) in splits.items()
    }
    total = sum(int(own.token_bytes.sum()) for banks in located.values() for own in banks.values())
    if memory_bytes is None or total <= memory_bytes:
        return {split: TokenBank.read(own, labels[split], device) for split, own in located.items()}
    return {split: StreamingBank(own, labels[split], memory_bytes) for split, own in located.items()}


def _shares(windows: Iterator[Window], start: int, rank: int, world_size: int) -> Iterator[Window]:
    """Yield a rank's share of the minibatches from `start` on."""
    for window in windows:
        whole = window.batches[max(0, start - window.first_batch) :]
        bounds = [share_of(len(batch), rank, world_size) for batch in whole]
        batches = [batch[first : max(last, first + 1)] for batch, (first, last) in zip(whole, bounds, strict=True)]
        if batches:
            yield Window(max(start, window.first_batch), batches)
