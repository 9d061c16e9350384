"""Parse commands without running them; run the command line; tiny checkouts of this project for whole pipelines."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import typer
import yaml

from extract.samples import DatasetInfo, ModalitySpec, SamplesTable
from extract.task import LabelSpec

ROOT = Path(__file__).parents[2]
RAW_SAMPLES = 200


@pytest.fixture(scope="session")
def parse() -> Callable[[Sequence[str]], Any]:
    """Return a function that parses the words of a command, as the command line would, without running it."""
    from pipelines.cli import app

    top: Any = typer.main.get_command(app)

    def run(words: Sequence[str]) -> Any:
        command, rest = top, list(words)
        while hasattr(command, "commands"):
            assert rest, f"{words}: a command is missing after {command.name}"
            assert rest[0] in command.commands, f"{words}: unknown command {rest[0]}"
            command, rest = command.commands[rest[0]], rest[1:]
        return command.make_context(command.name, rest)

    return run


@pytest.fixture
def run_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Return a function that runs `selfmask` in this process: (exit code, standard output, standard error)."""
    from pipelines.cli import main

    def run(*words: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["selfmask", *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        code = caught.value.code
        return (code if isinstance(code, int) else 0 if code is None else 1), out, err

    return run


class Project:
    """A copy of this project at a tiny size, with a data set of its own; what a member of a team has checked out."""

    ENVIRONMENT: ClassVar = {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "DVC_NO_ANALYTICS": "1",
        "GIT_AUTHOR_NAME": "member",
        "GIT_AUTHOR_EMAIL": "member@example.org",
        "GIT_COMMITTER_NAME": "member",
        "GIT_COMMITTER_EMAIL": "member@example.org",
    }

    def __init__(self, root: Path) -> None:
        self.root = root
        self.extra: dict[str, str] = {}

    def start(self, *words: str) -> "subprocess.Popen[str]":
        """Start a command in the checkout; `python` is the one of these tests."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PYTHONPATH": "", **self.ENVIRONMENT, "PATH": path, **self.extra}
        return subprocess.Popen(
            words, cwd=self.root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def run(self, *words: str, code: int = 0) -> str:
        """Run a command to its end and return what it printed."""
        process = self.start(*words)
        text = process.communicate()[0]
        assert process.returncode == code, f"{words}: {process.returncode}\n{text}"
        return text

    def dvc(self, *words: str, code: int = 0) -> str:
        """Run DVC."""
        return self.run(sys.executable, "-m", "dvc", *words, code=code)

    def selfmask(self, *words: str, code: int = 0) -> str:
        """Run the command line."""
        return self.run(sys.executable, "-m", "pipelines", *words, code=code)

    def commit(self) -> None:
        """Commit what git tracks: dvc.lock, code, parameters."""
        self.run("git", "add", "-A")
        self.run("git", "commit", "-qm", "state")

    def cache(self, modality: str) -> Path:
        """Return a token cache."""
        return self.root / "data" / "toy" / "tokens" / f"{modality}.zarr"

    def write_raw(self, samples: int) -> None:
        """Write the raw data: a samples table of hourly series and notes; a larger one contains a smaller one."""
        words = ["clear", "opacity", "left", "lung", "mild", "oedema", "normal", "heart", "unchanged", "large"]
        rows = []
        for number in range(samples):
            draw = np.random.default_rng(number)
            name = f"s{number:04d}"
            label = float(number % 2)
            series = draw.normal(label, 1, (8, 2)).astype(np.float32)
            row = {"sample_id": name, "group_id": name, "label": label}
            row["split"] = ("train", "train", "train", "valid", "valid", "test")[number // 2 % 6]
            row |= {"vitals_array": series.ravel().tolist() if number % 5 else None, "vitals_shape": [8, 2]}
            text = " ".join(draw.choice(words, int(draw.integers(3, 30))))
            rows.append(row | {"note_text": text if number % 7 or number % 5 != 1 else None})
        info = DatasetInfo(
            name="toy",
            label=LabelSpec(kind="binary", names=("death",)),
            modalities=(
                ModalitySpec(name="vitals", kind="timeseries", column="vitals_array", channels=("hr", "sbp")),
                ModalitySpec(name="note", kind="text", column="note_text"),
            ),
        )
        none = pd.DataFrame({"source_id": [], "step": [], "reason": []})
        SamplesTable.write(self.root / "data" / "raw" / "toy", info, pd.DataFrame(rows), none)


def tiny_params() -> dict[str, Any]:
    """Return params.yaml for the toy data set."""
    params: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["dataset"] = {"name": "toy", "raw": "data/raw/toy", "modalities": ["vitals", "note"]}
    sections = ("fit", "extract", "model", "selfmask", "compared", "train", "joint", "evaluate")
    params["datasets"]["toy"] = {
        "options": {},
        "encoders": {"vitals": "series_tiny", "note": "text_tiny"},
        "settings": {name: {} for name in sections},
    }
    params["seeds"] = [0]
    params["fit"] |= {"max_epochs": 1, "frozen_epochs": 0}
    params["extract"] |= {"sorted_batches": 2, "part_minutes": 1e-9, "batch_size": 8}
    params["model"] |= {"width": 16, "heads": 2, "predictor_layers": 1, "dropout": 0.0}
    params["train"] |= {"methods": ["selfmask"], "max_epochs": 3, "patience_epochs": 3, "batch_size": 32}
    return params


def checkout(root: Path, params: dict[str, Any]) -> Project:
    """Return a copy of this project with the given parameters, as DVC initialises it."""
    project = Project(root)
    project.root.mkdir()
    for name in ("cache", "extract", "train", "pipelines"):
        shutil.copytree(ROOT / name, project.root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, project.root / name)
    (project.root / "params.yaml").write_text(yaml.safe_dump(params))
    project.run("git", "init", "-q")
    project.dvc("init", "-q")
    return project


@pytest.fixture(scope="session")
def make_checkout() -> Callable[[Path, dict[str, Any]], Project]:
    """Return `checkout`, for tests with parameters of their own."""
    return checkout


@pytest.fixture(scope="session")
def sentiment_project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a checkout that is set to CMU-MOSEI, with a simulated corpus as raw data."""
    params: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    modalities = list(params["datasets"]["mosei"]["options"]["modalities"])
    params["dataset"] = {"name": "mosei", "raw": "data/raw/mosei", "modalities": modalities}
    params["seeds"] = [0]
    params["fit"] |= {"max_epochs": 2}
    params["train"] |= {"methods": ["selfmask", "zero_fill"], "max_epochs": 2}
    params["joint"] |= {"max_epochs": 1}
    params["evaluate"] |= {"bootstrap_draws": 50}
    project = checkout(tmp_path_factory.mktemp("sentiment") / "project", params)
    project.selfmask("simulate", "sentiment", "--layout", "raw", "--videos", "20")
    return project


@pytest.fixture(scope="session")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a committed checkout whose tokens are extracted and pushed to a remote with `verify: true` beside it."""
    base = tmp_path_factory.mktemp("team")
    project = checkout(base / "first", tiny_params())
    project.write_raw(RAW_SAMPLES)
    project.dvc("remote", "add", "-d", "team", str(base / "remote"))
    project.dvc("remote", "modify", "team", "verify", "true")
    project.dvc("repro", "-q", "extract")
    project.commit()
    project.dvc("push", "-q")
    return project
