"""The union of caches: everything of every source once, whatever the order, wherever it was interrupted."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache.diff import compare
from cache.errors import CorruptCacheError, StaleCacheError, UserError
from cache.linking import link_file
from cache.merge import merge
from cache.store import SampleTokens, TokenStore

FULL = 1e8  # bytes of a part that nothing here fills
pytestmark = pytest.mark.usefixtures("no_fsync")
Fill = Callable[..., TokenStore]


@pytest.fixture
def fill(tmp_path: Path, make_key: Any, make_samples: Any) -> Fill:
    """Return a maker of caches, one part per word of ids; `view` publishes one."""

    def make(name: str, *parts: str, view: bool = True, **key: Any) -> TokenStore:
        store = TokenStore.create(tmp_path / f"{name}.zarr", make_key(**key), 3)
        for seed, ids in enumerate(parts):
            store.append(make_samples(ids, seed=seed))
        if view:
            store.publish_view({i: f"digest-{i}" for i in "".join(parts)})
        return store

    return make


def one(sample_id: str, digest: str, value: float) -> SampleTokens:
    return SampleTokens(sample_id, digest, np.full((2, 3), value, np.float32), np.ones(2, bool))


def test_the_union_of_two_complete_caches(fill: Fill, tmp_path: Path) -> None:
    a, b = fill("a", "abc", "d"), fill("b", "ef", "g")
    a.record_failures({"x": ("digest-x", "too long")})
    report = merge([a, b], tmp_path / "c.zarr", FULL)
    c = TokenStore.open(tmp_path / "c.zarr")
    assert (report.parts_copied, report.samples_copied, report.samples_rewritten) == (4, 7, 0)
    assert report.view
    assert c.view() == a.view() | b.view()
    assert c.verify().problems == []
    for store, ids in ((a, "abcd"), (b, "efg")):
        for expected, got in zip(store.read(list(ids)), c.read(list(ids)), strict=True):
            np.testing.assert_array_equal(got.tokens, expected.tokens)
            np.testing.assert_array_equal(got.maskable, expected.maskable)
    assert ("x", "digest-x") not in c.places()
    assert c.missing_from({"x": "digest-x"}) == []
    assert a.verify().problems == b.verify().problems == []


def test_again_adds_nothing(fill: Fill, tmp_path: Path) -> None:
    a, b = fill("a", "abc"), fill("b", "bcd", "e")
    merge([a, b], tmp_path / "c.zarr", FULL)
    before = TokenStore.open(tmp_path / "c.zarr").content_digest()
    report = merge([a, b], tmp_path / "c.zarr", FULL)
    assert (report.parts_copied, report.samples_rewritten, report.failures) == (0, 0, 0)
    assert TokenStore.open(tmp_path / "c.zarr").content_digest() == before


def test_a_duplicate_comes_from_the_first_part_by_id_whatever_the_order(fill: Fill, tmp_path: Path) -> None:
    a, b = fill("a", view=False), fill("b", view=False)
    parts = {a.append([one("s", "d", 1), one("t", "d", 1)]): 1.0, b.append([one("s", "d", 2), one("u", "d", 2)]): 2.0}
    expected = parts[min(parts, key=str)]
    for name, order in (("c", [a, b]), ("d", [b, a])):
        report = merge(order, tmp_path / f"{name}.zarr", FULL)
        assert (report.samples_copied, report.samples_rewritten) == (2, 1)
        merged = TokenStore.open(tmp_path / f"{name}.zarr")
        merged.publish_view({"s": "d", "t": "d", "u": "d"})
        assert [float(s.tokens[0, 0]) for s in merged.read(["s", "t", "u"])] == [expected, 1.0, 2.0]
        assert merged.info()["samples"] == 3
    assert compare(TokenStore.open(tmp_path / "c.zarr"), TokenStore.open(tmp_path / "d.zarr")).same


def test_a_half_finished_extraction_merges_and_goes_on(fill: Fill, tmp_path: Path) -> None:
    """Two people extract the same table; the second's tokens of samples outside its pulled view are kept."""
    first = fill("first", "abc")
    shutil.copytree(first.path, tmp_path / "second.zarr")
    second = TokenStore.open(tmp_path / "second.zarr")
    second.append([one("new", "d", 3)])
    first.append([one("other", "d", 4)])
    unfinished = fill("third", "k", view=False)
    report = merge([second, unfinished], first.path, FULL)
    assert not report.view
    assert report.parts_copied == 2
    wanted = {i: f"digest-{i}" for i in "abck"} | {"new": "d", "other": "d"}
    assert first.missing_from(wanted) == []
    assert set(first.view()) == set("abc"), "the view stays that of the finished extraction"
    first.publish_view(wanted)
    assert float(first.read(["new"])[0].tokens[0, 0]) == 3


def test_other_keys_are_refused_and_nothing_is_written(fill: Fill, tmp_path: Path, make_key: Any) -> None:
    a, b = fill("a", "a"), fill("b", "b", encoder="words")
    wide = TokenStore.create(tmp_path / "wide.zarr", make_key(), 4, "float32")
    with pytest.raises(StaleCacheError, match=r"encoder: 'patches' and 'words'.*selfmask extract"):
        merge([a, b], tmp_path / "c.zarr", FULL)
    with pytest.raises(StaleCacheError, match=r"width: 3 and 4; dtype: 'float16' and 'float32'"):
        merge([a, wide], tmp_path / "c.zarr", FULL)
    assert not (tmp_path / "c.zarr").exists()


def test_conflicting_raw_inputs_are_counted_unless_one_is_preferred(fill: Fill, tmp_path: Path) -> None:
    a, b = fill("a", "abc"), fill("b", view=False)
    b.append([one("a", "changed", 5), one("z", "d", 6)])
    b.publish_view({"a": "changed", "z": "d"})
    with pytest.raises(UserError, match=r"1 samples have other raw inputs.*--prefer"):
        merge([a, b], tmp_path / "c.zarr", FULL)
    for name, preferred, digest in (("c", a.path, "digest-a"), ("d", b.path, "changed")):
        merge([a, b], tmp_path / f"{name}.zarr", FULL, prefer=preferred)
        merged = TokenStore.open(tmp_path / f"{name}.zarr")
        assert merged.view()["a"] == digest
        assert set(merged.view()) == set("abcz")
        assert [i for i, _ in merged.places()].count("a") == 1
        assert merged.verify().problems == []
    with pytest.raises(UserError, match="not one of the merged caches"):
        merge([a, b], tmp_path / "e.zarr", FULL, prefer=tmp_path)


def test_views_only_when_complete_or_refused(fill: Fill, tmp_path: Path) -> None:
    a, b = fill("a", "a"), fill("b", "b", view=False)
    with pytest.raises(UserError, match=r"b\.zarr is not complete"):
        merge([a, b], tmp_path / "c.zarr", FULL, with_view=True)
    assert not merge([a, b], tmp_path / "c.zarr", FULL).view
    assert not merge([a], tmp_path / "d.zarr", FULL, with_view=False).view
    with pytest.raises(UserError, match="not complete"):
        TokenStore.open(tmp_path / "c.zarr").view()


def test_damage_does_not_travel(fill: Fill, tmp_path: Path) -> None:
    for name, others in (("whole", "xy"), ("partly", "ax")):
        a, b = fill(f"{name}a", "abc"), fill(f"{name}b", others)
        chunk = next((b.path / "parts").glob("*/tokens/c/0/0"))
        data = bytearray(chunk.read_bytes())
        data[3] ^= 1
        chunk.write_bytes(data)
        with pytest.raises(CorruptCacheError, match="checksum"):
            merge([a, b], tmp_path / f"{name}c.zarr", FULL)
        assert TokenStore.open(tmp_path / f"{name}c.zarr").verify().problems == []


@pytest.mark.parametrize("step", ["publish_folder", "write_sealed", "link_file"])
def test_a_kill_between_the_steps_of_a_copy_is_resumed(
    fill: Fill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    a, b = fill("a", "abc", "d"), fill("b", "e")
    monkeypatch.setattr(f"cache.linking.{step}", kill)
    with pytest.raises(Killed):
        merge([a, b], tmp_path / "c.zarr", FULL)
    monkeypatch.undo()
    assert TokenStore.open(tmp_path / "c.zarr").info()["samples"] == 0
    merge([a, b], tmp_path / "c.zarr", FULL)
    c = TokenStore.open(tmp_path / "c.zarr")
    assert c.info()["samples"] == 5
    assert c.verify().problems == []
    assert c.verify().orphans == 0


def test_an_unpublished_leftover_of_the_part_is_replaced_when_damaged(fill: Fill, tmp_path: Path) -> None:
    a = fill("a", "abc")
    part = a.entries()[0]["part"]
    c = TokenStore.create(tmp_path / "c.zarr", a.key, 3)
    (c.path / "parts" / part).mkdir()
    (c.path / "parts" / part / "rest").write_text("of something")
    merge([a], c.path, FULL)
    assert c.verify().problems == []
    assert c.info()["samples"] == 3


def test_links_share_the_bytes_but_not_those_of_a_protected_file(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"tokens")
    link_file(source, tmp_path / "first")
    source.chmod(0o444)
    link_file(source, tmp_path / "second")
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes() == b"tokens"
    assert (tmp_path / "second").stat().st_ino != source.stat().st_ino
    assert (tmp_path / "second").stat().st_mode & 0o200
