"""`selfmask benchmark SUITE`: every run of a suite file, and its tables."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.commands.options import PARAMS, AsJson, Overrides, ParamsFile, show

if TYPE_CHECKING:
    from extract.samples import SamplesTable
    from pipelines.benchmark.run import Stored
    from pipelines.benchmark.suite import BenchmarkRun


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
    from pipelines.benchmark.suite import plan, read_suite
    from pipelines.params import load_params

    chosen, changes = read_suite(suite), overrides or []
    own = load_params(params, changes)
    folder = out or Path("benchmarks-out") / own.dataset.name / suite.stem
    runs = plan(chosen, params, changes, folder)
    require_columns(chosen, runs)
    table = SamplesTable.read(own.samples)
    failed = {} if only_tables else _run(runs, jobs)
    done = _finished(runs, table)
    if not done:
        _report_failures(failed)
        raise UserError(f"No run of {suite} is finished. Leave out --only-tables, or mend what is said above.")
    names = {run.name for run, _ in done}
    unfinished = [run.name for run in runs if run.name not in names]
    cells = write_report(chosen, suite.stem, gather(chosen, done, table), table, unfinished, folder)
    result: dict[str, Any] = {"suite": suite.stem, "out": str(folder), "finished": sorted(names), "failed": failed}
    result["table"] = {e: {f"{s}/{m}": v for (s, m), v in own.items()} for e, own in cells.items()}
    show(result, as_json, f"wrote {folder}/table.md: {len(done)} of {len(runs)} runs finished")
    _report_failures(failed)
    if unfinished and not only_tables:
        raise typer.Exit(1)


def _run(runs: "list[BenchmarkRun]", jobs: int) -> dict[str, str]:
    from pipelines.benchmark.run import execute, memory_bytes
    from pipelines.benchmark.workers import fitting_jobs, run_all

    fitting = fitting_jobs(jobs, max(memory_bytes(run) for run in {r.variant: r for r in runs}.values()))
    if fitting < jobs:
        typer.echo(f"--jobs {jobs}: the memory that is free holds {fitting}; going on with that.", err=True)
    ended: list[str] = []

    def report(run: "BenchmarkRun", reason: str | None) -> None:
        ended.append(run.name)
        typer.echo(f"[{len(ended)}/{len(runs)}] {run.name}: {'failed' if reason else 'done'}", err=True)

    return run_all(runs, fitting, execute, report)


def _finished(runs: "list[BenchmarkRun]", table: "SamplesTable") -> "list[tuple[BenchmarkRun, Stored]]":
    from pipelines.benchmark.run import finished, training_table
    from train.stage import open_stores, token_keys

    result = []
    for variant in dict.fromkeys(run.variant for run in runs):
        own = [run for run in runs if run.variant == variant]
        names = own[0].params.dataset.modalities
        selected = training_table(table.select(names), own[0].training)
        keys = token_keys(open_stores(selected, own[0].params.tokens, names))
        found = [(run, finished(run, keys, selected)) for run in own]
        result += [(run, stored) for run, stored in found if stored is not None]
    return result


def _report_failures(failed: dict[str, str]) -> None:
    for name, reason in failed.items():
        typer.echo(f"failed: {name}: {reason}", err=True)
