"""The four packages have generic names: they must come from this checkout, and nothing else may be installed."""

import importlib
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("cache", "extract", "train", "pipelines")


@pytest.mark.parametrize("name", PACKAGES)
def test_package_comes_from_this_checkout(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__file__ is not None
    assert Path(module.__file__).resolve() == ROOT / name / "__init__.py"


def test_the_build_lists_the_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == list(PACKAGES)
    assert "Private :: Do Not Upload" in project["project"]["classifiers"]
    assert project["project"]["scripts"] == {"selfmask": "pipelines.cli:main"}


def test_the_wheel_holds_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("trove_classifiers", reason="a dependency of hatchling, the build back end")
    builder = pytest.importorskip("hatchling.builders.wheel", reason="hatchling, the build back end, is not installed")
    wheel = next(iter(builder.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])))
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == set(PACKAGES)
    others = {name for name in names if ".dist-info/" not in name and not name.endswith(".py")}
    assert others == {"extract/sources/mimic4/phenotypes.csv"}


def test_tests_are_no_package() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))
