"""Random sequences of everything that changes a cache, against a dictionary."""

import shutil
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cache.compact import compact
from cache.diff import compare
from cache.errors import UserError
from cache.key import CacheKey
from cache.merge import merge
from cache.store import SampleTokens, TokenStore

FULL = 1e8  # bytes of a part that nothing here fills
WIDTH = 2
KEY = CacheKey.imported("e", "0")
IDS = st.sampled_from(["a", "b", "c", "ü", "e/f", "g"])
VERSIONS = st.sampled_from(["v1", "v2"])
IDENTITIES = st.tuples(IDS, VERSIONS)


def tokens_of(identity: tuple[str, str]) -> np.ndarray:
    """Return the tokens that an encoder gives this input, always the same; 1 to 4 of them."""
    seed = sum(identity[0].encode()) + 1000 * int(identity[1][1])
    rng = np.random.default_rng(seed)
    return (rng.integers(-64, 64, (1 + seed % 4, WIDTH)) / 8).astype(np.float32)


def sample(identity: tuple[str, str]) -> SampleTokens:
    tokens = tokens_of(identity)
    return SampleTokens(*identity, tokens, tokens[:, 0] > 0)


class Cache(RuleBasedStateMachine):
    """A cache, and what it must hold: identities with tokens, failures, and the view."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.stored: set[tuple[str, str]] = set()
        self.failed: dict[tuple[str, str], str] = {}
        self.view: dict[str, str] | None = None
        self.number = 0

    @initialize(dtype=st.sampled_from(["float16", "bfloat16", "float32"]))
    def create(self, dtype: str) -> None:
        """Make an empty cache."""
        self.store = TokenStore.create(self.root / "m.zarr", KEY, WIDTH, dtype)

    @rule(identities=st.lists(IDENTITIES, max_size=4, unique=True))
    def append(self, identities: list[tuple[str, str]]) -> None:
        """Append a part, perhaps of samples that are there already."""
        self.store.append([sample(identity) for identity in identities])
        self.stored |= set(identities)

    @rule(identity=IDENTITIES, reason=st.sampled_from(["bad", "worse"]))
    def fail(self, identity: tuple[str, str], reason: str) -> None:
        """Record a failure."""
        self.store.record_failures({identity[0]: (identity[1], reason)})
        self.failed[identity] = reason

    @rule(wanted=st.dictionaries(IDS, VERSIONS, max_size=6))
    def publish(self, wanted: dict[str, str]) -> None:
        """Publish a view, which must be refused when something is not extracted."""
        if set(wanted.items()) <= self.stored | self.failed.keys():
            self.store.publish_view(wanted)
            self.view = dict(wanted)
        else:
            with pytest.raises(UserError, match="not extracted yet"):
                self.store.publish_view(wanted)

    @rule()
    def publish_everything_possible(self) -> None:
        """Publish a view of all that is stored or failed."""
        self.publish(dict(sorted(self.stored | self.failed.keys())))

    @rule()
    def reopen(self) -> None:
        """Open it anew."""
        self.store = TokenStore.open(self.store.path)

    @rule(drop=st.booleans(), now=st.booleans(), part_bytes=st.sampled_from([16, 64, 10**6]))
    def compact(self, drop: bool, now: bool, part_bytes: int) -> None:
        """Compact; only with `drop` and `now` may something go, and only what is not in the view."""
        compact(self.store, part_bytes, drop, now)
        if drop and now and self.view is not None:
            self.stored &= set(self.view.items())
            self.failed = {i: r for i, r in self.failed.items() if i in set(self.view.items())}
        if drop and now:
            assert self.store.info()["samples"] == len(self.stored)

    @rule(identities=st.lists(IDENTITIES, max_size=4, unique=True), complete=st.booleans(), into_other=st.booleans())
    def merge(self, identities: list[tuple[str, str]], complete: bool, into_other: bool) -> None:
        """Merge with a colleague's cache, into ours or a third one that takes its place."""
        other = TokenStore.create(self.root / f"other{self.number}.zarr", KEY, WIDTH, self.store.dtype)
        self.number += 1
        other.append([sample(identity) for identity in identities])
        other_view = dict(identities) if complete else None
        if other_view is not None:
            other.publish_view(other_view)
        ours, theirs = (
            self._digests(self.view, self.stored | self.failed.keys()),
            self._digests(other_view, set(identities)),
        )
        conflict = any(not ours[i] & theirs[i] for i in ours.keys() & theirs.keys())
        target = self.root / f"merged{self.number}.zarr" if into_other else self.store.path
        if conflict:
            with pytest.raises(UserError, match="other raw inputs"):
                merge([self.store, other], target, FULL)
            return
        merge([self.store, other], target, FULL)
        self.stored |= set(identities)
        if self.view is not None and other_view is not None:
            self.view = self.view | other_view
        elif into_other:
            self.view = None
        self.store = TokenStore.open(target)

    @staticmethod
    def _digests(view: dict[str, str] | None, held: set[tuple[str, str]]) -> dict[str, set[str]]:
        found = {i: {d} for i, d in (view or {}).items()}
        for i, d in held:
            if i not in (view or {}):
                found.setdefault(i, set()).add(d)
        return found

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        """Identities, failures, view and tokens agree; verify is clean."""
        if not hasattr(self, "store"):
            return
        assert self.store.places().keys() == self.stored
        held = self.stored | self.failed.keys()
        everything = [(i, v) for i in "abcg" for v in ("v1", "v2")]
        assert [bool(self.store.missing_from({i: v})) for i, v in everything] == [e not in held for e in everything]
        if self.view is None:
            with pytest.raises(UserError, match="not complete"):
                self.store.view()
            return
        assert self.store.view() == self.view
        readable = [i for i, d in self.view.items() if (i, d) in self.stored]
        for got in self.store.read(readable):
            expected = sample((got.sample_id, self.view[got.sample_id]))
            np.testing.assert_array_equal(got.tokens, expected.tokens)
            np.testing.assert_array_equal(got.maskable, expected.maskable)
        assert self.store.failures().keys() == {i for i, d in self.view.items() if (i, d) not in self.stored}

    @precondition(lambda self: self.number > 0)
    @rule()
    def check_every_byte(self) -> None:
        """Verify, and compare with itself."""
        assert self.store.verify().problems == []
        assert compare(self.store, self.store).same

    def teardown(self) -> None:
        """Remove the files."""
        shutil.rmtree(self.root)


def run(examples: int, steps: int, shrink: bool) -> None:
    phases = [Phase.generate, Phase.shrink] if shrink else [Phase.generate]  # shrinking takes minutes
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    bounds = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=checks,
        database=None,
        phases=phases,
    )
    with mock.patch("os.fsync"):
        run_state_machine_as_test(Cache, settings=bounds)


def test_a_cache_behaves_like_a_dictionary() -> None:
    run(examples=6, steps=12, shrink=False)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_cache_behaves_like_a_dictionary_for_long() -> None:
    run(examples=100, steps=30, shrink=True)
