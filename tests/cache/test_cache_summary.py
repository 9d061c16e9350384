"""The summary of a cache agrees with what was put in."""

import numpy as np

from cache.store import SampleTokens, TokenStore
from cache.summary import length_histogram, readable_bytes, summarise, summary_lines


def test_counts_agree_with_what_was_stored(filled: TokenStore) -> None:
    filled.append([SampleTokens("a", "changed", np.ones((2, 3), np.float32), np.ones(2, bool))])
    expected = {"train": ["a", "b", None, "new"], "test": ["f", "c"]}
    facts = summarise(filled, expected)
    samples = filled.read(["a", "b", "é", "c", "d"])
    assert facts["samples"] == 6
    assert facts["readable"] == 5
    assert facts["dead"] == 1
    assert facts["failures_by_reason"] == {"überlang": 1}
    assert sum(count for _, _, count in facts["lengths"]["bins"]) == 5
    assert facts["lengths"]["mean"] == np.mean([len(s.tokens) for s in samples])
    assert facts["splits"] == {
        "train": {"samples": 4, "without_value": 1, "with_tokens": 2, "failed": 0, "not_extracted": 1},
        "test": {"samples": 2, "without_value": 0, "with_tokens": 1, "failed": 1, "not_extracted": 0},
    }
    text = "\n".join(summary_lines(facts))
    assert "1 samples that no reader gets" in text
    assert "1 not extracted" in text


def test_an_unfinished_extraction_counts_what_is_stored(store: TokenStore) -> None:
    assert summarise(store)["lengths"] == {"bins": []}
    store.append([SampleTokens("a", "d", np.ones((2, 3), np.float32), np.ones(2, bool))])
    facts = summarise(store)
    assert (facts["complete"], facts["readable"], facts["dead"]) == (False, 1, 0)
    assert "not complete" in summary_lines(facts)[0]


def test_every_length_falls_into_the_bin_that_says_so() -> None:
    rng = np.random.default_rng(0)
    for high in (1, 2, 13, 500):
        lengths = rng.integers(1, high + 1, 200)
        found = length_histogram(lengths)
        assert len(found["bins"]) <= 12
        assert sum(n for _, _, n in found["bins"]) == 200
        for first, last, count in found["bins"]:
            assert count == int(((lengths >= first) & (lengths <= last)).sum())


def test_bytes_are_readable() -> None:
    assert [readable_bytes(n) for n in (0, 999, 1500, 2e9, 3e12)] == ["0 B", "999 B", "1.5 kB", "2.0 GB", "3.0 TB"]
