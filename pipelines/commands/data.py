"""Raw data to samples tables: simulate, prepare, check."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.commands.options import PARAMS, AsJson, Overrides, ParamsFile, show

simulate = typer.Typer(help="Write simulated raw data in the layout of a real data set.", no_args_is_help=True)
prepare = typer.Typer(help="Turn raw data into a samples table.", no_args_is_help=True)
Raw = Annotated[Path, typer.Option("--raw", help="Folder of the raw data.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder to write; default data/<data set>/samples.")]


@simulate.command("icu")
def simulate_icu_command(
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")] = Path("data/raw/icu"),
    stays: Annotated[int, typer.Option("--stays", min=20, help="Eligible ICU stays.")] = 400,
    seed: Annotated[int, typer.Option("--seed")] = 0,
) -> None:
    """Simulate an ICU cohort in MIMIC-IV v2.2's raw layout (tables, notes, chest X-rays)."""
    from pipelines.simulate.icu import simulate_icu

    simulate_icu(out, stays, seed)
    typer.echo(f"wrote {out}")


@prepare.command("mimic4")
def prepare_mimic4_command(raw: Raw, out: Out = None, params: ParamsFile = PARAMS, overrides: Overrides = None) -> None:
    """MIMIC-IV with chest X-rays and radiology notes: in-hospital mortality."""
    _prepare("icu", raw, out, params, overrides)


@prepare.command("physionet2012")
def prepare_physionet_command(
    raw: Raw, out: Out = None, params: ParamsFile = PARAMS, overrides: Overrides = None
) -> None:
    """PhysioNet/CinC 2012: four naturally missing blocks of hourly series, in-hospital death."""
    _prepare("physionet2012", raw, out, params, overrides)


@prepare.command("avmnist")
def prepare_avmnist_command(
    mnist: Annotated[Path, typer.Option("--mnist", help="Folder of the MNIST idx files.")],
    fsdd: Annotated[Path, typer.Option("--fsdd", help="Folder of the spoken digits' wav files.")],
    out: Out = None,
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
) -> None:
    """avMNIST: written and spoken digits, audio partly missing in training."""
    _prepare("avmnist", (mnist, fsdd), out, params, overrides)


@prepare.command("dataset")
def prepare_dataset_command(params: ParamsFile = PARAMS, overrides: Overrides = None) -> None:
    """Prepare the data set that params.yaml selects, from its `raw` folder."""
    from pipelines.params import load_params

    chosen = load_params(params, overrides or [])
    raw = Path(chosen.dataset.raw)
    name = chosen.dataset.name
    _prepare(name, (raw / "mnist", raw / "fsdd") if name == "avmnist" else raw, None, params, overrides)


def check(samples: Annotated[Path, typer.Argument(help="Folder of a samples table.")], as_json: AsJson = False) -> None:
    """Check a samples table: rules, observed patterns per split, label balance."""
    from extract.samples import SPLITS, SamplesTable

    table = SamplesTable.read(samples)
    names, summary = table.modalities, {}
    for split in SPLITS:
        if not (table.frame["split"] == split).any():
            summary[split] = {"samples": 0}
            continue
        observed = table.observed(split)
        patterns: dict[str, int] = {}
        for row in observed:
            pattern = "+".join(name for name, seen in zip(names, row, strict=True) if seen)
            patterns[pattern] = patterns.get(pattern, 0) + 1
        labels = table.labels(split).reshape(len(observed), -1)
        summary[split] = {
            "samples": len(observed),
            "observed": {name: float(share) for name, share in zip(names, observed.mean(0), strict=True)},
            "patterns": dict(sorted(patterns.items(), key=lambda item: -item[1])),
            "label_mean": [float(value) for value in labels.mean(0)],
        }
    show(summary, as_json, _describe(summary))


def _describe(summary: dict[str, Any]) -> str:
    lines = []
    for split, facts in summary.items():
        lines.append(f"{split}: {facts['samples']} samples")
        for key in ("observed", "patterns"):
            values = ", ".join(f"{name} {value:.3g}" for name, value in facts.get(key, {}).items())
            lines += [f"  {key}: {values}"] if values else []
        lines += [f"  label mean: {facts['label_mean']}"] if "label_mean" in facts else []
    return "\n".join(lines)


def _prepare(name: str, raw: Any, out: Path | None, params: Path, overrides: list[str] | None) -> None:
    from pipelines.params import load_params

    chosen = load_params(params, overrides or [])
    if name not in chosen.datasets:
        from cache.errors import UserError

        raise UserError(f"{params} has no section datasets.{name}. Known: {', '.join(chosen.datasets)}.")
    target = out or Path("data") / name / "samples"
    table = _preparer(name)(raw, target, chosen.datasets[name].options)
    typer.echo(f"wrote {target}: {len(table.frame)} samples, modalities {', '.join(table.modalities)}")


def _preparer(name: str) -> Any:
    if name == "icu":
        from extract.sources.mimic4 import prepare_mimic4

        return prepare_mimic4
    if name == "physionet2012":
        from extract.sources.physionet2012 import prepare_physionet2012

        return prepare_physionet2012
    from extract.sources.avmnist import prepare_avmnist

    return prepare_avmnist
