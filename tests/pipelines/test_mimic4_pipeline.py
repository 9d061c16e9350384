"""MIMIC-IV from its raw layout to metrics by `dvc repro`, on the simulated cohort: both tasks."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.simulate.icu.cohort import simulate_icu

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
ROOT = Path(__file__).parents[2]
TASKS: dict[str, dict[str, Any]] = {
    "mortality": {"task": "mortality", "hours": 48},
    "phenotyping": {"task": "phenotyping", "hours": None},
}


@pytest.mark.parametrize("task", TASKS)
def test_from_raw_tables_to_metrics(make_checkout: Any, tmp_path: Path, task: str) -> None:
    params: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["datasets"]["icu"]["options"] |= TASKS[task]
    params["datasets"]["icu"]["settings"]["train"] = {"max_epochs": 2}
    params["seeds"] = [0]
    params["fit"] |= {"max_epochs": 2}
    params["train"] |= {"methods": ["selfmask", "modality_dropout"]}
    params["evaluate"] |= {"bootstrap_draws": 50, "missing_rates": [0.0, 0.5]}
    project = make_checkout(tmp_path / "project", params)
    simulate_icu(project.root / "data/raw/icu", 200, 0)
    project.dvc("repro")
    metrics = json.loads((project.root / "metrics/icu/metrics.json").read_text())
    assert set(metrics) == {"selfmask", "modality_dropout", "joint"}
    assert all(0 <= metrics[name]["protocol"]["auroc"]["mean"] <= 1 for name in metrics)
    info = json.loads((project.root / "data/icu/samples/dataset.json").read_text())
    assert len(info["label"]["names"]) == (25 if task == "phenotyping" else 1)
    assert "Data and pipelines are up to date" in project.dvc("repro")
