"""Options that every stage command shares, and how a result is printed."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

ParamsFile = Annotated[Path, typer.Option("--params", help="Parameter file.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Change a value: section.key=value. Repeatable.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, for programs.")]
Seed = Annotated[int, typer.Option("--seed", help="Training seed.")]
PARAMS = Path("params.yaml")


def show(result: Any, as_json: bool, text: str) -> None:
    """Print `result` as JSON, or `text`."""
    typer.echo(json.dumps(result, indent=2, sort_keys=True) if as_json else text)
