"""The worked examples under docs/examples: their scripts and commands run as they stand, in an empty folder."""

import re
import runpy
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from extract.samples import SamplesTable

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "docs/examples").glob("*.md"))


def block(example: Path, language: str) -> str:
    found = re.findall(rf"^```{language}\n(.*?)^```", example.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert len(found) == 1, f"{example.name}: {len(found)} blocks of {language}"
    return str(found[0])


def set_up(example: Path, folder: Path) -> list[str]:
    """Write the script and the parameters as the example says; return its commands."""
    (folder / "make.py").write_text(block(example, "python"))
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for key, value in yaml.safe_load(block(example, "yaml")).items():
        params[key] = value if key == "dataset" else {**params[key], **value}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    return block(example, "bash").splitlines()


def run(command: str, run_line: Any) -> str:
    program, *words = command.split()
    if program == "python":
        runpy.run_path(*words)
        return ""
    code, out, err = run_line(*words)
    assert code == 0, f"{command}: {err}"
    return str(out)


def test_there_are_three() -> None:
    assert [path.stem for path in EXAMPLES] == ["audio-text", "images-text-tabular", "sensors"]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_its_folder_passes_the_check(
    example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_line: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    commands = set_up(example, tmp_path)
    assert " check " in commands[2]
    printed = "".join(run(command, run_line) for command in commands[:3])
    for counts in re.findall(r"`(measurements, .*?)`", example.read_text()):
        assert counts in printed
    (samples,) = (tmp_path / "data").glob("*/samples")
    table = SamplesTable.read(samples)
    assert table.modalities == tuple(yaml.safe_load((tmp_path / "params.yaml").read_text())["dataset"]["modalities"])
    assert len({tuple(row) for row in table.observed("train")}) > 1  # several patterns


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_command_runs(example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_line: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for command in set_up(example, tmp_path):
        run(command, run_line)
    assert len(pd.read_csv(tmp_path / "predictions.csv")) >= 3
