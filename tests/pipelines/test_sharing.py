"""Sharing by a DVC remote and two checkouts: one extracts, the other trains without raw data and without an encoder.

Also what travels when samples are added, a shared cache of links, and `dvc repro` after a kill.
"""

import json
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from cache.store import TokenStore

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
MODALITIES = ("vitals", "note")
NO_ENCODERS = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("timm", "transformers") or name.startswith("extract.encoders.t"):
            raise ImportError(f"{name}: this checkout must not load an encoder")
sys.meta_path.insert(0, Refuse())
"""


@pytest.fixture
def first(extracted: Any, tmp_path: Path) -> Any:
    """Return a copy of the checkout that extracted, with a copy of its remote, that may both be changed."""
    shutil.copytree(extracted.root.parent / "remote", tmp_path / "remote")
    shutil.copytree(extracted.root, tmp_path / "first")
    project = type(extracted)(tmp_path / "first")
    project.dvc("remote", "modify", "team", "url", str(tmp_path / "remote"))
    project.commit()
    return project


def clone(project: Any, root: Path) -> Any:
    project.run("git", "clone", "-q", str(project.root), str(root))
    return type(project)(root)


def objects(root: Path) -> set[Path]:
    return {path for path in root.rglob("*") if path.is_file()}


def add_samples(project: Any, total: int) -> None:
    """Enlarge the raw data, keep the fitted encoders, extract what is new."""
    project.write_raw(total)
    project.dvc("repro", "-q", "-s", "prepare")
    project.dvc("commit", "-q", "-f", *(f"fit@{name}" for name in MODALITIES))
    project.dvc("repro", "-q", *(f"extract@{name}" for name in MODALITIES))
    project.commit()


def test_the_second_trains_without_raw_data_and_without_an_encoder(first: Any, tmp_path: Path) -> None:
    second = clone(first, tmp_path / "second")
    second.dvc("pull", "-q", "data/toy/samples", "data/toy/tokens/vitals.zarr", "data/toy/tokens/note.zarr")
    assert not (second.root / "data" / "raw").exists()
    assert not (second.root / "models").exists()
    for name in MODALITIES:
        second.selfmask("cache", "verify", f"data/toy/tokens/{name}.zarr")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(NO_ENCODERS)
    second.extra = {"PYTHONPATH": str(tmp_path / "site")}
    refused = second.selfmask("extract", "note", code=2)
    assert "no fitted encoder" in refused
    second.dvc("repro", "-s", "train@selfmask-0")
    config = json.loads((second.root / "models/toy/selfmask/seed0/config.json").read_text())
    assert set(config["tokens"]) == set(MODALITIES)
    second.extra = {}
    first.dvc("repro", "-q", "-s", "train@selfmask-0")
    other = json.loads((first.root / "models/toy/selfmask/seed0/config.json").read_text())
    assert other["weights_sha256"] == config["weights_sha256"], "the same tokens must give the same model"


def test_added_samples_travel_alone(first: Any, tmp_path: Path) -> None:
    before = {name: objects(first.cache(name)) for name in MODALITIES}
    content = {path: path.read_bytes() for name in MODALITIES for path in before[name]}
    remote = objects(tmp_path / "remote")
    add_samples(first, 210)
    kept = [path for path in content if path.name != "view.json"]
    assert all(path.read_bytes() == content[path] for path in kept), "a published file was changed"
    first.dvc("push", "-q")
    sent = objects(tmp_path / "remote") - remote
    # Only the view is new beside the new parts; DVC adds one listing per folder (samples and two caches).
    new = {path for name in MODALITIES for path in objects(first.cache(name)) - before[name]}
    assert {path.relative_to(first.root).parts[4] for path in new} == {"parts", "manifest"}
    assert (
        len(list((first.cache("note") / "manifest").iterdir()))
        == len({p for p in before["note"] if "manifest" in p.parts}) + 1
    )
    samples = 3  # samples.parquet, dataset.json or dropped.parquet where they changed
    assert len(sent) <= len(new) + len(MODALITIES) + samples + 3
    again = clone(first, tmp_path / "again")
    again.dvc("pull", "-q", "data/toy/tokens/note.zarr")
    assert (
        TokenStore.open(again.cache("note")).content_digest() == TokenStore.open(first.cache("note")).content_digest()
    )


@pytest.mark.parametrize("link", ["hardlink", "symlink"])
def test_a_shared_cache_of_links_reads_and_grows_without_touching_it(first: Any, tmp_path: Path, link: str) -> None:
    shared = clone(first, tmp_path / "shared")
    shared.dvc("config", "cache.dir", str(tmp_path / "common"))
    shared.dvc("config", "cache.type", link)
    shared.dvc("pull", "-q", "-r", "team", "data/toy/samples", *(f"extract@{name}" for name in MODALITIES))
    shared.dvc("pull", "-q", *(f"fit@{name}" for name in MODALITIES))
    cache = shared.cache("note")
    entry = TokenStore.open(cache).entries()[0]
    chunk = next(p for p in (cache / "parts" / entry["part"] / "tokens").rglob("*") if p.is_file() and "c" in p.parts)
    assert chunk.is_symlink() if link == "symlink" else chunk.stat().st_nlink > 1
    assert not chunk.stat().st_mode & 0o222, "links must be read-only"
    shared.selfmask("train", "selfmask")
    common = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in objects(tmp_path / "common")}
    shared.write_raw(210)
    shared.dvc("repro", "-q", "-s", "prepare")
    out = shared.selfmask("extract", "note")  # directly into the linked folder
    assert "10 of them new" in out or "9 of them new" in out or "8 of them new" in out, out
    shared.selfmask("cache", "verify", "data/toy/tokens/note.zarr")
    now = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in common}
    assert now == common, "the shared cache was changed"


def kill_extraction(project: Any, parts: int) -> None:
    """Start `dvc repro`, and kill -9 the extraction of notes when it has published some parts."""
    manifest = project.cache("note") / "manifest"
    before = set(manifest.glob("*.json"))  # of an older encoder, say
    running = project.start(sys.executable, "-m", "dvc", "repro", "extract@note")
    while len(set(manifest.glob("*.json")) - before) < parts:
        assert running.poll() is None, running.communicate()[0]
        time.sleep(0.001)
    for child in psutil.Process(running.pid).children(recursive=True):
        if child.cmdline()[1:] == ["-m", "pipelines", "extract", "note"]:
            child.send_signal(signal.SIGKILL)
    running.communicate()
    assert running.returncode != 0


def test_repro_goes_on_after_a_kill_and_never_trains_on_stale_tokens(first: Any) -> None:
    whole = TokenStore.open(first.cache("note"))
    wanted = len(whole.view())
    shutil.rmtree(first.cache("note"))
    kill_extraction(first, 2)
    assert "not complete" in first.selfmask("train", "selfmask", code=2)
    survivors = {path.stem for path in (first.cache("note") / "manifest").glob("*.json")}
    assert 2 <= len(survivors) < wanted / 16, "killed too late for this test"
    first.dvc("repro", "extract@note")
    store = TokenStore.open(first.cache("note"))
    assert survivors <= {entry["part"] for entry in store.entries()}
    assert sum(entry["samples"] for entry in store.entries()) == wanted
    assert store.verify().problems == []
    first.dvc("repro", "-s", "-q", "train@selfmask-0")
    before = json.loads((first.root / "models/toy/selfmask/seed0/config.json").read_text())

    refit = ["-s", "-q", "fit@note"]
    params = yaml.safe_load((first.root / "params.yaml").read_text())
    params["fit"]["learning_rate"] *= 10
    (first.root / "params.yaml").write_text(yaml.safe_dump(params))
    first.dvc("repro", *refit)
    assert "another encoder" in first.selfmask("train", "selfmask", code=2), "trained on the tokens of the old encoder"
    kill_extraction(first, 1)
    assert first.selfmask("train", "selfmask", code=2)
    first.dvc("repro", "train@selfmask-0")
    after = json.loads((first.root / "models/toy/selfmask/seed0/config.json").read_text())
    old, new = before["tokens"]["note"]["key"], after["tokens"]["note"]["key"]
    assert old["weights_sha256"] != new["weights_sha256"]
    assert len(TokenStore.open(first.cache("note")).view()) == wanted
