"""The files of a suite: results.parquet, comparisons.csv, curves.csv and its picture, per_pattern.csv,
observed_count.csv, table.md and table.tex. All come from what the runs stored, so making them again costs the bootstrap
alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cache.publish import replacing, write_bytes
from extract.metrics import monitor_name
from extract.samples import SamplesTable
from pipelines import figures
from pipelines.benchmark import layout
from pipelines.benchmark.results import (
    OVER_PATTERNS,
    TRAINING,
    Finished,
    compare_entries,
    scenario_of,
    scenario_rows,
    tidy,
)
from pipelines.benchmark.suite import Suite
from train.tables import summarise, write_csv

COST = ((TRAINING, "seconds_wall"), (TRAINING, "seconds_cpu"), (TRAINING, "epochs"), (TRAINING, "parameters"))
RELIABILITY = ((OVER_PATTERNS, "counterintuitive"),)
TITLES = {
    "best_other": "Each entry minus the best other one",
    "reference": "The reference minus each other entry",
}
CURVES = "curves.png"
Cells = dict[str, dict[tuple[str, str], dict[str, float | None]]]


def write_report(
    suite: Suite,
    name: str,
    finished: Sequence[Finished],
    table: SamplesTable,
    unfinished: Sequence[str],
    settings: Sequence[Mapping[str, Any]],
    out: Path,
) -> Cells:
    """Write every file of the suite to `out`; returns the cells of the main table.

    Args:
        suite: what is shown.
        name: of the suite.
        finished: at least one run.
        table: the whole samples table.
        unfinished: names of runs that are left out of all figures.
        settings: what the suite's search tried, a row a point and entry; empty without a search.
        out: folder.
    """
    frame = tidy(name, finished, table.info.label)
    with replacing(out / "results.parquet") as temporary:
        frame.to_parquet(temporary, index=False)
    by_scenario = scenario_rows(finished, table.info.label)
    for stem, rows in by_scenario.items():
        write_csv(out / f"{stem}.csv", rows)
    drawn = draw_curves(suite, by_scenario["curves"], monitor_name(table.info.label).removeprefix("neg_"), out / CURVES)
    compared = compare_entries(suite, finished, table, finished[0].run.params.evaluate)
    write_csv(out / "comparisons.csv", compared)
    cells = summaries(suite, finished, frame)
    columns = [(scenario, metric) for scenario, metrics in suite.columns.items() for metric in metrics]
    page = _page(suite, name, cells, columns, compared, table, unfinished)
    if drawn:
        page += f"\n## Curves over the missing rate\n\n![Each entry against the missing rate]({CURVES})\n"
    if settings:
        write_csv(out / "search.csv", settings)
        page += f"\n## Settings chosen on validation\n\n{layout.search_table(settings)}\n"
    write_bytes(out / "table.md", page.encode())
    write_bytes(out / "table.tex", f"{layout.latex(cells, columns)}\n".encode())
    return cells


def draw_curves(suite: Suite, rows: Sequence[Mapping[str, Any]], metric: str, path: Path) -> bool:
    """Draw `metric` against the missing rate, a line for each entry; False and no picture of a single rate.

    Args:
        suite: names the entries.
        rows: of curves.csv.
        metric: a column of them.
        path: of the PNG; one that was there is replaced, or removed.
    """
    path.unlink(missing_ok=True)
    frame = pd.DataFrame(rows)
    if metric not in frame or frame.dropna(subset=[metric])["missing_rate"].nunique() < 2:
        return False
    entries = [suite.entry(v, m) for v, m in zip(frame["variant"], frame["method"], strict=True)]
    shown = frame.assign(method=entries).dropna(subset=[metric])
    figures.curves(shown, "missing_rate", metric, "missing rate", path)
    return True


def summaries(suite: Suite, finished: Sequence[Finished], frame: pd.DataFrame) -> Cells:
    """Return mean and standard deviation over the seeds of every figure, by entry and (column, metric)."""
    result: Cells = {}
    for entry in suite.entries:
        own = [f for f in finished if f.entry == entry]
        if not own:
            continue
        run = own[0].run
        rows = frame[(frame["variant"] == run.variant) & (frame["method"] == run.method)]
        aliases = {name: scenario_of(name, run.params.dataset.modalities) for name in suite.columns}
        shown = {**{name: name for name in rows["scenario"].unique()}, **aliases}
        cells: dict[tuple[str, str], dict[str, float | None]] = {}
        for column, scenario in shown.items():
            seeds = [
                dict(zip(part["metric"], part["value"], strict=True))
                for _, part in rows[rows["scenario"] == scenario].groupby("seed")
            ]
            cells |= {(column, metric): value for metric, value in summarise(seeds).items()}
        result[entry] = cells
    return result


def _page(
    suite: Suite,
    name: str,
    cells: Cells,
    columns: Sequence[tuple[str, str]],
    compared: Sequence[Mapping[str, Any]],
    table: SamplesTable,
    unfinished: Sequence[str],
) -> str:
    metric = monitor_name(table.info.label).removeprefix("neg_")
    lines = [
        f"# {name}: {table.info.name}, test split",
        "",
        f"Mean ± standard deviation over the training seeds {', '.join(map(str, suite.seeds))}; shares and areas in "
        f"percent. Training samples: {suite.training}.",
    ]
    if unfinished:
        lines += ["", f"Not finished and left out: {', '.join(unfinished)}."]
    patterns = [(s, metric) for s in dict.fromkeys(s for c in cells.values() for s, _ in c) if s.startswith("pattern_")]
    rates = [(s, metric) for s in dict.fromkeys(s for c in cells.values() for s, _ in c) if s.startswith("rate_")]
    sections = {"": columns, "Per pattern": patterns, "Missing rate": rates, "Reliability": RELIABILITY, "Cost": COST}
    for title, shown in sections.items():
        if shown:
            lines += ["", *([f"## {title}", ""] if title else []), layout.markdown(cells, shown)]
    for kind, title in TITLES.items():
        rows = [row for row in compared if row["comparison"] == kind and row["metric"] == metric]
        if rows:
            lines += ["", f"## {title}, paired bootstrap over groups", "", layout.comparison_table(rows)]
    return "\n".join([*lines, ""])
