"""Compaction changes what is on disk, never what a reader gets: killed at any instant, and beside other processes."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache.compact import compact
from cache.contents import identities_by_part
from cache.errors import CorruptCacheError, UserError
from cache.lock import rewriting
from cache.store import SampleTokens, TokenStore
from cache.verify import ORPHAN_AGE_S

FULL = 1e8  # bytes of a part that nothing here fills
pytestmark = pytest.mark.usefixtures("no_fsync")
ROOT = Path(__file__).parents[2]
IDS = [f"s{i}" for i in range(8)]
MUTATIONS = ("rename", "replace", "unlink", "utime", "fsync", "rmdir", "mkdir")


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the process does anything afterwards."""


def sample(sample_id: str, digest: str = "d", value: float | None = None) -> SampleTokens:
    number = int(sample_id[1:]) if value is None else value
    return SampleTokens(sample_id, digest, np.full((2, 3), number, np.float32), np.ones(2, bool))


@pytest.fixture
def scattered(store: TokenStore) -> TokenStore:
    """Eight parts of one sample, three more with dead ones, and a view of the eight."""
    for i in IDS:
        store.append([sample(i)])
    store.append([sample("s0", "old", 99), sample("s9", "removed", 99)])
    store.append([sample("s1"), sample("s2")])
    store.record_failures({"f": ("d", "bad"), "gone": ("d", "bad")})
    store.record_failures({"g": ("d", "worse")})
    store.publish_view(dict.fromkeys([*IDS, "f", "g"], "d"))
    return store


def assert_reads_the_same(store: TokenStore) -> None:
    opened = TokenStore.open(store.path)
    assert set(opened.view()) == {*IDS, "f", "g"}
    assert [float(s.tokens[0, 0]) for s in opened.read(IDS)] == list(range(8))
    assert opened.failures() == {"f": "bad", "g": "worse"}
    assert opened.verify().problems == []


def age(path: Path) -> None:
    """Make everything look two days old."""
    then = time.time() - 2 * ORPHAN_AGE_S
    for item in path.rglob("*"):
        os.utime(item, (then, then))


def test_small_parts_become_one_and_nothing_else_changes(scattered: TokenStore) -> None:
    report = compact(scattered, FULL)
    assert (report.parts_before, report.parts_after) == (10, 1)
    assert (report.rewritten, report.dropped) == (10, 2)
    assert not report.freed
    assert_reads_the_same(scattered)
    assert scattered.missing_from({"s0": "old", "s9": "removed"}) == [], "dead samples stay unless they are to go"
    assert scattered.verify().orphans == 10
    again = compact(scattered, FULL)
    assert (again.parts_after, again.rewritten, again.bytes_replaced) == (1, 0, 0)


def test_replaced_parts_stay_a_day_for_their_readers(scattered: TokenStore) -> None:
    age(scattered.path)
    entries = scattered.entries()
    compact(scattered, FULL)
    assert scattered.verify(clean=True).removed == []
    for entry in entries:
        assert len(scattered.read_part(entry).tokens) == entry["tokens"]
    age(scattered.path)
    assert len(scattered.verify(clean=True).removed) == 10
    assert_reads_the_same(scattered)


def test_dead_samples_are_dropped_from_disk(scattered: TokenStore) -> None:
    report = compact(scattered, FULL, drop_dead=True, now=True)
    assert (report.rewritten, report.dropped, report.freed) == (8, 4, True)
    assert_reads_the_same(scattered)
    assert scattered.missing_from({"s0": "old", "s9": "removed", "gone": "d"}) == ["s0", "s9", "gone"]
    folders = [path for path in (scattered.path / "parts").iterdir() if path.is_dir()]
    assert len(folders) == 1
    assert "removed" not in b"".join(p.read_bytes() for p in scattered.path.rglob("*") if p.is_file()).decode("latin1")
    assert scattered.info()["bytes"] == report.bytes_written
    assert len(list((scattered.path / "failures").iterdir())) == 1


def test_what_an_extraction_under_way_has_written_is_kept(scattered: TokenStore) -> None:
    age(scattered.path)
    scattered.append([sample("s7", "new", 7.5)])
    report = compact(scattered, FULL, drop_dead=True)
    assert report.kept_young == 1
    assert scattered.missing_from({"s7": "new"}) == []
    assert scattered.missing_from({"s9": "removed"}) == ["s9"]
    assert_reads_the_same(scattered)


def test_full_parts_without_dead_samples_are_left_alone(scattered: TokenStore) -> None:
    full = {e["part"] for e in scattered.entries()}
    report = compact(scattered, part_bytes=12)  # 2 tokens x 3 x 2 bytes: every part is full
    assert report.rewritten == 0
    assert {e["part"] for e in scattered.entries()} < full, "parts that hold only copies go"
    compact(scattered, 12, drop_dead=True, now=True)
    assert scattered.info()["samples"] == 8
    assert_reads_the_same(scattered)


def test_parts_are_filled_up_to_their_size(scattered: TokenStore) -> None:
    report = compact(scattered, 36, drop_dead=True, now=True)
    assert report.parts_after == 3
    assert max(len(identities) for identities in identities_by_part(scattered).values()) == 3
    assert_reads_the_same(scattered)


def test_read_only_files_are_not_touched(scattered: TokenStore) -> None:
    before = scattered.content_digest()
    for path in scattered.path.rglob("*"):
        if path.is_file():
            path.chmod(0o444)
    with pytest.raises(UserError, match=r"read-only files.*dvc unprotect"):
        compact(scattered, FULL)
    assert scattered.content_digest() == before


def test_damage_is_not_given_a_new_checksum_and_a_good_copy_is_kept(scattered: TokenStore) -> None:
    places = scattered.places()
    chunk = scattered.path / "parts" / places["s1", "d"].part / "tokens/c/0/0"
    data = bytearray(chunk.read_bytes())
    data[1] ^= 4
    chunk.write_bytes(data)
    before = scattered.content_digest()
    for part_bytes in (12, 10**6):
        with pytest.raises(CorruptCacheError, match="checksum"):
            compact(scattered, part_bytes, drop_dead=True, now=True)
        assert scattered.content_digest() == before or part_bytes > 12


def test_one_rewriter_at_a_time_and_no_view_meanwhile(scattered: TokenStore) -> None:
    with rewriting(scattered.path), pytest.raises(UserError, match="another process"):
        compact(scattered, FULL)
    compact(scattered, FULL)


def dying(monkeypatch: pytest.MonkeyPatch, at: int) -> Callable[[], bool]:
    """Make the `at`-th change of the file system, and all later ones, raise Killed; returns whether it happened."""
    count = 0

    def patch(name: str) -> None:
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            if threading.current_thread() is threading.main_thread():  # zarr's own threads would wait for ever
                count += 1
                if count > at:
                    raise Killed
            return real(*args, **kwargs)

        monkeypatch.setattr(os, name, call)

    for name in MUTATIONS:
        patch(name)
    return lambda: count > at


def test_a_kill_before_any_change_of_the_file_system_loses_nothing(
    scattered: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in IDS[3:]:  # fewer parts, or this takes long
        (scattered.path / "manifest" / f"{scattered.places()[i, 'd'].part}.json").unlink()
    kept = dict.fromkeys([*IDS[:3], "f", "g"], "d")
    scattered.publish_view(kept)
    kills = 0
    for at in range(0, 1000, 7):
        copy = tmp_path / f"copy{at}.zarr"
        shutil.copytree(scattered.path, copy)
        store = TokenStore.open(copy)
        with monkeypatch.context() as patched:
            killed = dying(patched, at)
            try:
                compact(store, 60, drop_dead=True, now=True)
            except Killed:
                kills += 1
            done = not killed()
        assert_holds(store, dict.fromkeys(IDS[:3], "d"))
        assert store.verify().problems == []
        if done:
            break
        compact(store, 60, drop_dead=True, now=True)
        assert_holds(store, dict.fromkeys(IDS[:3], "d"))
        assert store.info()["samples"] == 3
        assert store.failures() == {"f": "bad", "g": "worse"}
    assert kills > 5


COMPACTOR = """
import sys
from pathlib import Path
from cache.compact import compact
from cache.store import TokenStore
store = TokenStore.open(Path(sys.argv[1]))
print("ready", flush=True)
compact(store, int(sys.argv[2]), now=len(sys.argv) > 3)
"""


def compactor(path: Path, *words: str) -> "subprocess.Popen[str]":
    code = [sys.executable, "-c", COMPACTOR, str(path), *words]
    process = subprocess.Popen(code, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.fixture
def grown(store: TokenStore) -> tuple[TokenStore, dict[str, str]]:
    """A store of twelve small parts."""
    ids = [f"s{i}" for i in range(12)]
    for i in ids:
        store.append([sample(i)])
    wanted = dict.fromkeys(ids, "d")
    store.publish_view(wanted)
    return store, wanted


def assert_holds(store: TokenStore, wanted: dict[str, str]) -> None:
    opened = TokenStore.open(store.path)
    assert [float(s.tokens[0, 0]) for s in opened.read(list(wanted))] == [float(i[1:]) for i in wanted]


def test_readers_and_a_writer_beside_a_compaction(grown: Any) -> None:
    store, wanted = grown
    process = compactor(store.path, "240")
    reads = written = 0
    while process.poll() is None or reads < 3:
        assert_holds(store, wanted)
        assert store.verify().problems == []
        new = f"s{100 + written}"
        store.append([sample(new)])
        wanted[new] = "d"
        store.publish_view(wanted)
        reads, written = reads + 1, written + 1
    assert process.wait() == 0
    process.stdout.close()
    assert_holds(store, wanted)
    assert len(store.places()) == len(wanted)
    assert len(store.entries()) < len(wanted)


def kill_again_and_again(store: TokenStore, wanted: dict[str, str], times: int) -> None:
    delays = random.Random(0)
    for _ in range(times):
        process = compactor(store.path, str(12 * delays.randint(2, 9)), "now")
        time.sleep(delays.random() * 0.3)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]
        assert_holds(store, wanted)
        assert store.verify().problems == []
        store.append([sample("s0")])  # something to do for the next one
        store.append([sample("s1")])
    compact(store, FULL, now=True)
    assert len(store.entries()) == 1
    assert store.info()["samples"] == len(wanted)
    assert_holds(store, wanted)


def test_killed_compactors_lose_nothing(grown: Any) -> None:
    kill_again_and_again(*grown, times=1)


@pytest.mark.slow
def test_fifty_killed_compactors_lose_nothing(grown: Any) -> None:
    kill_again_and_again(*grown, times=50)
