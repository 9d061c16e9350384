"""Writers killed with SIGKILL at any instant: published parts are good, and the work is resumed to its end."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache.parts import read_identities
from cache.store import SampleTokens, TokenStore

WRITER = """
import sys
import time
import numpy as np
from pathlib import Path
from cache.key import CacheKey
from cache.store import SampleTokens, TokenStore

key = CacheKey.imported("e", "0")
store = TokenStore.create(Path(sys.argv[1]), key, 64, "float32")
print("ready", flush=True)
share, shares = int(sys.argv[3]), int(sys.argv[4])
wanted = {f"s{i}": "d" for i in range(int(sys.argv[2])) if i % shares == share}
stop, pause = (Path(sys.argv[1]).with_name(name) for name in ("stop", "pause"))
for i in store.missing_from(wanted):
    while pause.exists() and not stop.exists():
        time.sleep(0.005)
    if stop.exists():
        break
    tokens = np.full((50, 64), float(i[1:]), np.float32)
    store.append([SampleTokens(i, "d", tokens, np.ones(50, bool))])
if shares == 1:
    store.publish_view(wanted)
"""
SAMPLES = 20
KILLS = 50
ENDLESS = 100_000


def start(path: Path, samples: int = SAMPLES, share: int = 0, shares: int = 1) -> "subprocess.Popen[str]":
    """Start a process that writes every `shares`th sample, each as a part."""
    words = [sys.executable, "-c", WRITER, str(path), *map(str, (samples, share, shares))]
    return subprocess.Popen(words, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True)


def wait_for_parts(path: Path, count: int, writer: "subprocess.Popen[str]") -> None:
    while writer.poll() is None and len(list((path / "manifest").glob("*.json"))) < count:
        time.sleep(0.001)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_writers_leave_only_good_parts_and_are_resumed(tmp_path: Path) -> None:
    path = tmp_path / "m.zarr"
    done = 0
    for attempt in range(2):
        writer = start(path)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        wait_for_parts(path, done + 3 + attempt, writer)
        time.sleep(0.004 * attempt)  # another place within the writing of a part
        os.kill(writer.pid, signal.SIGKILL)
        assert writer.wait() == -signal.SIGKILL
        writer.stdout.close()
        store = TokenStore.open(path)
        report = store.verify()
        assert report.problems == []
        assert report.parts >= done + 3
        assert not (path / "view.json").exists()
        done = report.parts
        assert store.missing_from({f"s{i}": "d" for i in range(SAMPLES)})
    with start(path) as writer:
        writer.communicate()
    assert writer.returncode == 0
    store = TokenStore.open(path)
    assert store.verify().problems == []
    assert store.verify().parts == SAMPLES  # nothing was written twice
    for number, sample in enumerate(store.read([f"s{i}" for i in range(SAMPLES)])):
        np.testing.assert_array_equal(sample.tokens, np.full((50, 64), number))


def test_a_part_published_while_a_cache_is_opened_is_no_damage(
    filled: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries, sample = TokenStore.entries, SampleTokens("new", "d", np.ones((1, 3), np.float32), np.ones(1, bool))

    def published_meanwhile(store: TokenStore) -> Any:
        with monkeypatch.context() as patched:
            patched.setattr(TokenStore, "entries", entries)
            filled.append([sample])
            return store.entries()

    monkeypatch.setattr(TokenStore, "entries", published_meanwhile)
    assert TokenStore.open(filled.path)


def test_a_kill_between_the_steps_of_publishing_leaves_the_part_unpublished(
    filled: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops an append before the folder's rename, and before the manifest entry."""

    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    before = filled.content_digest()
    sample = SampleTokens("new", "d", np.ones((1, 3), np.float32), np.ones(1, bool))
    for step in ("publish_folder", "write_sealed"):
        with monkeypatch.context() as patched:
            patched.setattr(f"cache.writing.{step}", kill)
            with pytest.raises(Killed):
                filled.append([sample])
        opened = TokenStore.open(filled.path)
        assert opened.content_digest() == before
        assert opened.missing_from({"new": "d"}) == ["new"]
        assert opened.verify().problems == []
    assert filled.verify().orphans == 2
    filled.append([sample])
    assert filled.missing_from({"new": "d"}) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_fifty_kills_of_four_writers_lose_and_double_nothing(tmp_path: Path) -> None:
    """Each of four processes writes its share in order; a random one is killed at a random instant and started again.

    The others pause while it starts, or they would write far more than this test can read. At the end the parts hold a
    prefix of each share: a gap were a lost sample, a second copy a doubled one.
    """
    path, shares, chosen = tmp_path / "m.zarr", 4, random.Random(0)
    writers: list[subprocess.Popen[str]] = []
    try:
        (tmp_path / "pause").touch()
        for share in range(shares):
            writers.append(start(path, ENDLESS, share, shares))
            wait_until_ready(writers[share])
        kill_at_random(path, writers, chosen)
        (tmp_path / "stop").touch()
        for writer in writers:
            writer.communicate()
            assert writer.returncode == 0
    finally:
        for writer in writers:
            writer.kill()
    store = TokenStore.open(path)
    copies = Counter(i for entry in store.entries() for i, _ in read_identities(path, entry))
    assert set(copies.values()) == {1}, "a sample was written twice"
    for share in range(shares):
        own = sorted(int(i[1:]) for i in copies if int(i[1:]) % shares == share)
        assert own == list(range(share, share + shares * len(own), shares)), "a sample was lost"
    store.publish_view(dict.fromkeys(copies, "d"))
    assert store.verify().problems == []
    for sample in store.read(list(copies)):
        np.testing.assert_array_equal(sample.tokens, np.full((50, 64), int(sample.sample_id[1:])))


def kill_at_random(path: Path, writers: "list[subprocess.Popen[str]]", chosen: random.Random) -> None:
    published: set[str] = set()
    for _ in range(KILLS):
        path.with_name("pause").unlink()
        time.sleep(chosen.uniform(0, 0.5))
        share = chosen.randrange(len(writers))
        writers[share].kill()
        assert writers[share].communicate() == ("", None)
        assert writers[share].returncode == -signal.SIGKILL
        now = {file.stem for file in (path / "manifest").glob("*.json")}
        assert published <= now, "a published part was lost"
        published = now
        path.with_name("pause").touch()
        writers[share] = start(path, ENDLESS, share, len(writers))
        wait_until_ready(writers[share])


def wait_until_ready(writer: "subprocess.Popen[str]") -> None:
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
