"""Making and changing token caches: merge, compact, import, export, upload."""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.options import PARAMS, AsJson, Overrides, ParamsFile, progress_lines, show


def merge(
    sources: Annotated[list[Path], typer.Argument(help="<modality>.zarr folders with the same key.")],
    into: Annotated[Path, typer.Option("--into", help="Cache to make, or to add to.")],
    prefer: Annotated[
        Path | None, typer.Option("--prefer", help="Cache whose raw input counts where others hold another one.")
    ] = None,
    view: Annotated[
        bool | None, typer.Option("--view/--no-view", help="Declare the union complete; default: if all of them are.")
    ] = None,
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Unite caches with the same key; parts are shared or copied, never moved."""
    from dataclasses import asdict

    from cache.merge import merge as run
    from cache.store import TokenStore

    with progress_lines("merge"):
        report = run([TokenStore.open(path) for path in sources], into, _part_bytes(params, overrides), prefer, view)
    text = (
        f"wrote {into}: {report.parts_copied} parts copied ({report.samples_copied} samples), "
        f"{report.samples_rewritten} samples rewritten, {report.failures} failures; "
        + ("complete" if report.view else "no view: run `selfmask extract` to complete it")
    )
    show({"into": str(into), **asdict(report)}, as_json, text)


def compact(
    path: Annotated[Path, typer.Argument(help="A <modality>.zarr folder.")],
    drop_dead: Annotated[
        bool, typer.Option("--drop-dead", help="Drop samples and failures that are not in the view, for good.")
    ] = False,
    now: Annotated[
        bool, typer.Option("--now", help="Nobody else uses the cache: remove replaced parts at once, not after a day.")
    ] = False,
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Rewrite small or partly dead parts into big ones, of extract.part_megabytes."""
    from dataclasses import asdict

    from cache.compact import compact as run
    from cache.store import TokenStore
    from cache.summary import readable_bytes

    with progress_lines("compact"):
        report = run(TokenStore.open(path), _part_bytes(params, overrides), drop_dead, now)
    saved = report.bytes_replaced - report.bytes_written
    text = (
        f"wrote {path}: {report.parts_before} parts are now {report.parts_after}, {report.rewritten} samples "
        f"rewritten, {report.dropped} dropped; "
    )
    if report.kept_young:
        text += f"{report.kept_young} dead ones younger than a day kept (`--now` drops them); "
    if report.freed or not report.bytes_replaced:
        text += f"{readable_bytes(saved)} freed"
    else:
        text += f"{readable_bytes(saved)} less, once `selfmask cache verify {path} --clean` finds them a day old"
    show({"path": str(path), "bytes_freed": saved if report.freed else 0, **asdict(report)}, as_json, text)


def import_(
    source: Annotated[Path, typer.Argument(help="File or folder with tokens made elsewhere.")],
    form: Annotated[str, typer.Option("--format", help="hdf5, npy, npz, parquet, pickle or safetensors.")],
    into: Annotated[Path, typer.Option("--into", help="<modality>.zarr folder to make.")],
    encoder: Annotated[str, typer.Option("--encoder", help="What made the tokens; part of the cache's key.")],
    key: Annotated[
        str | None, typer.Option("--key", help="Where the values are: array, column or path, {id} for the sample's id.")
    ] = None,
    ids: Annotated[str, typer.Option("--ids", help="Column or array of the ids.")] = "sample_id",
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Make a cache of tokens from HDF5, NumPy, parquet, pickle or safetensors files; stored as extract.dtype."""
    from dataclasses import asdict

    from cache.importing.importer import import_tokens
    from cache.importing.raw import Layout
    from pipelines.params import load_params

    extract = load_params(params, overrides or []).extract
    report = import_tokens(source, form, Layout(key, ids), into, encoder, extract.dtype, extract.part_bytes)
    failed = "".join(f"; {count} failed: {reason}" for reason, count in report.failed.items())
    text = f"wrote {into}: {report.added} samples added, {report.samples} in all{failed}"
    show({"into": str(into), **asdict(report)}, as_json, text)


def export(
    path: Annotated[Path, typer.Argument(help="A <modality>.zarr folder.")],
    form: Annotated[str, typer.Option("--format", help="hdf5, parquet or safetensors.")],
    out: Annotated[Path, typer.Option("--out", help="File to write.")],
    as_json: AsJson = False,
) -> None:
    """Write a complete cache to one file for other programs."""
    from cache.exporting import export_tokens
    from cache.store import TokenStore
    from cache.summary import readable_bytes

    with progress_lines("export"):
        samples = export_tokens(TokenStore.open(path), form, out)
    size = out.stat().st_size
    show(
        {"out": str(out), "samples": samples, "bytes": size},
        as_json,
        f"wrote {out}: {samples} samples, {readable_bytes(size)}",
    )


def upload(
    path: Annotated[Path, typer.Argument(help="A <modality>.zarr folder.")],
    url: Annotated[str, typer.Argument(help="Where to: s3://bucket/data/icu/tokens/ehr.zarr, or another fsspec URL.")],
    as_json: AsJson = False,
) -> None:
    """Copy a cache to a URL, where readers see only what is whole; only new files travel."""
    from cache.store import TokenStore
    from cache.upload import upload as run

    with progress_lines("upload"):
        sent = run(TokenStore.open(path), url)
    show({"url": url, "files": sent}, as_json, f"wrote {url}: {sent} files sent")


def _part_bytes(params: Path, overrides: list[str] | None) -> float:
    from pipelines.params import load_params

    return load_params(params, overrides or []).extract.part_bytes
