"""Damage is found, named and never read as zeros."""

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cache.bank import TokenBank
from cache.errors import CorruptCacheError, StaleCacheError
from cache.key import CacheKey
from cache.store import SampleTokens, TokenStore

FLIPS_PER_FILE = 6
TWO_DAYS_S = 2 * 24 * 3600


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def missed_flips(store: TokenStore, per_file: int) -> tuple[int, list[str]]:
    """Flip single bits drawn from every file; returns how many, and those that `verify` did not name."""
    assert store.verify().problems == []
    chosen, total, missed = random.Random(0), 0, []
    for path in files(store.path):
        good = path.read_bytes()
        for bit in chosen.sample(range(8 * len(good)), min(per_file, 8 * len(good))):
            bad = bytearray(good)
            bad[bit // 8] ^= 1 << bit % 8
            path.write_bytes(bad)
            problems = store.verify().problems
            total += 1
            if not any(str(path) in problem and "selfmask extract" in problem for problem in problems):
                missed.append(f"{path.relative_to(store.path)} bit {bit}")
        path.write_bytes(good)
    assert store.verify().problems == []
    return total, missed


def test_a_flipped_bit_in_any_file_is_found_and_named(filled: TokenStore) -> None:
    assert missed_flips(filled, FLIPS_PER_FILE)[1] == []


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "compression"), [("float16", "none"), ("int8", "none"), ("int8", "zstd")])
def test_every_one_of_over_five_hundred_flipped_bits_is_found(
    tmp_path: Path,
    make_key: Callable[..., CacheKey],
    make_samples: Callable[..., list[SampleTokens]],
    dtype: str,
    compression: str,
) -> None:
    store = TokenStore.create(tmp_path / "m.zarr", make_key(), 3, dtype, compression)
    store.append(make_samples(["a", "b", "é"], longest=40))
    store.append(make_samples(["c", "d"], seed=1, longest=40))
    store.record_failures({"f": ("digest-f", "torn")})
    store.publish_view({i: f"digest-{i}" for i in ("a", "b", "é", "c", "d", "f")})
    total, missed = missed_flips(store, 25)
    assert total >= 500
    assert missed == []


def test_a_flipped_bit_that_leaves_the_meaning_is_found(filled: TokenStore) -> None:
    """JSON has two spellings of an accented letter, one bit apart."""
    failure = next((filled.path / "failures").iterdir())
    for path, letter in ((filled.path / "view.json", b"\\u00e9"), (failure, b"\\u00fc")):
        good = path.read_bytes()
        assert letter in good
        bad = good.replace(letter, letter.upper().replace(b"U", b"u"))
        assert json.loads(bad) == json.loads(good)
        path.write_bytes(bad)
        assert any(str(path) in problem for problem in filled.verify().problems)
        path.write_bytes(good)


def test_reading_never_believes_flipped_offsets_flags_or_ids(filled: TokenStore) -> None:
    """The small arrays are checked at every reading; open compares sizes only."""
    for pattern in ("*/offsets/c/0", "*/maskable/c/0", "*/samples/ids/c/0/0", "*/samples/digests/c/0/0"):
        path = next((filled.path / "parts").glob(pattern))
        good = path.read_bytes()
        path.write_bytes(bytes([good[0] ^ 1]) + good[1:])
        opened = TokenStore.open(filled.path)
        with pytest.raises(CorruptCacheError, match="checksum"):
            TokenBank.load({"m": opened}, ["a", "b", "c", "d", "é"], None)
        path.write_bytes(good)


@pytest.mark.parametrize("damage", ["remove", "truncate", "grow"])
def test_a_missing_or_resized_file_raises_wherever_it_is_noticed(filled: TokenStore, damage: str) -> None:
    for path in files(filled.path / "parts"):
        if path.parent.name == "parts":
            continue
        good = path.read_bytes()
        if damage == "remove":
            path.unlink()
        else:
            path.write_bytes(good[:-1] if damage == "truncate" else good + b"\0")
        with pytest.raises(CorruptCacheError, match="selfmask extract") as caught:
            TokenStore.open(filled.path)
        assert str(path) in str(caught.value)
        assert any(str(path) in problem for problem in filled.verify().problems)
        path.write_bytes(good)
    TokenStore.open(filled.path)


@pytest.mark.parametrize("lost", ["tokens/c/0/0", "."])
def test_tokens_lost_after_opening_are_not_zeros(filled: TokenStore, lost: str) -> None:
    for entry in filled.entries():
        path = filled.path / "parts" / entry["part"] / lost
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for read in (lambda: filled.read(["a"]), lambda: TokenBank.load({"m": filled}, ["a"], None)):
        with pytest.raises(CorruptCacheError, match="absent"):
            read()


def test_a_lost_manifest_entry_is_not_a_missing_modality(filled: TokenStore) -> None:
    for path in (filled.path / "manifest").iterdir():
        path.unlink()
    opened = TokenStore.open(filled.path)
    with pytest.raises(CorruptCacheError, match="1 samples of view"):
        TokenBank.load({"m": opened}, ["a"], None)
    report = opened.verify()
    assert len(report.problems) == 1
    assert report.orphans == 2
    assert "a" in opened.missing_from({"a": "digest-a"})


def test_parts_of_another_cache_are_refused(
    filled: TokenStore, tmp_path: Path, make_key: Callable[..., CacheKey]
) -> None:
    other = TokenStore.create(tmp_path / "other.zarr", make_key(encoder="other"), 3)
    for name in ("parts", "manifest"):
        shutil.copytree(filled.path / name, other.path / name, dirs_exist_ok=True)
    with pytest.raises(CorruptCacheError, match="another key"):
        TokenStore.open(other.path)


def test_parts_of_a_cache_with_the_same_key_may_be_copied_in(
    filled: TokenStore, tmp_path: Path, make_key: Callable[..., CacheKey]
) -> None:
    other = TokenStore.create(tmp_path / "other.zarr", make_key(), 3)
    for name in ("parts", "manifest", "failures"):
        shutil.copytree(filled.path / name, other.path / name, dirs_exist_ok=True)
    other.publish_view(filled.view())
    assert other.verify().problems == []
    np.testing.assert_array_equal(other.read(["a"])[0].tokens, filled.read(["a"])[0].tokens)


def test_a_renamed_manifest_entry_is_noticed(filled: TokenStore) -> None:
    path = next((filled.path / "manifest").iterdir())
    path.rename(path.with_name("0" * 32 + ".json"))
    with pytest.raises(CorruptCacheError, match="renamed"):
        TokenStore.open(filled.path)


def test_a_file_that_the_manifest_does_not_know_is_reported(filled: TokenStore) -> None:
    (filled.path / "parts" / filled.entries()[0]["part"] / "stray").write_bytes(b"x")
    assert ["stray" in problem for problem in filled.verify().problems] == [True]


def test_another_format_is_stale_and_a_foreign_group_is_no_cache(filled: TokenStore) -> None:
    path = filled.path / "zarr.json"
    document = json.loads(path.read_text())
    document["attributes"]["selfmask"] = {"format": 1}
    path.write_text(json.dumps(document))
    with pytest.raises(StaleCacheError, match="format 1"):
        TokenStore.open(filled.path)
    foreigners: list[object] = [{"zarr_format": 3, "node_type": "group", "attributes": {}}, [], {"attributes": None}]
    for foreign in foreigners:
        path.write_text(json.dumps(foreign))
        with pytest.raises(CorruptCacheError, match=r"zarr\.json"):
            TokenStore.open(filled.path)


def orphan(store: TokenStore, age_s: float, name: str) -> Path:
    folder = store.path / "parts" / name
    (folder / "tokens").mkdir(parents=True)
    (folder / "tokens" / "zarr.json").write_text("{}")
    for path in (folder / "tokens" / "zarr.json", folder / "tokens", folder):
        os.utime(path, (time.time() - age_s,) * 2)
    return folder


def test_an_unpublished_part_is_invisible_and_removed_when_old(filled: TokenStore) -> None:
    before = filled.info()
    old, young = orphan(filled, TWO_DAYS_S, "0" * 32), orphan(filled, 0, ".1.partial")
    leftover = filled.path / "manifest" / ".x.json.1.partial"
    leftover.write_text("{")
    os.utime(leftover, (time.time() - TWO_DAYS_S,) * 2)
    opened = TokenStore.open(filled.path)
    assert opened.info() == before
    report = opened.verify()
    assert (report.problems, report.orphans, report.removed) == ([], 3, [])
    report = opened.verify(clean=True)
    assert sorted(report.removed) == sorted([old.name, leftover.name])
    assert (old.exists(), leftover.exists(), young.exists()) == (False, False, True)
    assert opened.verify().problems == []


def test_a_part_being_written_is_not_removed(filled: TokenStore) -> None:
    """Its folder may be old while a file in it has just been written."""
    folder = orphan(filled, TWO_DAYS_S, ".1.partial")
    os.utime(folder / "tokens" / "zarr.json")
    assert filled.verify(clean=True).removed == []


def test_clean_keeps_the_part_of_a_damaged_manifest_entry(filled: TokenStore) -> None:
    """The entry can be pulled again; the tokens may exist nowhere else."""
    for path in files(filled.path):
        os.utime(path, (time.time() - TWO_DAYS_S,) * 2)
    for folder in (filled.path / "parts").rglob("*"):
        os.utime(folder, (time.time() - TWO_DAYS_S,) * 2)
    entry = next((filled.path / "manifest").iterdir())
    good = entry.read_bytes()
    entry.write_bytes(good[:-9])
    report = filled.verify(clean=True)
    assert len(report.problems) == 1
    assert (report.orphans, report.removed) == (0, [])
    entry.write_bytes(good)
    assert filled.verify().problems == []
