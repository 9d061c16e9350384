"""int8 against its error bound, and the bank against the store."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cache.bank import TokenBank
from cache.errors import UserError
from cache.key import CacheKey
from cache.precision import from_stored, quantise
from cache.store import SampleTokens, TokenStore

Maker = Callable[..., list[SampleTokens]]
FLOATS = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)


@settings(max_examples=60, deadline=None)
@given(values=arrays.arrays(np.float32, st.tuples(st.integers(0, 4), st.integers(1, 5)), elements=FLOATS))
def test_the_error_of_int8_is_at_most_half_a_scale(values: np.ndarray) -> None:
    stored, scales = quantise(values)
    assert (stored.dtype, scales.dtype, scales.shape) == (np.int8, np.float32, (len(values),))
    error = np.abs(from_stored(stored, "int8", scales).astype(np.float64) - values)
    bound = scales[:, None].astype(np.float64) / 2
    assert (error <= bound * (1 + 1e-5)).all()  # float32 rounds the scale and the product
    assert (np.abs(stored).max(axis=1, initial=0) == np.where(scales > 0, 127, 0)).all()


def test_a_large_token_leaves_the_small_ones_alone() -> None:
    values = np.array([[1e30, -5e29], [1e-30, 5e-31], [0, 0]], np.float32)
    stored, scales = quantise(values)
    back = from_stored(stored, "int8", scales)
    np.testing.assert_allclose(back, values, rtol=0.01)
    assert not back[2].any()


@pytest.fixture
def int8(tmp_path: Path, make_key: Callable[..., CacheKey], make_samples: Maker) -> TokenStore:
    """A store of two int8 parts and a failure."""
    store = TokenStore.create(tmp_path / "m.zarr", make_key(), 3, "int8")
    store.append(make_samples(["a", "b", "c"]))
    store.append(make_samples(["d", "e"], seed=1))
    store.record_failures({"f": ("digest-f", "torn")})
    store.publish_view({i: f"digest-{i}" for i in "abcdef"})
    return TokenStore.open(store.path)


def test_a_store_of_int8_gives_back_float32_within_the_bound(int8: TokenStore, make_samples: Maker) -> None:
    expected = [*make_samples(["a", "b", "c"]), *make_samples(["d", "e"], seed=1)]
    for sample, got in zip(expected, int8.read(list("abcde")), strict=True):
        bound = np.abs(sample.tokens).max(axis=1, keepdims=True) / 127 / 2
        assert got.tokens.dtype == np.float32
        assert (np.abs(got.tokens - sample.tokens) <= bound * (1 + 1e-5)).all()
        np.testing.assert_array_equal(got.maskable, sample.maskable)
    entry = int8.entries()[0]
    assert entry["arrays"]["scales"] == {"shape": [entry["tokens"]], "dtype": "float32"}
    assert int8.verify().problems == []


def test_the_bank_of_int8_equals_the_store(int8: TokenStore) -> None:
    rows = [5, 0, 4, 2]
    batch = TokenBank.load({"m": int8}, list("abcdef"), None).batch(torch.tensor(rows))
    for place, row in enumerate(rows):
        if row == 5:
            assert not batch.observed[place].any()
            assert not batch.tokens["m"][place].any()
            continue
        expected = torch.from_numpy(int8.read(["abcdef"[row]])[0].tokens)
        assert torch.equal(batch.tokens["m"][place, : len(expected)], expected)
        assert not batch.tokens["m"][place, len(expected) :].any()


def test_a_flipped_scale_is_never_believed(int8: TokenStore) -> None:
    path = int8.path / "parts" / int8.entries()[0]["part"] / "scales" / "c" / "0"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    with pytest.raises(UserError, match="checksum"):
        int8.read(list("abcde"))
    with pytest.raises(UserError, match="checksum"):
        TokenBank.load({"m": int8}, list("abcde"), None)


def test_another_dtype_is_another_cache(int8: TokenStore, make_key: Callable[..., CacheKey]) -> None:
    with pytest.raises(UserError, match="dtype: cached int8, wanted float16"):
        TokenStore.create(int8.path, make_key(), 3, "float16")
