"""`selfmask benchmark SUITE`: every run of a suite file, and its tables."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.commands.options import PARAMS, AsJson, Overrides, ParamsFile, show

if TYPE_CHECKING:
    from collections.abc import Iterator

    from extract.samples import SamplesTable
    from pipelines.benchmark.run import Stored
    from pipelines.benchmark.suite import BenchmarkRun, Suite


def benchmark(
    suite: Annotated[Path, typer.Argument(help="Suite file; those of this project are in suites/.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to write; default: benchmarks-out/<data set>/<suite>.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Processes, one thread each; fewer if memory is.")] = 1,
    only_tables: Annotated[
        bool, typer.Option("--only-tables", help="Train nothing: tables of the runs that are finished.")
    ] = False,
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Train and compare methods x seeds x variants on the same tokens; goes on where it was interrupted."""
    from cache.errors import UserError
    from extract.samples import SamplesTable
    from pipelines.benchmark.report import write_report
    from pipelines.benchmark.results import gather, require_columns
    from pipelines.benchmark.suite import expected_runs, read_suite
    from pipelines.params import load_params

    chosen, changes = read_suite(suite), overrides or []
    own = load_params(params, changes)
    folder = out or Path("benchmarks-out") / own.dataset.name / suite.stem
    require_columns(chosen, params, changes)
    table = SamplesTable.read(own.samples)
    runs, settings, failed = _planned(chosen, params, changes, folder, table, 0 if only_tables else jobs)
    failed |= {} if only_tables else _run(runs, jobs)
    done = _finished(runs, table)
    if not done:
        _report_failures(failed)
        raise UserError(f"No run of {suite} is finished. Leave out --only-tables, or mend what is said above.")
    names = {run.name for run, _ in done}
    expected = expected_runs(chosen)
    unfinished = [name for name in expected if name not in names]
    cells = write_report(chosen, suite.stem, gather(chosen, done, table), table, unfinished, settings, folder)
    result: dict[str, Any] = {"suite": suite.stem, "out": str(folder), "finished": sorted(names), "failed": failed}
    result["table"] = {e: {f"{s}/{m}": v for (s, m), v in own.items()} for e, own in cells.items()}
    show(result, as_json, f"wrote {folder}/table.md: {len(done)} of {len(expected)} runs finished")
    _report_failures(failed)
    if unfinished and not only_tables:
        raise typer.Exit(1)


def _planned(
    suite: "Suite", params: Path, changes: list[str], folder: Path, table: "SamplesTable", jobs: int
) -> "tuple[list[BenchmarkRun], list[dict[str, Any]], dict[str, str]]":
    """Return the suite's runs, after its search if it has one: also what was searched, and what failed in it.

    With no jobs nothing is trained. A method whose search is not complete has no runs.
    """
    from pipelines.benchmark.search import choose, plan_chosen, plan_search, settings_rows
    from pipelines.benchmark.suite import plan

    if suite.search is None:
        return plan(suite, params, changes, folder), [], {}
    tries = plan_search(suite, suite.search, params, changes, folder)
    failed = _run(tries, jobs) if jobs else {}
    choices = choose(_trained(tries, table), len(suite.search.points))
    return plan_chosen(suite, choices, folder), settings_rows(suite.search, choices), failed


def _run(runs: "list[BenchmarkRun]", jobs: int) -> dict[str, str]:
    from pipelines.benchmark.run import execute, memory_bytes
    from pipelines.benchmark.workers import fitting_jobs, run_all

    if not runs:
        return {}
    fitting = fitting_jobs(jobs, max(memory_bytes(run) for run in {r.variant: r for r in runs}.values()))
    if fitting < jobs:
        typer.echo(f"--jobs {jobs}: the memory that is free holds {fitting}; going on with that.", err=True)
    ended: list[str] = []

    def report(run: "BenchmarkRun", reason: str | None) -> None:
        ended.append(run.name)
        typer.echo(f"[{len(ended)}/{len(runs)}] {run.name}: {'failed' if reason else 'done'}", err=True)

    return run_all(runs, fitting, execute, report)


def _finished(runs: "list[BenchmarkRun]", table: "SamplesTable") -> "list[tuple[BenchmarkRun, Stored]]":
    from pipelines.benchmark.run import finished

    found = [(run, finished(run, *tokens)) for run, tokens in _with_tokens(runs, table)]
    return [(run, stored) for run, stored in found if stored is not None]


def _trained(runs: "list[BenchmarkRun]", table: "SamplesTable") -> "list[BenchmarkRun]":
    from pipelines.benchmark.run import is_trained

    return [run for run, tokens in _with_tokens(runs, table) if is_trained(run, *tokens)]


def _with_tokens(
    runs: "list[BenchmarkRun]", table: "SamplesTable"
) -> "Iterator[tuple[BenchmarkRun, tuple[dict[str, Any], SamplesTable]]]":
    """Pair each run with the keys of its tokens and its samples; caches are opened once a variant."""
    from pipelines.benchmark.run import training_table
    from train.stage import open_stores, token_keys

    for variant in dict.fromkeys(run.variant for run in runs):
        own = [run for run in runs if run.variant == variant]
        names = own[0].params.dataset.modalities
        selected = training_table(table.select(names), own[0].training)
        tokens = token_keys(open_stores(selected, own[0].params.tokens, names)), selected
        yield from ((run, tokens) for run in own)


def _report_failures(failed: dict[str, str]) -> None:
    for name, reason in failed.items():
        typer.echo(f"failed: {name}: {reason}", err=True)
