"""Looking at token caches: info, verify, diff, plot."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.commands.options import AsJson, progress_lines, show

if TYPE_CHECKING:
    from cache.location import Location
    from extract.samples import SamplesTable

app = typer.Typer(help="Look after token caches.", no_args_is_help=True)
CachePlace = Annotated[str, typer.Argument(help="A <modality>.zarr folder, or its URL (s3://...).", metavar="CACHE")]
CachePath = Annotated[Path, typer.Argument(help="A <modality>.zarr folder.")]
SamplesPath = Annotated[
    Path | None, typer.Option("--samples", help="Folder of the samples table; default ../samples beside the cache.")
]


@app.command()
def info(path: CachePlace, samples: SamplesPath = None, as_json: AsJson = False) -> None:
    """Show what a cache holds and what its tokens depend on."""
    from cache.store import TokenStore
    from cache.summary import summarise, summary_lines

    store = TokenStore.open(path)
    table = samples_beside(store.location, samples)
    facts = summarise(store, _expected(table, store.location.stem) if table else None)
    show(facts, as_json, "\n".join(summary_lines(facts)))


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

    with progress_lines("verify"):
        report = TokenStore.open(path, check=False).verify(clean, repair)
    counts = f"{report.parts} parts, {report.samples} samples, {report.orphans} unpublished parts"
    show(asdict(report), as_json, "\n".join([*report.repaired, *report.problems, counts]))
    if report.problems:
        raise typer.Exit(1)


@app.command()
def diff(
    first: Annotated[Path, typer.Argument(help="A <modality>.zarr folder.")],
    second: Annotated[Path, typer.Argument(help="Another.")],
    as_json: AsJson = False,
) -> None:
    """Compare two caches: key, samples, tokens; exits with 1 when they differ."""
    from cache.diff import compare, difference_lines
    from cache.store import TokenStore

    with progress_lines("diff"):
        found = compare(TokenStore.open(first), TokenStore.open(second))
    show(found.document(), as_json, "\n".join(difference_lines(found, first, second)))
    if not found.same:
        raise typer.Exit(1)


@app.command()
def plot(
    path: CachePath,
    out: Annotated[Path, typer.Option("--out", help="PNG file to write.")],
    samples: SamplesPath = None,
    as_json: AsJson = False,
) -> None:
    """Draw norms, lengths, and the samples' mean tokens by label."""
    from cache.store import TokenStore
    from pipelines.cache_plot import plot_cache

    count = plot_cache(TokenStore.open(path), samples_beside(path, samples), out)
    show({"out": str(out), "samples": count}, as_json, f"wrote {out}: {count} samples")


def samples_beside(path: "Location", samples: Path | None) -> "SamplesTable | None":
    """Return the given samples table, or data/<set>/samples for data/<set>/tokens/<modality>.zarr if it is there."""
    from extract.samples import SamplesTable

    if samples is None:
        if not isinstance(path, Path):
            return None
        samples = path.resolve().parent.parent / "samples"
        if not (samples / "dataset.json").is_file():
            return None
    return SamplesTable.read(samples)


def _expected(table: "SamplesTable", modality: str) -> dict[str, list[str | None]]:
    """Return the ids of every split, None where the modality has no value."""
    from extract.samples import SPLITS

    column = table.modality(modality).column
    found: dict[str, list[str | None]] = {}
    for split in SPLITS:
        rows = table.frame[table.frame["split"] == split]
        there = rows[column].notna()
        found[split] = [str(i) if seen else None for i, seen in zip(rows["sample_id"], there, strict=True)]
    return found
