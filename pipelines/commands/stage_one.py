"""Stage one: fit an encoder per modality, and run it over every sample."""

import os
from typing import Annotated

import typer

from pipelines.commands.options import PARAMS, AsJson, Overrides, ParamsFile, load_inputs, show

Modality = Annotated[str, typer.Argument(help="Modality of the samples table.")]
ENCODER_SEED = 0  # encoders and tokens are shared by all training seeds


def fit(modality: Modality, params: ParamsFile = PARAMS, overrides: Overrides = None) -> None:
    """Fit the encoder of one modality as a unimodal model."""
    from extract.fit import fit_encoder
    from extract.metrics import monitor_name

    chosen, table = load_inputs(params, overrides)
    out = chosen.encoder_folder(modality)
    metrics = fit_encoder(table, modality, chosen.encoder(modality), chosen.fit, out, ENCODER_SEED)
    name = monitor_name(table.info.label)
    scores = {split: metrics[split].get(name, float("nan")) for split in ("valid", "test")}
    typer.echo(f"wrote {out}: {name} {scores['valid']:.4f} (valid), {scores['test']:.4f} (test)")


def extract(
    modality: Modality,
    engine: Annotated[str, typer.Option("--engine", help="local: this process. ray: a cluster's actors.")] = "local",
    address: Annotated[str | None, typer.Option("--address", help="Running Ray cluster; default: start one.")] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Ray actors; default: one a GPU or CPU.")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Also try samples again that could not be read before.")
    ] = False,
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Run a fitted encoder over every sample and cache its tokens."""
    from extract.extraction import choose_engine, extract_modality

    chosen, table = load_inputs(params, overrides)
    chosen.encoder(modality)  # an unknown name fails here, with the known ones
    out, folder = chosen.tokens / f"{modality}.zarr", chosen.encoder_folder(modality)
    where = choose_engine(engine, address, workers)
    result = extract_modality(
        table, modality, folder, chosen.extract, out, replace=True, retry_failed=retry_failed, engine=where
    )
    counts = f"{result['samples']} samples, {result['encoded']} of them new, {result['unreadable']} unreadable"
    reasons = [f"  {count} x {reason}" for reason, count in result["reasons"].items()]
    if int(os.environ.get("RANK", "0")):  # of the processes that torchrun starts the first one speaks
        return
    show({"out": str(out), **result}, as_json, "\n".join([f"wrote {out}: {counts}", *reasons]))
