"""Making and changing token caches: merge, compact, import, export."""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.options import AsJson, show


def merge(
    sources: Annotated[list[Path], typer.Argument(help="<modality>.zarr folders with the same key.")],
    into: Annotated[Path, typer.Option("--into", help="Cache to make, or to add to.")],
    prefer: Annotated[
        Path | None, typer.Option("--prefer", help="Cache whose raw input counts where others hold another one.")
    ] = None,
    view: Annotated[
        bool | None, typer.Option("--view/--no-view", help="Declare the union complete; default: if all of them are.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Unite caches with the same key; parts are shared or copied, never moved."""
    from dataclasses import asdict

    from cache.merge import merge as run
    from cache.store import TokenStore

    report = run([TokenStore.open(path) for path in sources], into, prefer, view)
    text = (
        f"wrote {into}: {report.parts_copied} parts copied ({report.samples_copied} samples), "
        f"{report.samples_rewritten} samples rewritten, {report.failures} failures; "
        + ("complete" if report.view else "no view: run `selfmask extract` to complete it")
    )
    show({"into": str(into), **asdict(report)}, as_json, text)
