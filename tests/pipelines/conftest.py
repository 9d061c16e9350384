"""Parse commands without running them; run the command line inside a temporary project."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer

ROOT = Path(__file__).parents[2]


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
