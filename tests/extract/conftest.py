"""A simulated MIMIC-IV folder, made once for all tests that read one."""

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def icu_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cohort of every odd stay and some ordinary ones; read only."""
    from pipelines.simulate.icu.cohort import simulate_icu

    folder = tmp_path_factory.mktemp("icu") / "raw"
    simulate_icu(folder, 24, seed=0)
    return folder


@pytest.fixture(scope="session")
def icu_options() -> dict[str, Any]:
    """Return the options of the shipped params.yaml."""
    options: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())["datasets"]["icu"]["options"]
    return options
