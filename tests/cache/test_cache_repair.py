"""Repair restores what can be, names the rest, and never deletes the only copy of anything."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cache.errors import CorruptCacheError
from cache.key import CacheKey
from cache.store import SampleTokens, TokenStore

Maker = Callable[..., list[SampleTokens]]
IDS = ["a", "b", "c", "d", "é"]
WANTED = {i: f"digest-{i}" for i in [*IDS, "f"]}


def contents(folder: Path) -> set[bytes]:
    return {path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def part_of(store: TokenStore, sample_id: str) -> str:
    return store.places()[(sample_id, f"digest-{sample_id}")].part


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)


def repair(store: TokenStore) -> list[str]:
    return TokenStore.open(store.path, check=False).verify(repair=True).repaired


def test_a_healthy_cache_is_left_alone(filled: TokenStore) -> None:
    before = filled.content_digest()
    assert repair(filled) == []
    assert filled.content_digest() == before
    assert not (filled.path / "quarantine").exists()


@pytest.mark.parametrize("file", ["tokens/c/0/0", "offsets/c/0", "maskable/c/0", "samples/ids/c/0/0"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_the_samples_of_a_damaged_part_alone_are_lost_and_extracted_again(
    filled: TokenStore, make_samples: Maker, file: str, damage: str
) -> None:
    expected = {sample.sample_id: sample.tokens for sample in filled.read(IDS)}
    path = filled.path / "parts" / part_of(filled, "c") / file
    if damage == "flip":
        flip(path)
    elif damage == "truncate":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    before = contents(filled.path)
    lines = repair(filled)
    assert len(lines) == 1
    assert "2 samples" in lines[0]
    assert before <= contents(filled.path), "something was deleted"
    opened = TokenStore.open(filled.path)
    assert sorted(opened.missing_from(WANTED)) == ["c", "d"]
    with pytest.raises(CorruptCacheError, match="1 samples of view"):
        opened.read(["c"])
    assert ["selfmask extract" in problem for problem in opened.verify().problems] == [True]
    opened.append(make_samples(["c", "d"], seed=1))
    opened.publish_view(WANTED)
    assert opened.verify().problems == []
    for sample in opened.read(IDS):
        np.testing.assert_array_equal(sample.tokens, expected[sample.sample_id])


def test_a_damaged_part_whose_samples_another_part_holds_is_dropped(filled: TokenStore, make_samples: Maker) -> None:
    filled.append(make_samples(["c", "d"], seed=1))
    flip(filled.path / "parts" / part_of(filled, "c") / "tokens/c/0/0")
    report = TokenStore.open(filled.path, check=False).verify(repair=True)
    assert (len(report.repaired), report.problems, report.parts) == (1, [], 2)
    assert filled.missing_from(WANTED) == []


@pytest.mark.parametrize("file", ["zarr.json", "tokens/zarr.json", "samples/zarr.json", "samples/digests/zarr.json"])
@pytest.mark.parametrize("remove", [True, False])
def test_a_part_s_zarr_documents_are_restored(filled: TokenStore, file: str, remove: bool) -> None:
    path, before = filled.path / "parts" / part_of(filled, "c") / file, contents(filled.path)
    path.unlink() if remove else flip(path)
    assert len(repair(filled)) == 1
    assert TokenStore.open(filled.path).verify().problems == []
    assert contents(filled.path) == before


@pytest.mark.parametrize("damage", ["remove", "flip", "rename"])
@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_lost_manifest_entry_is_made_again(
    tmp_path: Path, make_key: Callable[..., CacheKey], make_samples: Maker, damage: str, dtype: str
) -> None:
    for compression in ("none", "zstd"):
        store = TokenStore.create(tmp_path / compression, make_key(), 3, dtype, compression)
        store.append(make_samples(["a", "b"]))
        store.publish_view({"a": "digest-a", "b": "digest-b"})
        path = store.path / "manifest" / f"{part_of(store, 'a')}.json"
        good = path.read_bytes()
        if damage == "rename":
            path.rename(path.with_name("0" * 32 + ".json"))
        else:
            path.unlink() if damage == "remove" else flip(path)
        report = TokenStore.open(store.path, check=False).verify(repair=True)
        assert (report.problems, report.parts) == ([], 1)
        assert path.read_bytes() == good


def test_an_orphan_that_is_not_whole_or_not_ours_or_not_needed_stays_one(
    filled: TokenStore, make_key: Callable[..., CacheKey], make_samples: Maker, tmp_path: Path
) -> None:
    other = TokenStore.create(tmp_path / "other.zarr", make_key(encoder="other"), 3)
    stranger, torn = other.append(make_samples(["s"])), filled.append(make_samples(["t"]))
    spare = filled.append(make_samples(["c", "d"], seed=1))
    (other.path / "parts" / str(stranger)).rename(filled.path / "parts" / str(stranger))
    flip(filled.path / "parts" / str(torn) / "tokens/c/0/0")
    for part in (torn, spare):
        (filled.path / "manifest" / f"{part}.json").unlink()
    being_written = filled.path / "parts" / f".{'1' * 32}.partial"
    (filled.path / "parts" / str(spare)).rename(being_written)
    before = contents(filled.path)
    report = TokenStore.open(filled.path).verify(repair=True)
    assert (report.repaired, report.problems, report.orphans) == ([], [], 3)
    assert contents(filled.path) == before


def test_damaged_documents_are_moved_aside_and_an_extraction_writes_them_again(filled: TokenStore) -> None:
    for path in (filled.path / "view.json", next((filled.path / "failures").iterdir())):
        path.write_bytes(path.read_bytes()[:-5])
    before = contents(filled.path)
    assert len(repair(filled)) == 2
    assert before <= contents(filled.path)
    assert filled.missing_from(WANTED) == ["f"]
    filled.record_failures({"f": ("digest-f", "torn")})
    filled.publish_view(WANTED)
    assert filled.verify().problems == []


def test_a_changed_spelling_is_undone(filled: TokenStore) -> None:
    before = contents(filled.path)
    for path in [
        filled.path / "zarr.json",
        filled.path / "parts" / "zarr.json",
        *(filled.path / "manifest").iterdir(),
        filled.path / "view.json",
    ]:
        path.write_text(json.dumps(json.loads(path.read_bytes())))
    assert len(repair(filled)) == 5
    assert filled.verify().problems == []
    assert contents(filled.path) == before


def test_a_stray_file_is_moved_out_of_its_part(filled: TokenStore) -> None:
    stray = filled.path / "parts" / part_of(filled, "a") / "stray"
    stray.write_bytes(b"x")
    assert len(repair(filled)) == 1
    assert not stray.exists()
    assert b"x" in contents(filled.path / "quarantine")
    assert filled.verify().problems == []


def test_parts_of_another_cache_leave_with_their_entries(
    filled: TokenStore, make_key: Callable[..., CacheKey], make_samples: Maker, tmp_path: Path
) -> None:
    other = TokenStore.create(tmp_path / "other.zarr", make_key(encoder="other"), 3)
    part = other.append(make_samples(["s"]))
    for name in (f"manifest/{part}.json", f"parts/{part}"):
        (other.path / name).rename(filled.path / name)
    before = contents(filled.path)
    assert len(repair(filled)) == 1
    assert contents(filled.path) == before
    report = filled.verify()
    assert (report.problems, report.orphans, report.parts) == ([], 0, 2)
