"""CMU-MOSEI from raw media to metrics by `dvc repro`, on the simulated corpus; a second run does nothing."""

import json
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
METHODS = {"selfmask", "zero_fill", "joint"}


def test_from_raw_media_to_metrics(sentiment_project: Any) -> None:
    project = sentiment_project
    project.dvc("repro")
    metrics = json.loads((project.root / "metrics/mosei/metrics.json").read_text())
    assert set(metrics) == METHODS
    assert all(0 <= metrics[name]["natural"]["auroc"]["mean"] <= 1 for name in METHODS)
    page = (project.root / "reports/mosei/report.md").read_text()
    for modality in ("text", "audio", "video", "covarep", "facet"):
        assert modality in page
    expected = json.loads((project.root / "data/raw/mosei/expected.json").read_text())
    counts = json.loads((project.root / "data/mosei/samples/dataset.json").read_text())["counts"]
    assert counts[-1]["kept"] == expected["samples"] - expected["zeros"]
    assert "Data and pipelines are up to date" in project.dvc("repro")


def test_a_changed_option_of_the_preparation_runs_it_again(sentiment_project: Any) -> None:
    project = sentiment_project
    status = json.loads(project.dvc("status", "--json"))
    text = (project.root / "params.yaml").read_text()
    assert "binary: exclude_zero" in text
    (project.root / "params.yaml").write_text(text.replace("binary: exclude_zero", "binary: nonneg"))
    changed = json.loads(project.dvc("status", "--json"))
    assert "prepare" not in status
    assert "prepare" in changed
