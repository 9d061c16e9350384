"""Small keys, samples and stores for the tests of the cache."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache.key import CacheKey
from cache.store import SampleTokens, TokenStore

WIDTH = 3


@pytest.fixture(scope="session")
def make_key() -> Callable[..., CacheKey]:
    """Return a maker of keys; keywords replace fields."""

    def make(**changes: Any) -> CacheKey:
        fields = {
            "encoder": "patches",
            "options": {"depth": 2, "sizes": (4, 8)},
            "weights_sha256": "0" * 64,
            "preprocessing": {"mean": 0.1},
            "precision": "float32",
            "libraries": {"torch": "2"},
            "layout": {"grid": [2, 2]},
            "pretrained_or_fitted": True,
        }
        return CacheKey.model_validate({**fields, **changes})

    return make


@pytest.fixture(scope="session")
def make_samples() -> Callable[..., list[SampleTokens]]:
    """Return a maker of samples with random tokens that float16 and bfloat16 hold exactly."""

    def make(ids: Iterable[str], seed: int = 0, longest: int = 4, width: int = WIDTH) -> list[SampleTokens]:
        rng, samples = np.random.default_rng(seed), []
        for sample_id in ids:
            length = int(rng.integers(1, longest + 1))
            tokens = (rng.integers(-64, 64, (length, width)) / 8).astype(np.float32)
            samples.append(SampleTokens(sample_id, f"digest-{sample_id}", tokens, rng.random(length) < 0.5))
        return samples

    return make


@pytest.fixture
def store(tmp_path: Path, make_key: Callable[..., CacheKey]) -> TokenStore:
    """An empty float16 store."""
    return TokenStore.create(tmp_path / "m.zarr", make_key(), WIDTH)


@pytest.fixture
def filled(store: TokenStore, make_samples: Callable[..., list[SampleTokens]]) -> TokenStore:
    """A store of two parts, one failure and a view."""
    first, second = make_samples(["a", "b", "é"]), make_samples(["c", "d"], seed=1)
    store.append(first)
    store.append(second)
    store.record_failures({"f": ("digest-f", "überlang")})
    store.publish_view({i: f"digest-{i}" for i in ("a", "b", "é", "c", "d", "f")})
    return store


@pytest.fixture
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that no power failure can reach: a slow disk makes them ten times slower."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
