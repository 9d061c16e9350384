"""Raw data to samples tables: simulate, prepare, check."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pipelines.commands.options import PARAMS, AsJson, Overrides, ParamsFile, show

if TYPE_CHECKING:
    from extract.samples import SamplesTable

simulate = typer.Typer(help="Write simulated raw data in the layout of a real data set.", no_args_is_help=True)
prepare = typer.Typer(help="Turn raw data into a samples table.", no_args_is_help=True)
Raw = Annotated[Path, typer.Option("--raw", help="Folder of the raw data.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder to write; default data/<data set>/samples.")]
SOURCES = {"icu": "mimic4"}  # data sets that are prepared by a source of another name


@simulate.callback()
def _simulate_group() -> None:
    """Keep the name of the cohort in the command, however many there are."""


@simulate.command("icu")
def simulate_icu_command(
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")] = Path("data/raw/icu"),
    stays: Annotated[int, typer.Option("--stays", min=20, help="Ordinary ICU stays, beside the odd ones.")] = 400,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    release: Annotated[Literal["1.0", "2.0", "2.2", "3.1"], typer.Option("--release", help="Of MIMIC-IV.")] = "2.2",
    plain: Annotated[bool, typer.Option("--plain", help="Write .csv, not .csv.gz.")] = False,
    other_events: Annotated[
        int, typer.Option("--other-events", min=0, help="Rows of chartevents of other variables, as in a real table.")
    ] = 0,
) -> None:
    """Simulate an ICU cohort in MIMIC-IV's raw layout (tables, notes, chest X-rays)."""
    from pipelines.simulate.icu.cohort import simulate_icu

    simulate_icu(out, stays, seed, release, plain=plain, other_events=other_events)
    typer.echo(f"wrote {out}: {stays} ordinary stays and the odd ones of expected.json")


@prepare.command("mimic4")
def prepare_mimic4_command(
    raw: Raw,
    out: Out = None,
    leaky: Annotated[
        bool, typer.Option("--allow-leaky-text", help="Discharge summaries as text: they state the label.")
    ] = False,
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
) -> None:
    """MIMIC-IV with chest X-rays and radiology notes: in-hospital mortality or 25 phenotypes (docs/mimic4.md)."""
    _prepare("mimic4", raw, out, params, overrides, {"allow_leaky_text": True} if leaky else {})


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
    """Written and spoken digits, audio partly missing in training."""
    _prepare("avmnist", (mnist, fsdd), out, params, overrides)


@prepare.command("table")
def prepare_table_command(raw: Raw, out: Annotated[Path, typer.Option("--out", help="Folder to write.")]) -> None:
    """Your own samples table: check it, and copy it with its files into the project."""
    _report(_copy_table(raw, out), out)


@prepare.command("dataset")
def prepare_dataset_command(params: ParamsFile = PARAMS, overrides: Overrides = None) -> None:
    """Prepare the data set that params.yaml selects, from its `raw` folder."""
    from pipelines.params import load_params

    chosen = load_params(params, overrides or [])
    name, raw = chosen.dataset.name, Path(chosen.dataset.raw)
    table = _run(name, raw, chosen.samples, chosen.source.options)
    table.select(chosen.dataset.modalities)  # a modality that the table lacks fails here, not three stages later
    _report(table, chosen.samples)


def check(samples: Annotated[Path, typer.Argument(help="Folder of a samples table.")], as_json: AsJson = False) -> None:
    """Check a samples table: rules, observed patterns per split, label balance."""
    from extract.samples import SPLITS, SamplesTable

    table = SamplesTable.read(samples)
    summary = {split: _describe_split(table, split) for split in SPLITS}
    show(summary, as_json, "\n".join(_lines(summary)))


def _describe_split(table: "SamplesTable", split: str) -> dict[str, Any]:
    if not (table.frame["split"] == split).any():
        return {"samples": 0}
    observed = table.observed(split)
    patterns = Counter(
        "+".join(name for name, seen in zip(table.modalities, row, strict=True) if seen) for row in observed
    )
    return {
        "samples": len(observed),
        "observed": {name: float(share) for name, share in zip(table.modalities, observed.mean(0), strict=True)},
        "patterns": dict(patterns.most_common()),
        "labels": _balance(table, split),
    }


def _balance(table: "SamplesTable", split: str) -> dict[str, float]:
    """Samples by class, positives by label, or mean and standard deviation; the unlabelled apart."""
    import numpy as np

    label, values = table.info.label, table.labels(split)
    known = values[np.isfinite(values).reshape(len(values), -1).any(-1)]
    unlabelled = {"unlabelled": float(len(values) - len(known))} if len(known) < len(values) else {}
    if label.kind == "multilabel":
        return {name: float((known[:, i] == 1).sum()) for i, name in enumerate(label.names)} | unlabelled
    if label.kind == "regression":
        return {"mean": float(known.mean()), "sd": float(known.std())} | unlabelled
    names = label.classes or ("0", "1")
    return {name: float((known == i).sum()) for i, name in enumerate(names)} | unlabelled


def _lines(summary: dict[str, dict[str, Any]]) -> list[str]:
    lines = []
    for split, facts in summary.items():
        lines.append(f"{split}: {facts['samples']} samples")
        for key in ("observed", "patterns", "labels"):
            values = ", ".join(f"{name} {value:.4g}" for name, value in facts.get(key, {}).items())
            lines += [f"  {key}: {values}"] if values else []
    return lines


def _prepare(
    source: str,
    raw: Any,
    out: Path | None,
    params: Path,
    overrides: list[str] | None,
    switched: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Run one source with the options of its data set, the chosen one or the first that has it, and switches on top."""
    from cache.errors import UserError
    from pipelines.params import load_params

    chosen = load_params(params, overrides or [])
    names = [name for name in (chosen.dataset.name, *chosen.datasets) if SOURCES.get(name, name) == source]
    if not names:
        raise UserError(f"{params} has no section datasets.{source}. Known: {', '.join(chosen.datasets)}.")
    target = out or Path("data") / names[0] / "samples"
    preparer = _preparer(source)
    assert preparer is not None
    _report(preparer(raw, target, {**chosen.datasets[names[0]].options, **switched}), target)


def _run(name: str, raw: Path, out: Path, options: dict[str, Any]) -> "SamplesTable":
    source = SOURCES.get(name, name)
    preparer = _preparer(source)
    if preparer is None:  # a data set of the user's own: its raw folder is a samples table
        return _copy_table(raw, out)
    inputs = (raw / "mnist", raw / "fsdd") if source == "avmnist" else raw
    table: SamplesTable = preparer(inputs, out, options)
    return table


def _preparer(source: str) -> Any:
    if source == "mimic4":
        from extract.sources.mimic4.prepare import prepare_mimic4

        return prepare_mimic4
    if source == "physionet2012":
        from extract.sources.physionet2012 import prepare_physionet2012

        return prepare_physionet2012
    if source == "avmnist":
        from extract.sources.avmnist import prepare_avmnist

        return prepare_avmnist
    return None


def _copy_table(raw: Path, out: Path) -> "SamplesTable":
    """Validate a table, then publish a copy of its folder; a copy, because DVC owns and replaces its outputs."""
    import shutil

    from cache.errors import UserError
    from cache.publish import publish_folder
    from extract.samples import SamplesTable

    table = SamplesTable.read(raw)
    here, there = raw.resolve(), out.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise UserError(f"--raw {raw} and --out {out} must not lie in each other. Keep your table outside {out}.")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(raw, partial)
    publish_folder(partial, out)
    return SamplesTable(out, table.info, table.frame)


def _report(table: "SamplesTable", out: Path) -> None:
    for step in table.info.counts:
        typer.echo(f"  {step.step}: {step.kept} kept, {step.dropped} dropped")
    for whose in ("samples", "published"):  # one's own counts, and those to compare with
        for name, by_split in table.info.source.get(whose, {}).items():
            typer.echo(f"  {whose}, {name}: " + ", ".join(f"{split} {n}" for split, n in by_split.items()))
    typer.echo(f"wrote {out}: {len(table.frame)} samples, modalities {', '.join(table.modalities)}")
