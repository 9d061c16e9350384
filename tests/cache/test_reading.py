"""Reading samples of a store into a buffer: order, joined neighbours, and files that change under it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cache.bank import TokenBank
from cache.errors import CorruptCacheError
from cache.parts import TOKENS
from cache.reading import StoredSamples
from cache.store import SampleTokens, TokenStore


@pytest.fixture
def several(store: TokenStore, make_samples: Callable[..., list[SampleTokens]]) -> TokenStore:
    """Eight parts of five samples, listed in the view in the order of the table."""
    samples = make_samples([f"s{i:02}" for i in range(40)])
    for k in range(8):
        store.append(samples[5 * k : 5 * k + 5])
    store.publish_view({s.sample_id: s.digest for s in samples})
    return store


@pytest.mark.parametrize("read_bytes", [1, 20, 2**23])
def test_any_rows_equal_the_store_s(several: TokenStore, read_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cache.reading.READ_BYTES", read_bytes)
    ids = [f"s{i:02}" for i in range(40)]
    samples, located = several.read(ids), StoredSamples.locate(several, ids)
    rng = np.random.default_rng(0)
    for rows in (np.arange(40), np.arange(0), rng.permutation(40)[:7], np.array([3, 3, 2, 3])):
        flat = located.read(rows)
        assert len(flat.tokens) == 1 + sum(len(samples[row].tokens) for row in set(rows.tolist()))
        for place, row in enumerate(rows):
            own = slice(int(flat.starts[place]), int(flat.starts[place] + flat.lengths[place]))
            np.testing.assert_array_equal(flat.tokens[own].float().numpy(), samples[row].tokens)
            np.testing.assert_array_equal(flat.maskable[own].numpy(), samples[row].maskable)
        assert not flat.tokens[-1].any()


def test_a_whole_part_is_one_read(several: TokenStore) -> None:
    located = StoredSamples.locate(several, [f"s{i:02}" for i in range(40)])
    order = np.argsort(located.storage_rank())
    assert len(located._runs(order, np.arange(40))) == 8


def test_storage_order_does_not_depend_on_part_names(several: TokenStore) -> None:
    located = StoredSamples.locate(several, ["absent", *(f"s{i:02}" for i in range(40))])
    assert located.storage_rank().tolist() == [41, *range(40)]


def test_a_given_buffer_is_used(several: TokenStore) -> None:
    located = StoredSamples.locate(several, ["s00", "s01"])
    storage = np.full(1000, 7, np.uint8)
    flat = located.read(np.arange(2), storage)
    assert flat.tokens.data_ptr() == storage.ctypes.data
    assert torch.equal(flat.tokens, located.read(np.arange(2)).tokens)


def test_a_part_that_shrinks_is_an_error_not_zeros(several: TokenStore) -> None:
    located = StoredSamples.locate(several, ["s00"])
    part: Path = several.path / "parts" / located.entries[int(located.part[0])]["part"]
    chunk = part / TOKENS / "c" / "0" / "0"
    chunk.write_bytes(b"")
    with pytest.raises(CorruptCacheError, match="shorter than the manifest"):
        located.read(np.arange(1))


def test_buckets_fix_the_lengths_of_batches(several: TokenStore) -> None:
    ids = [f"s{i:02}" for i in range(40)]
    plain, fixed = TokenBank.load({"m": several}, ids, None), TokenBank.load({"m": several}, ids, None, buckets=(3, 6))
    for row in range(40):
        batch, expected = fixed.batch(torch.tensor([row])), plain.batch(torch.tensor([row]))
        length = expected.valid["m"].shape[1]
        assert batch.tokens["m"].shape[1] == (3 if length <= 3 else 6)
        assert torch.equal(batch.tokens["m"][:, :length], expected.tokens["m"])
        assert not batch.valid["m"][:, length:].any()
        assert not batch.tokens["m"][:, length:].any()
