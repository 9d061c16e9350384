"""What the commands share: options, reading parameters and the samples table, printing a result."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from extract.samples import SamplesTable
    from pipelines.params import Params

ParamsFile = Annotated[Path, typer.Option("--params", help="Parameter file.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Change a value: section.key=value. Repeatable.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, for programs.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Training seed.")]
PARAMS = Path("params.yaml")
LINE_S = 5.0


def load_inputs(params: Path, overrides: list[str] | None) -> "tuple[Params, SamplesTable]":
    """Return the parameters and the samples table, reduced to the chosen modalities.

    Raises:
        UserError: either is absent or invalid.
    """
    from extract.samples import SamplesTable
    from pipelines.params import load_params

    chosen = load_params(params, overrides or [])
    return chosen, SamplesTable.read(chosen.samples).select(chosen.dataset.modalities)


@contextmanager
def progress_lines(command: str) -> Iterator[None]:
    """Print on standard error, every few seconds, how far the cache's work inside has come, and what is left."""
    from cache.progress import listening

    started = last = time.monotonic()

    def tell(what: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= LINE_S:
            last = now
            left = (total - done) * (now - started) / done
            typer.echo(f"{command}: {done}/{total} {what}, about {left:.0f} s left", err=True)

    with listening(tell):
        yield


def show(result: Any, as_json: bool, text: str) -> None:
    """Print `result` as JSON, or `text`."""
    typer.echo(json.dumps(result, indent=2, sort_keys=True) if as_json else text)
