"""The stages of the pipeline: fit, extract, train, finetune, evaluate, report; and predict."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.commands.options import PARAMS, AsJson, Overrides, ParamsFile, Seed, show

if TYPE_CHECKING:
    from extract.samples import SamplesTable
    from pipelines.params import Params

Modality = Annotated[str, typer.Argument(help="Modality of the samples table.")]
ENCODER_SEED = 0  # encoders are shared by all training seeds


def fit(modality: Modality, params: ParamsFile = PARAMS, overrides: Overrides = None) -> None:
    """Fit one encoder as a unimodal model."""
    from extract.fit import fit_encoder
    from extract.metrics import monitor_name

    chosen, table = _load(params, overrides)
    out = chosen.encoder_folder(modality)
    metrics = fit_encoder(table, modality, chosen.encoder(modality), chosen.fit, out, ENCODER_SEED)
    name = monitor_name(table.info.label)
    typer.echo(
        f"wrote {out}: {name} valid {metrics['valid'][name]:.4f}, test {metrics['test'].get(name, float('nan')):.4f}"
    )


def extract(modality: Modality, params: ParamsFile = PARAMS, overrides: Overrides = None) -> None:
    """Run a fitted encoder over every sample and cache its tokens."""
    from extract.extraction import extract_modality

    chosen, table = _load(params, overrides)
    out = chosen.tokens / f"{modality}.zarr"
    result = extract_modality(table, modality, chosen.encoder_folder(modality), chosen.extract, out, replace=True)
    typer.echo(
        f"wrote {out}: {result['samples']} samples, {result['encoded']} of them new, {result['unreadable']} unreadable"
    )


def train(
    method: Annotated[str, typer.Argument(help="selfmask, modality_dropout, zero_fill or random_fill.")],
    seed: Seed = 0,
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
) -> None:
    """Stage two: train a method on cached tokens."""
    from typing import get_args

    from cache.errors import UserError
    from train.config import MethodName
    from train.stage import load_banks, token_keys, train_method

    if method not in get_args(MethodName):
        raise UserError(f"Method '{method}' is unknown. Known: {', '.join(get_args(MethodName))}.")
    chosen, table = _load(params, overrides)
    names = chosen.dataset.modalities
    out = chosen.models / method / f"seed{seed}"
    config = train_method(
        method,  # type: ignore[arg-type]
        seed,
        load_banks(table, chosen.tokens, modalities=names, splits=("train", "valid")),
        table.info.label,
        chosen.model,
        chosen.selfmask,
        chosen.train,
        out,
        token_keys(table, chosen.tokens, names),
        sample_ids={split: table.ids(split) for split in ("train", "valid")},
        encoders={name: chosen.encoder_folder(name) for name in names},
        modalities=table.info.modalities,
    )
    typer.echo(f"wrote {out}: validation monitor {config['validation']['monitor']:.4f}")


def finetune(seed: Seed = 0, params: ParamsFile = PARAMS, overrides: Overrides = None) -> None:
    """Joint stage: encoders and SelfMask together on masked inputs."""
    from train.joint import finetune as run

    chosen, table = _load(params, overrides)
    folders = {name: chosen.encoder_folder(name) for name in chosen.dataset.modalities}
    out = chosen.models / "joint" / f"seed{seed}"
    checkpoint = chosen.models / "selfmask" / f"seed{seed}"
    config = run(table, folders, checkpoint, chosen.joint, chosen.train, seed, out)
    typer.echo(f"wrote {out}: validation monitor {config['validation']['monitor']:.4f}")


def evaluate(params: ParamsFile = PARAMS, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Score every trained checkpoint on the test split, on the same stored missingness."""
    from train.evaluate import evaluate_checkpoints
    from train.stage import load_banks, token_keys

    chosen, table = _load(params, overrides)
    names = chosen.dataset.modalities
    bank = load_banks(table, chosen.tokens, modalities=names, splits=("test",))["test"]
    keys = token_keys(table, chosen.tokens, names)
    metrics = evaluate_checkpoints(checkpoints(chosen), bank, table, chosen.evaluate, chosen.metrics, keys)
    show(metrics, as_json, f"wrote {chosen.metrics}/metrics.json: {', '.join(metrics)}")


def report(
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
    with_text: Annotated[
        bool, typer.Option("--with-text", help="Show words of real texts in the mask picture.")
    ] = False,
) -> None:
    """Write the report: a table of metrics and the pictures."""
    from pipelines.report import write_report

    chosen, table = _load(params, overrides)
    typer.echo(write_report(chosen, table, with_text=with_text))


def predict(
    model: Annotated[Path, typer.Option("--model", help="Checkpoint folder.")],
    samples: Annotated[Path, typer.Option("--samples", help="Samples table folder, csv or parquet file.")],
    out: Annotated[Path, typer.Option("--out", help="csv file to write.")] = Path("predictions.csv"),
    as_json: AsJson = False,
) -> None:
    """Predict new samples with any subset of modalities; labels are not needed."""
    from cache.publish import write_bytes
    from train.predict import predict as run

    frame = run(model, samples)
    write_bytes(out, frame.to_csv(index=False).encode())
    unusable = int((frame["observed"] == "").sum())
    summary = {"out": str(out), "samples": len(frame), "without_prediction": unusable}
    show(summary, as_json, f"wrote {out}: {len(frame)} samples, {unusable} of them without a prediction (see `reason`)")


def checkpoints(chosen: "Params") -> dict[str, list[Path]]:
    """Return the finished checkpoints of every method and of the joint stage, by seed."""
    found = {
        name: [folder for seed in chosen.seeds if (folder := chosen.models / name / f"seed{seed}").is_dir()]
        for name in (*chosen.train.methods, "joint")
    }
    return {name: folders for name, folders in found.items() if folders}


def _load(params: Path, overrides: list[str] | None) -> "tuple[Params, SamplesTable]":
    from extract.samples import SamplesTable
    from pipelines.params import load_params

    chosen = load_params(params, overrides or [])
    return chosen, SamplesTable.read(chosen.samples).select(chosen.dataset.modalities)
