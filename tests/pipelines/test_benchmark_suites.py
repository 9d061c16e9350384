"""The shipped suites fit params.yaml; jobs fit the memory."""

from pathlib import Path

import pytest

from pipelines.benchmark.suite import plan, read_suite
from pipelines.benchmark.workers import fitting_jobs
from train.config import MethodName

ROOT = Path(__file__).parents[2]
OF_ONE_DATASET = {
    "physionet2012": ["dataset.name=physionet2012", "dataset.modalities=[vitals, labs, gas, cardiac]"],
    "avmnist": ["dataset.name=avmnist", "dataset.modalities=[image, audio]"],
    "mosi": ["dataset.name=mosi", "dataset.modalities=[transcript, text, audio, video]"],
}


@pytest.mark.parametrize("path", sorted((ROOT / "suites").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_suites_fit_params(path: Path) -> None:
    suite = read_suite(path)
    changes = next((c for name, c in OF_ONE_DATASET.items() if path.stem.startswith(name)), [])
    runs = plan(suite, ROOT / "params.yaml", changes, Path("out"))
    assert len(runs) == len(suite.entries) * len(suite.seeds)
    assert len({run.folder for run in runs}) == len(runs)
    settings = {run.variant: run.params.model_dump_json() for run in runs}
    assert len(set(settings.values())) == len(settings), "two variants are the same"


def test_the_main_suite_has_every_method() -> None:
    assert set(read_suite(ROOT / "suites/main.yaml").methods) == set(MethodName.__args__)  # type: ignore[attr-defined]


def test_jobs_fit_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.benchmark.workers._available_bytes", lambda: 10 * 10**9)
    assert [fitting_jobs(jobs, size) for jobs, size in ((2, 0), (8, 10**9), (64, 0), (4, 10**11))] == [2, 5, 10, 1]
