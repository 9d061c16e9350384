"""Two caches are compared as their readers see them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache.diff import compare, difference_lines
from cache.store import SampleTokens, TokenStore


@pytest.fixture
def twin(tmp_path: Path, filled: TokenStore) -> Callable[..., TokenStore]:
    """Return a maker of a cache with the samples of `filled` in other parts, changed by a function."""

    def make(change: Callable[[SampleTokens], SampleTokens] = lambda sample: sample) -> TokenStore:
        store = TokenStore.create(tmp_path / "twin.zarr", filled.key, 3)
        samples = [change(sample) for sample in filled.read(["d", "c", "é", "b", "a"])]
        store.append(samples[:1])
        store.append(samples[1:])
        store.record_failures({"f": ("digest-f", "other words")})
        store.publish_view({s.sample_id: s.digest for s in samples} | {"f": "digest-f"})
        return store

    return make


def test_the_same_samples_in_other_parts_are_the_same(filled: TokenStore, twin: Any) -> None:
    found = compare(filled, twin())
    assert found.same
    assert found.common == found.tokens.compared == 5  # type: ignore[union-attr]
    assert difference_lines(found, "x", "y")[-1] == "same"


def test_the_largest_difference_of_tokens(filled: TokenStore, twin: Any) -> None:
    def change(sample: SampleTokens) -> SampleTokens:
        return replace(sample, tokens=sample.tokens + (0.5 if sample.sample_id == "b" else 0))

    found = compare(filled, twin(change))
    assert not found.same
    assert found.tokens is not None
    assert (found.tokens.differing, found.tokens.other_length, found.tokens.max_abs) == (1, 0, 0.5)


def test_flags_and_lengths_count(filled: TokenStore, twin: Any) -> None:
    def change(sample: SampleTokens) -> SampleTokens:
        if sample.sample_id == "a":
            return replace(sample, maskable=~sample.maskable)
        if sample.sample_id == "b":
            longer = np.concatenate([sample.tokens, sample.tokens])
            return replace(sample, tokens=longer, maskable=np.ones(len(longer), bool))
        return sample

    found = compare(filled, twin(change))
    assert found.tokens is not None
    assert (found.tokens.differing, found.tokens.other_length, found.tokens.max_abs) == (2, 1, 0.0)


def test_samples_in_one_or_with_another_raw_input(filled: TokenStore, tmp_path: Path, make_samples: Any) -> None:
    other = TokenStore.create(tmp_path / "other.zarr", filled.key, 3)
    other.append([*make_samples(["a", "x", "y"]), SampleTokens("b", "new", np.ones((1, 3), np.float32), np.ones(1))])
    found = compare(filled, other)
    assert (found.common, found.only_first, found.only_second, found.other_digest) == (1, 3, 2, 1)
    assert found.fields == {"complete": (True, False)}
    assert not found.same


def test_other_keys_are_named_and_tokens_not_compared(filled: TokenStore, tmp_path: Path, make_key: Any) -> None:
    other = TokenStore.create(tmp_path / "other.zarr", make_key(encoder="words"), 3, "float32")
    found = compare(filled, other)
    assert found.tokens is None
    assert found.fields["encoder"] == ("patches", "words")
    assert found.fields["dtype"] == ("float16", "float32")
    assert found.document()["same"] is False
