"""The README is true: its tree lists every module, its commands parse, its files exist, its examples load."""

import itertools
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from extract.samples import DatasetInfo
from pipelines.params import load_params

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
TREE = README.split("## Files")[1].split("```text")[1].split("```")[0]
PACKAGES = ("cache", "extract", "train", "pipelines")


def blocks(language: str, text: str = README) -> list[str]:
    """Return the code blocks of a language, also those indented in a list."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", text, flags=re.DOTALL | re.MULTILINE)
    return ["\n".join(line.removeprefix(indent) for line in body.splitlines()) for indent, body in found]


def listed_files() -> set[Path]:
    """Return the paths that the tree lists, by its indentation."""
    folders: list[str] = []
    paths = set()
    for line in TREE.strip().splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders = folders[:depth]
        if name.endswith("/"):
            folders.append(name)
        else:
            paths.add(Path(*folders, name))
    return paths


def selfmask_commands() -> list[str]:
    """Return every `selfmask` command of the README's blocks and of its tables and sentences."""
    lines = [line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    inline = re.findall(r"`(selfmask [^`<]*--[^`<]*)`", README)
    return [line for line in (*lines, *inline) if line.startswith("selfmask ")]


def test_tree_lists_every_module_and_nothing_else() -> None:
    modules = {path.relative_to(ROOT) for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
    modules = {path for path in modules if path.name != "__init__.py"}
    listed = {path for path in listed_files() if path.parts[0] in PACKAGES}
    assert modules - listed == set(), "modules that the README's tree lacks"
    assert listed - modules == set(), "files in the README's tree that do not exist"


def test_every_line_of_the_tree_says_something_about_an_existing_file() -> None:
    assert all(len(line.split()) > 1 for line in TREE.strip().splitlines())
    assert [path for path in listed_files() if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("command", selfmask_commands())
def test_command_parses(command: str, parse: Any) -> None:
    parse(shlex.split(command)[1:])


def test_the_quick_start_s_targets_exist() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    used = {word for block in blocks("bash") for word in re.findall(r"^make (\w+)", block, flags=re.MULTILINE)}
    assert used
    assert used <= set(targets)


@pytest.mark.parametrize(
    "command", [c for block in blocks("bash") for c in block.splitlines() if c.startswith("dvc exp")]
)
def test_an_experiment_s_changes_load(command: str) -> None:
    words = shlex.split(command)
    changes = [word for previous, word in itertools.pairwise(words) if previous == "-S"]
    assert changes
    load_params(ROOT / "params.yaml", changes)


def test_links_exist() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_own_data_example_is_valid(tmp_path: Path) -> None:
    info = DatasetInfo.model_validate(json.loads(blocks("json")[0]))
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    example = yaml.safe_load(blocks("yaml")[0])
    raw["dataset"] = example["dataset"]
    raw["datasets"].update(example["datasets"])
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(raw))
    params = load_params(path)
    assert list(params.dataset.modalities) == [modality.name for modality in info.modalities]


def test_licence_is_the_declared_one() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
