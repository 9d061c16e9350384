"""Parts are cut by bytes or by time, and lose nothing."""

from collections.abc import Callable

import numpy as np
import pytest

from cache.pending import PendingPart
from cache.store import SampleTokens, TokenStore

LENGTHS = [3, 4, 2, 9, 1, 1, 1, 1, 6]
TOKEN_BYTES = 6  # three float16


def samples() -> list[SampleTokens]:
    return [
        SampleTokens(f"s{n}", "d", np.full((length, 3), n, np.float32), np.ones(length, bool))
        for n, length in enumerate(LENGTHS)
    ]


@pytest.mark.parametrize("tokens", [1, 5, 8, 100])
def test_no_part_is_larger_than_the_bound_unless_a_sample_is(store: TokenStore, tokens: int) -> None:
    pending = PendingPart(store, tokens * TOKEN_BYTES)
    pending.add(samples()[:4])
    pending.add(samples()[4:])
    pending.publish()
    entries = store.entries()
    assert sum(entry["samples"] for entry in entries) == len(LENGTHS)
    assert all(entry["tokens"] <= tokens or entry["samples"] == 1 for entry in entries)
    store.publish_view({f"s{n}": "d" for n in range(len(LENGTHS))})
    for n, got in enumerate(store.read([f"s{n}" for n in range(len(LENGTHS))])):
        np.testing.assert_array_equal(got.tokens, np.full((LENGTHS[n], 3), n))


def test_a_small_part_is_published_when_its_time_is_over(
    store: TokenStore, monkeypatch: pytest.MonkeyPatch, make_samples: Callable[..., list[SampleTokens]]
) -> None:
    now = [0.0]
    monkeypatch.setattr("cache.pending.time.monotonic", lambda: now[0])
    pending = PendingPart(store, 10**6, max_seconds=60)
    pending.failures["f"] = ("d", "torn")
    pending.add(make_samples(["a"]))
    assert (store.entries(), store.failures()) == ([], {})
    now[0] = 61
    pending.add(make_samples(["b"]))
    assert [entry["samples"] for entry in store.entries()] == [2]
    assert store.failures() == {"f": "torn"}
    pending.add(make_samples(["c"]))
    assert len(store.entries()) == 1
    pending.publish()
    pending.publish()
    assert len(store.entries()) == 2
