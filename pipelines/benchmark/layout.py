"""The main table and its companions as Markdown and LaTeX, in the layout of the paper's tables: entries as rows,
scenario x metric as columns, mean ± standard deviation over the seeds, the best mean in bold.

Shares and areas are in percent with one digit, as in the paper; likelihoods, errors and correlations are not.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipelines.benchmark.results import LOWER_IS_BETTER

PERCENT = frozenset({"auroc", "auprc", "accuracy", "f1_weighted", "ece", "binary_accuracy", "counterintuitive"})
WHOLE = frozenset({"seconds_wall", "seconds_cpu", "parameters", "epochs"})
NAMES = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "accuracy": "ACC",
    "f1_weighted": "F1-w",
    "nll": "NLL",
    "ece": "ECE",
    "mae": "MAE",
    "counterintuitive": "counter-intuitive",
    "seconds_wall": "seconds",
    "seconds_cpu": "CPU seconds",
}
Summary = Mapping[str, float | None]
Cells = Mapping[str, Mapping[tuple[str, str], Summary]]
"""Entry to (scenario, metric) to {mean, sd}."""
Columns = Sequence[tuple[str, str]]


def markdown(cells: Cells, columns: Columns) -> str:
    """Return a Markdown table."""
    heads = [f"{scenario} {_title(metric, '↑', '↓')}" for scenario, metric in columns]
    body = _body(cells, columns, "±", lambda text: f"**{text}**")
    lines = [f"| method | {' | '.join(heads)} |", f"|---|{'---|' * len(columns)}"]
    return "\n".join([*lines, *(f"| {name} | {' | '.join(row)} |" for name, row in body.items())])


def latex(cells: Cells, columns: Columns) -> str:
    """Return a LaTeX table (package booktabs)."""
    scenarios = list(dict.fromkeys(scenario for scenario, _ in columns))
    sizes = {name: sum(scenario == name for scenario, _ in columns) for name in scenarios}
    top = [f"\\multicolumn{{{size}}}{{c}}{{{_escape(name)}}}" for name, size in sizes.items()]
    heads = [_escape(_title(metric, "$\\uparrow$", "$\\downarrow$")) for _, metric in columns]
    body = _body(cells, columns, "$\\pm$", lambda text: f"\\textbf{{{text}}}")
    lines = [
        f"\\begin{{tabular}}{{l{'c' * len(columns)}}}",
        "\\toprule",
        f" & {' & '.join(top)} \\\\",
        f"Method & {' & '.join(heads)} \\\\",
        "\\midrule",
        *(f"{_escape(name)} & {' & '.join(row)} \\\\" for name, row in body.items()),
        "\\bottomrule",
        "\\end{tabular}",
    ]
    return "\n".join(lines)


def comparison_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return paired comparisons as Markdown."""
    lines = [
        "| scenario | entry | minus | metric | difference | 95 % interval | p | samples |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        scale, digits = (100, 2) if row["metric"] in PERCENT else (1, 4)
        low, point, high = (f"{scale * row[key]:+.{digits}f}" for key in ("low", "difference", "high"))
        about = f"{row['scenario']} | {row['entry']} | {row['other']} | {_name(row['metric'])}"
        lines.append(f"| {about} | {point} | [{low}, {high}] | {row['p']:.3f} | {row['samples']} |")
    return "\n".join(lines)


def search_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what the search tried as Markdown: a row a point, what each entry got on validation, its best in bold."""
    entries = list(dict.fromkeys((row["variant"], row["method"]) for row in rows))
    found = {(row["variant"], row["method"], row["point"]): row for row in rows}
    heads = [f"{variant}/{method}" for variant, method in entries]
    lines = [f"| settings | {' | '.join(heads)} |", f"|---|{'---|' * len(entries)}"]
    for point in sorted({row["point"] for row in rows}):
        own = [found[*entry, point] for entry in entries]
        shown = [f"**{row['validation']:.4f}**" if row["chosen"] else f"{row['validation']:.4f}" for row in own]
        lines.append(f"| {own[0]['changes'] or 'as in params.yaml'} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _body(cells: Cells, columns: Columns, plus_minus: str, bold: Callable[[str], str]) -> dict[str, list[str]]:
    best = {column: _best(cells, column) for column in columns}
    rows = {}
    for entry, values in cells.items():
        row = []
        for column in columns:
            text = _cell(values.get(column), column[1], plus_minus)
            row.append(bold(text) if entry in best[column] else text)
        rows[entry] = row
    return rows


def _best(cells: Cells, column: tuple[str, str]) -> set[str]:
    """Entries whose mean is the best as it is printed; none where there is nothing to choose."""
    if column[1] in WHOLE:
        return set()
    means = {entry: values[column]["mean"] for entry, values in cells.items() if column in values}
    known = {entry: _number(mean, column[1]) for entry, mean in means.items() if mean is not None}
    if len(known) < 2:
        return set()
    choose = min if column[1] in LOWER_IS_BETTER else max
    winner = choose(known.values(), key=float)
    return {entry for entry, text in known.items() if float(text) == float(winner)}


def _cell(summary: Summary | None, metric: str, plus_minus: str) -> str:
    if summary is None or summary["mean"] is None:
        return "–"
    spread = summary["sd"]
    return _number(summary["mean"], metric) + ("" if spread is None else f" {plus_minus} {_number(spread, metric)}")


def _number(value: float, metric: str) -> str:
    bare = metric.partition("/")[0]
    if bare in WHOLE:
        return f"{value:.0f}"
    return f"{100 * value:.1f}" if bare in PERCENT else f"{value:.3f}"


def _title(metric: str, up: str, down: str) -> str:
    if metric in WHOLE:
        return _name(metric)
    return f"{_name(metric)} {down if metric in LOWER_IS_BETTER else up}"


def _name(metric: str) -> str:
    return NAMES.get(metric, metric)


def _escape(text: str) -> str:
    return text.replace("_", "\\_").replace("%", "\\%").replace("&", "\\&")
