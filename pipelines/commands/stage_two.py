"""Stage two and after: train on cached tokens, finetune with the encoders, evaluate, report, predict."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.commands.options import PARAMS, AsJson, Overrides, ParamsFile, Seed, load_inputs, show

if TYPE_CHECKING:
    from pipelines.params import Params

JOINT = "joint"


def train(
    method: Annotated[str, typer.Argument(help="One of the methods that `train.methods` in params.yaml may list.")],
    seed: Seed = 0,
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
) -> None:
    """Stage two: train one method on cached tokens with one seed."""
    from typing import get_args

    from cache.errors import UserError
    from extract.ranks import join_ranks
    from pipelines.training import current_stores, train_run
    from train.config import MethodName
    from train.stage import load_banks

    if method not in get_args(MethodName):
        raise UserError(f"Method '{method}' is unknown. Known: {', '.join(get_args(MethodName))}.")
    chosen, table = load_inputs(params, overrides)
    out = chosen.models / method / f"seed{seed}"
    stores = current_stores(chosen, table)
    with join_ranks() as ranks:
        banks = load_banks(table, stores, ("train", "valid"), chosen.train.memory_gb)
        config = train_run(chosen, method, seed, table, stores, banks, out, ranks)  # type: ignore[arg-type]
    if ranks.first:
        typer.echo(f"wrote {out}: validation monitor {config['validation']['monitor']:.4f}")


def finetune(seed: Seed = 0, params: ParamsFile = PARAMS, overrides: Overrides = None) -> None:
    """Joint stage: encoders and SelfMask together on masked inputs."""
    from train.joint import finetune as run

    chosen, table = load_inputs(params, overrides)
    folders = {name: chosen.encoder_folder(name) for name in chosen.dataset.modalities}
    out = chosen.models / JOINT / f"seed{seed}"
    checkpoint = chosen.models / "selfmask" / f"seed{seed}"
    config = run(table, folders, checkpoint, chosen.joint, chosen.train, seed, out)
    typer.echo(f"wrote {out}: validation monitor {config['validation']['monitor']:.4f}")


def evaluate(params: ParamsFile = PARAMS, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Score every trained checkpoint on the test split, on the same stored missingness."""
    from train.evaluate import evaluate_checkpoints
    from train.stage import load_banks, open_stores, token_keys

    chosen, table = load_inputs(params, overrides)
    folders, absent = checkpoints(chosen)
    if absent:
        typer.echo(f"not trained, left out: {', '.join(map(str, absent))}", err=True)
    stores = open_stores(table, chosen.tokens, chosen.dataset.modalities)
    bank = load_banks(table, stores, ("test",), chosen.train.memory_gb)["test"]
    metrics = evaluate_checkpoints(folders, bank, table, chosen.evaluate, chosen.metrics, token_keys(stores))
    show(metrics, as_json, f"wrote {chosen.metrics}/metrics.json: {', '.join(metrics)}")


def report(
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
    with_text: Annotated[
        bool, typer.Option("--with-text", help="Show the words and faces of real data in the mask picture.")
    ] = False,
) -> None:
    """Write the report: tables of metrics and the pictures."""
    from pipelines.report import write_report

    chosen, table = load_inputs(params, overrides)
    pictures = write_report(chosen, table, with_text=with_text)
    typer.echo(f"wrote {chosen.reports}/report.md with {', '.join(pictures) or 'no picture'}")


def predict(
    model: Annotated[list[Path], typer.Option("--model", help="Checkpoint folder; of several, the mean prediction.")],
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


def checkpoints(chosen: "Params") -> tuple[dict[str, list[Path]], list[Path]]:
    """Return the finished checkpoints of every method and of the joint stage by seed, and the absent ones."""
    found: dict[str, list[Path]] = {}
    absent: list[Path] = []
    for name in (*chosen.train.methods, JOINT):
        for seed in chosen.seeds:
            folder = chosen.models / name / f"seed{seed}"
            if (folder / "config.json").is_file():
                found.setdefault(name, []).append(folder)
            else:
                absent.append(folder)
    return found, absent
