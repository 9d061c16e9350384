"""The shipped suites fit params.yaml; jobs fit the memory; workers end with the process that started them."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
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


ENDLESS = """
import os, sys, time
from collections import namedtuple
from pathlib import Path
from pipelines.benchmark.workers import run_all

Run = namedtuple("Run", "name")

def endless(run):
    (Path(sys.argv[1]) / "pid").write_text(str(os.getpid()))
    time.sleep(600)

if __name__ == "__main__":
    run_all([Run("a")], 1, endless, print)
"""


def test_a_worker_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    script, noted = tmp_path / "endless.py", tmp_path / "pid"
    script.write_text(ENDLESS)
    started = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    while not (noted.exists() and noted.read_text()):
        assert started.poll() is None
        time.sleep(0.05)
    worker = psutil.Process(int(noted.read_text()))
    started.kill()
    started.wait()
    psutil.wait_procs([worker], timeout=60)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
