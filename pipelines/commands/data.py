"""Raw data to samples tables: simulate, prepare, check."""

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


@simulate.command("sentiment")
def simulate_sentiment_command(
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")] = Path("data/raw/mosei"),
    layout: Annotated[Literal["csd", "raw", "mmsa"], typer.Option("--layout", help="Raw layout.")] = "raw",
    videos: Annotated[int, typer.Option("--videos", min=5, help="Ordinary videos, beside the edge cases.")] = 40,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
) -> None:
    """Simulate a sentiment corpus in CMU-MOSEI's raw layouts (features, text, sound, film)."""
    from pipelines.simulate.sentiment.corpus import simulate_sentiment

    simulate_sentiment(out, layout, videos, seed)
    typer.echo(f"wrote {out}: layout {layout}, for `selfmask prepare mosei --raw {out}`")


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


@prepare.command("mosei")
def prepare_mosei_command(raw: Raw, out: Out = None, params: ParamsFile = PARAMS, overrides: Overrides = None) -> None:
    """CMU-MOSEI: sentiment or emotions from text, sound, film and published features."""
    _prepare("mosei", raw, out, params, overrides)


@prepare.command("table")
def prepare_table_command(raw: Raw, out: Annotated[Path, typer.Option("--out", help="Folder to write.")]) -> None:
    """Your own table (csv, jsonl, parquet): check it, and copy it with its files into the project."""
    from extract.sources.table import prepare_table

    _report(prepare_table(raw, out), out)


@prepare.command("dataset")
def prepare_dataset_command(params: ParamsFile = PARAMS, overrides: Overrides = None) -> None:
    """Prepare the data set that params.yaml selects, from its `raw` folder."""
    from pipelines.params import load_params

    chosen = load_params(params, overrides or [])
    name, raw = chosen.dataset.name, Path(chosen.dataset.raw)
    table = _run(name, raw, chosen.samples, chosen.source.options)
    table.select(chosen.dataset.modalities)  # a modality that the table lacks fails here, not three stages later
    _report(table, chosen.samples)


def check(
    samples: Annotated[Path, typer.Argument(help="Folder of a samples table.")],
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 1 if a training run should not start.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check a samples table: rules, patterns and labels per split, unreadable values, contents in several splits."""
    from extract.checking import describe, problems
    from extract.samples import SamplesTable

    summary = describe(SamplesTable.read(samples))
    found = problems(summary)
    show(
        {**summary, "problems": found}, as_json, "\n".join([*_lines(summary), *(f"problem: {text}" for text in found)])
    )
    if strict and found:
        raise typer.Exit(1)


def _lines(summary: dict[str, Any]) -> list[str]:
    lines = []
    for split in ("train", "valid", "test"):
        facts = summary[split]
        lines.append(f"{split}: {facts['samples']} samples")
        for key in ("observed", "patterns", "labels"):
            values = ", ".join(f"{name} {value:.4g}" for name, value in facts.get(key, {}).items())
            lines += [f"  {key}: {values}"] if values else []
    for modality, reasons in summary["unreadable"].items():
        lines += [f"unreadable {modality}: {reason}: {_places(facts)}" for reason, facts in reasons.items()]
    return lines + [f"in several splits: {name}: {_places(facts)}" for name, facts in summary["across_splits"].items()]


def _places(facts: dict[str, Any]) -> str:
    first, more = ", ".join(map(str, facts["rows"])), facts["count"] > len(facts["rows"])
    return f"{facts['count']} (rows {first}{', ...' if more else ''})"


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
        from extract.sources.table import prepare_table

        return prepare_table(raw, out)
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
    if source == "mosei":
        from extract.sources.mosei.prepare import prepare_mosei

        return prepare_mosei
    return None


def _report(table: "SamplesTable", out: Path) -> None:
    for step in table.info.counts:
        typer.echo(f"  {step.step}: {step.kept} kept, {step.dropped} dropped")
    for whose in ("samples", "published", "measurements"):  # one's own, those to compare with, rows of long files
        for name, by in table.info.source.get(whose, {}).items():
            typer.echo(f"  {whose}, {name}: " + ", ".join(f"{key} {n}" for key, n in by.items()))
    typer.echo(f"wrote {out}: {len(table.frame)} samples, modalities {', '.join(table.modalities)}")
