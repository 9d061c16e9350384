"""A disk that fills while parts are written: one clear line, nothing half, and the work goes on once there is space."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from cache.errors import UserError
from cache.key import CacheKey
from cache.store import SampleTokens, TokenStore

SAMPLES = 40
WANTED = {f"s{n}": "d" for n in range(SAMPLES)}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of four megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("needs root, to mount a small disk")
    done = subprocess.run([mount, "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount a small disk: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def sample(name: str) -> SampleTokens:
    tokens = np.random.default_rng(int(name[1:])).normal(size=(50, 64)).astype(np.float32)
    return SampleTokens(name, "d", tokens, np.ones(50, bool))


def write_missing(store: TokenStore) -> None:
    for start in store.missing_from(WANTED):
        store.append([sample(start)])
    store.record_failures({"f": ("d", "torn")})
    store.publish_view(WANTED)


@pytest.mark.slow
@pytest.mark.parametrize("spare", range(0, 64_000, 8192))
def test_a_full_disk_stops_with_a_clear_line_and_the_work_goes_on(
    small_disk: Path, make_key: Callable[..., CacheKey], spare: int
) -> None:
    """`spare` moves the instant: in the chunk, in a document, in the manifest entry, in the view."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * (2_600_000 + spare))
    store = TokenStore.create(small_disk / "m.zarr", make_key(), 64, "float32")
    with pytest.raises(UserError, match="Free disk space and run the same command again"):
        write_missing(store)
    opened = TokenStore.open(store.path)
    report = opened.verify()
    assert (report.problems, report.orphans) == ([], 0)
    left = len(opened.missing_from(WANTED))
    assert 0 < left < SAMPLES
    ballast.unlink()
    write_missing(opened)
    report = opened.verify()
    assert (report.problems, report.parts, report.samples) == ([], SAMPLES, SAMPLES)
    for got in opened.read(list(WANTED)):
        np.testing.assert_array_equal(got.tokens, sample(got.sample_id).tokens)


@pytest.mark.parametrize("step", ["write_chunk", "publish_folder", "write_sealed"])
def test_whatever_the_step_nothing_is_left_on_the_full_disk(
    store: TokenStore, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(f"cache.writing.{step}", full)
        with pytest.raises(UserError, match="Free disk space"):
            store.append([SampleTokens("n", "d", np.ones((1, 3), np.float32), np.ones(1, bool))])
    assert [path.name for path in (store.path / "parts").iterdir()] == ["zarr.json"]
    monkeypatch.setattr("cache.publish.flush", full)
    for write in (lambda: store.record_failures({"f": ("d", "torn")}), lambda: store.publish_view({})):
        with pytest.raises(UserError, match="Free disk space"):
            write()
    assert store.verify().orphans == 0
