"""`torchrun`: two processes give the loss curve of one, go on after a kill, and end clearly when one is lost."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from cache.store import TokenStore

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
TOLERANCE = 1e-5


@pytest.fixture
def project(extracted: Any, tmp_path: Path) -> Any:
    """Return a copy of the extracted checkout that may be changed."""
    shutil.copytree(extracted.root, tmp_path / "project")
    return type(extracted)(tmp_path / "project")


def train(project: Any, processes: int, *words: str) -> Any:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    start = launcher if processes > 1 else []
    return project.start(sys.executable, *start, "-m", "pipelines", "train", "selfmask", "--seed", "0", *words)


def finish(process: Any) -> str:
    text: str = process.communicate()[0]
    assert process.returncode == 0, text
    return text


def curve(project: Any) -> list[dict[str, float]]:
    found: list[dict[str, float]] = json.loads((project.root / "models/toy/selfmask/seed0/history.json").read_text())
    return found


def largest_difference(one: list[dict[str, float]], two: list[dict[str, float]]) -> float:
    assert [sorted(epoch) for epoch in one] == [sorted(epoch) for epoch in two]
    names = [name for name in one[0] if not name.startswith("target_sd")]  # logged alone: a mean of the ranks'
    return max(abs(a[name] - b[name]) for a, b in zip(one, two, strict=True) for name in names)


@pytest.mark.parametrize("words", [(), ("--set", "train.memory_gb=0.000001")], ids=["resident", "streamed"])
def test_two_processes_have_the_curve_of_one(project: Any, words: tuple[str, ...]) -> None:
    finish(train(project, 1, *words))
    one = curve(project)
    assert one[-1]["loss"] < one[0]["loss"]
    shutil.rmtree(project.root / "models/toy/selfmask")
    text = finish(train(project, 2, *words))
    assert text.count("wrote models") == 1, "only the first rank speaks"
    two = curve(project)
    difference = largest_difference(one, two)
    print(f"largest difference over {len(one)} epochs: {difference:.2e}")  # noqa: T201
    assert difference < TOLERANCE
    state = project.root / "models/toy/selfmask/seed0/state.pt"
    assert state.exists()


def test_a_lost_rank_ends_the_run_and_the_next_run_goes_on(project: Any) -> None:
    finish(train(project, 2, "--set", "train.max_epochs=12", "--set", "train.patience_epochs=12"))
    whole = curve(project)
    shutil.rmtree(project.root / "models/toy/selfmask")
    long = ("--set", "train.max_epochs=12", "--set", "train.patience_epochs=12")
    running = train(project, 2, *long)
    state = project.root / "models/toy/selfmask/seed0/state.pt"
    while not state.exists():
        assert running.poll() is None, running.communicate()[0]
    ranks = psutil.Process(running.pid).children(recursive=True)
    next(rank for rank in ranks if rank.environ().get("RANK") == "1").kill()
    text = running.communicate()[0]
    assert running.returncode != 0
    assert "lost another rank of this run" in text or "SIGKILL" in text, text
    assert not (state.parent / "config.json").exists()
    text = finish(train(project, 2, *long))
    assert "epoch 1/12" not in text, "it began anew"
    assert largest_difference(whole, curve(project)) < TOLERANCE


def test_two_processes_extract_the_tokens_of_one_and_replace_other_tokens_together(project: Any) -> None:
    note = project.root / "data/toy/tokens/note.zarr"
    one = TokenStore.open(note)
    ids, expected = list(one.view()), one.read(list(one.view()))
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "pipelines")
    for precision in ("bfloat16", "float32"):  # each finds tokens of another key
        words = ("extract", "note", "--set", f"extract.precision={precision}")
        text = project.run(sys.executable, *launch, *words)
        assert text.count("wrote") == 1, "only the first rank speaks"
    two = TokenStore.open(note)
    assert sum(entry["samples"] for entry in two.entries()) == len(ids), "a sample was encoded twice"
    for a, b in zip(expected, two.read(ids), strict=True):
        assert np.array_equal(a.tokens, b.tokens)
