"""Looking after token caches: info and verify."""

from typing import Annotated

import typer

from pipelines.commands.options import AsJson, show

app = typer.Typer(help="Look after token caches.", no_args_is_help=True)
CachePlace = Annotated[str, typer.Argument(help="A <modality>.zarr folder, or its URL (s3://...).", metavar="CACHE")]


@app.command()
def info(path: CachePlace, as_json: AsJson = False) -> None:
    """Show what a cache holds and what its tokens depend on."""
    from cache.store import TokenStore

    facts = TokenStore.open(path).info()
    lines = [f"{name}: {value}" for name, value in facts.items() if name != "key"]
    lines += [f"key.{name}: {str(value)[:100]}" for name, value in facts["key"].items()]
    show(facts, as_json, "\n".join(lines))


@app.command()
def verify(
    path: CachePlace,
    clean: Annotated[bool, typer.Option("--clean", help="Remove unpublished parts older than a day.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Restore what can be, move what is damaged to CACHE/quarantine.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check every checksum of a cache; exits with 1 when something is wrong."""
    from dataclasses import asdict

    from cache.store import TokenStore

    report = TokenStore.open(path, check=False).verify(clean, repair)
    counts = f"{report.parts} parts, {report.samples} samples, {report.orphans} unpublished parts"
    show(asdict(report), as_json, "\n".join([*report.repaired, *report.problems, counts]))
    if report.problems:
        raise typer.Exit(1)
