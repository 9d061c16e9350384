"""The command line: light to start, one line for a mistake or an interruption, and its exit codes."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cache.errors import UserError

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "timm", "zarr", "pandas", "numpy", "matplotlib", "polars", "sklearn", "dvc")


def python(code: str, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; import pipelines.cli; print(' '.join(m for m in sys.argv[1:] if m in sys.modules))"
    assert python(code, *HEAVY).stdout.split() == []


def test_parameters_import_no_torch() -> None:
    code = "import sys; import pipelines.params; print('torch' in sys.modules)"
    assert python(code).stdout.strip() == "False"


def test_module_and_command_are_the_same_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    for name in (
        "simulate",
        "prepare",
        "fit",
        "extract",
        "train",
        "finetune",
        "evaluate",
        "report",
        "benchmark",
        "predict",
        "cache",
    ):
        assert name in done.stdout


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["fit", "ehr", "--params", "no/such.yaml"], ["no/such.yaml", "--params"]),
        (["fit", "ehr", "--set", "fit.no_key=1"], ["no_key", "max_epochs"]),
        (["train", "nothing"], ["'nothing'", "zero_fill"]),
        (["check", "no/such/table"], ["no/such/table", "selfmask prepare"]),
        (["cache", "info", "no/such.zarr"], ["no/such.zarr", "selfmask extract"]),
        (["predict", "--model", "no/model", "--samples", "no/table"], ["no/model", "selfmask train"]),
        (["simulate", "icu", "--stays", "3"], ["20"]),
        (["prepare", "table", "--raw", "no/table", "--out", "x"], ["no/table"]),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words: list[str], parts: list[str], run_line: Any) -> None:
    code, out, err = run_line(*words)
    assert code == 2
    assert out == ""
    assert [part for part in parts if part not in err] == []
    if "--stays" not in words:  # Typer's own checks of an option draw a box
        assert err.startswith("error: ")
        assert err.count("\n") == 1


def test_an_error_of_many_lines_becomes_one(run_line: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(root: Path) -> None:
        raise UserError("one\ntwo\n  three")

    monkeypatch.setattr("extract.samples.SamplesTable.read", fail)
    assert run_line("check", "anything") == (2, "", "error: one two three\n")


def test_an_interruption_is_one_line_and_exit_code_130(run_line: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(root: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("extract.samples.SamplesTable.read", interrupt)
    code, out, err = run_line("check", "anything")
    assert (code, out) == (130, "")
    assert err.startswith("interrupted")
    assert err.count("\n") == 1


def test_a_real_interrupt_ends_the_process_cleanly(tmp_path: Path) -> None:
    code = (
        "import sys, time, extract.samples as s\n"
        "def wait(root):\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
        "s.SamplesTable.read = wait\n"
        "sys.argv = ['selfmask', 'check', 'x']\n"
        "from pipelines.cli import main\n"
        "main()\n"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert err.startswith("interrupted")
