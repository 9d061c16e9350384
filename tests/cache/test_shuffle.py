"""The order of an epoch: a permutation in windows of bounded size, close to random."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.shuffle import BLOCKS_PER_WINDOW, Shuffle


@given(
    sizes=st.lists(st.integers(0, 50), max_size=80),
    window=st.integers(1, 400),
    batch=st.integers(1, 9),
    seed=st.integers(0, 9),
)
def test_every_sample_once_in_windows_that_fit(sizes: list[int], window: int, batch: int, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(sizes))
    windows = list(Shuffle(order, np.array(sizes, np.int64)[order], window).windows(seed, 0, batch))
    batches = [b for w in windows for b in w.batches]
    assert sorted(np.concatenate([*batches, np.zeros(0, np.int64)]).tolist()) == list(range(len(sizes)))
    assert all(len(b) == batch for b in batches[:-1])
    first = 0
    for own in windows:
        assert own.first_batch == first
        first += len(own.batches)
        assert len(own.batches) == 1 or sum(sizes[i] for b in own.batches for i in b) <= window


@pytest.mark.parametrize("share", [4, 8])
def test_the_shuffle_mixes_the_whole_cache(share: int) -> None:
    """As a full permutation does: no correlation with storage, neither of places nor of a batch's mean place.

    Each batch draws on as many places of the cache as a window has blocks, so its mean place scatters by
    1 / sqrt(BLOCKS_PER_WINDOW) rather than 1 / sqrt(batch); the bound leaves room for twice that.
    """
    size = 20_000
    shuffle = Shuffle(np.arange(size), np.full(size, 100), size * 100 // (2 * share))
    correlations, spread = [], []
    for epoch in range(20):
        batches = [b for w in shuffle.windows(0, epoch, 64) for b in w.batches]
        correlations.append(np.corrcoef(np.arange(size), np.concatenate(batches))[0, 1])
        spread.append(np.std([b.mean() / size for b in batches]) * np.sqrt(12))
    # One block is the unit that moves: a permutation of the blocks has correlation 1 / sqrt(blocks).
    blocks = 2 * share * BLOCKS_PER_WINDOW
    assert abs(np.mean(correlations)) < 4 / np.sqrt(blocks * 20)
    assert np.mean(spread) < 2 / np.sqrt(BLOCKS_PER_WINDOW)


def test_neighbours_in_storage_are_read_together() -> None:
    size = 4096
    shuffle = Shuffle(np.arange(size), np.full(size, 10), size * 10 // 8)
    for window in shuffle.windows(1, 1, 32):
        rows = np.sort(np.concatenate(window.batches))
        assert (np.diff(rows) > 1).sum() <= BLOCKS_PER_WINDOW + 1
