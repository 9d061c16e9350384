"""The order in which one epoch of a cache that is larger than memory is read: shuffled blocks, shuffled windows.

Samples that are neighbours in storage form blocks. An epoch puts the blocks in random order, cuts that sequence into
windows that fit the memory budget, and shuffles inside each window; every sample occurs exactly once. So a
minibatch mixes `BLOCKS_PER_WINDOW` places of the cache, while the disk sees reads of whole blocks. What that costs in
randomness against a full permutation is measured in docs/benchmarks.md.

All is a function of (seed, epoch), the sizes and the batch size: it can be repeated, entered in the middle, and shared
out among ranks without their talking to each other.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

BLOCKS_PER_WINDOW = 16
"""More of them mix better and read in smaller pieces."""
Array = np.ndarray


@dataclass(frozen=True)
class Window:
    """Minibatches that are read together."""

    first_batch: int
    batches: list[Array]
    """Samples of each; int64 [B]."""


@dataclass(frozen=True)
class Shuffle:
    """How N samples in the order of storage are shuffled.

    order: the samples, int64 [N]; sizes: bytes of each of them in this order, int64 [N]; window_bytes: of a window.
    """

    order: Array
    sizes: Array
    window_bytes: int

    def windows(self, seed: int, epoch: int, batch_size: int) -> Iterator[Window]:
        """Yield the windows of an epoch; a window holds at least one minibatch."""
        random = np.random.default_rng([seed, epoch])
        sequence = self._block_sequence(random)
        samples, sizes = self.order[sequence], self.sizes[sequence]
        firsts = np.arange(0, len(samples), batch_size)
        bytes_of_batch = np.add.reduceat(sizes, firsts) if len(samples) else sizes
        for first, last in _grouped(bytes_of_batch, self.window_bytes):
            mixed = random.permutation(samples[first * batch_size : last * batch_size])
            yield Window(first, [mixed[k : k + batch_size] for k in range(0, len(mixed), batch_size)])

    def _block_sequence(self, random: np.random.Generator) -> Array:
        """Return positions in `order`, block by block in random order."""
        middle = np.cumsum(self.sizes) - self.sizes / 2
        block = (middle // max(1, self.window_bytes // BLOCKS_PER_WINDOW)).astype(np.int64)
        _, block = np.unique(block, return_inverse=True)
        turn = random.permutation(int(block[-1]) + 1 if len(block) else 0)
        return np.argsort(turn[block], kind="stable")


def share_of(total: int, rank: int, size: int) -> tuple[int, int]:
    """Return the first place, and the last + 1, of a rank's consecutive share of `total`; it may be empty."""
    return total * rank // size, total * (rank + 1) // size


def _grouped(sizes: Array, limit: int) -> Iterator[tuple[int, int]]:
    """Yield (first, last + 1) of neighbours whose sizes sum to at most `limit`, or single ones that exceed it."""
    ends, first = np.cumsum(sizes), 0
    while first < len(sizes):
        before = ends[first] - sizes[first]
        last = max(first + 1, int(np.searchsorted(ends, before + limit, "right")))
        yield first, last
        first = last
