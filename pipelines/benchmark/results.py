"""The figures of a suite from what its runs left: tidy results, curves, patterns, paired comparisons.

Means and metrics are over a run's own test rows. Comparisons are paired: over the rows that every entry predicts in
that scenario. The best other entry is the one with the best figure on the test split itself, which makes the comparison
with it a hard one; its p-value is not corrected for that choice, nor for the number of entries.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cache.errors import UserError
from extract.metrics import monitor_name
from extract.samples import SamplesTable
from extract.task import LabelSpec
from pipelines.benchmark.run import Stored
from pipelines.benchmark.suite import BenchmarkRun, Suite, resolve
from train.bootstrap import intervals, resample_metrics
from train.config import EvaluateSettings
from train.nested import counterintuitive_rate
from train.scenarios import Scenario, build_scenarios
from train.scored import Run, Scored, count_rows, curve_rows, pattern_rows, score_run
from train.stage import SECONDS

Array = np.ndarray
LOWER_IS_BETTER = frozenset({"nll", "ece", "mae", "counterintuitive", "seconds_wall", "seconds_cpu", "parameters"})
TIDY = ("suite", "variant", "method", "seed", "scenario", "metric", "value")
OVER_PATTERNS, TRAINING, VALIDATION = "over_patterns", "training", "validation"
"""Scenarios of figures that belong to no single one."""


@dataclass(frozen=True)
class Finished:
    """A finished run with its scenarios and metrics."""

    run: BenchmarkRun
    entry: str
    stored: Stored
    labels: Array
    scenarios: list[Scenario]
    predictions: Run
    scored: Scored


def gather(suite: Suite, done: Sequence[tuple[BenchmarkRun, Stored]], table: SamplesTable) -> list[Finished]:
    """Score finished runs.

    Args:
        suite: names the entries.
        done: runs and what they left.
        table: the whole samples table; rows of its test split are what `Stored.rows` counts.
    """
    ids, labels = np.array(table.ids("test"), dtype=object), table.labels("test")
    result = []
    for run, stored in done:
        settings = run.params.evaluate
        names = run.params.dataset.modalities
        own = [str(i) for i in ids[stored.rows]]
        scenarios = build_scenarios(own, stored.observed, names, settings.mask_seed, settings.missing_rates)
        predictions = Run(run.method, run.seed, stored.predicted)
        truth = labels[stored.rows]
        scored = score_run(predictions, scenarios, truth, table.info.label)
        entry = suite.entry(run.variant, run.method)
        result.append(Finished(run, entry, stored, truth, scenarios, predictions, scored))
    return result


def tidy(suite: str, finished: Sequence[Finished], label: LabelSpec) -> pd.DataFrame:
    """Return one row a run, scenario and metric."""
    rows = []
    for own in finished:
        about = (suite, own.run.variant, own.run.method, own.run.seed)
        for scenario, metrics in {**own.scored, **_extra(own, label)}.items():
            rows += [(*about, scenario, metric, float(value)) for metric, value in metrics.items()]
    return pd.DataFrame(rows, columns=list(TIDY))


def _extra(own: Finished, label: LabelSpec) -> dict[str, dict[str, float]]:
    by_pattern = {frozenset(s.pattern): own.stored.predicted[s.name] for s in own.scenarios if s.pattern}
    rate = counterintuitive_rate(by_pattern, own.labels, label)
    config = json.loads((own.run.folder / "config.json").read_text())
    seconds = json.loads((own.run.folder / SECONDS).read_text())
    cost = {f"seconds_{name}": value for name, value in seconds.items()}
    cost |= {"parameters": own.stored.parameters, "epochs": config["epochs"]["run"]}
    nested = {} if rate is None else {"counterintuitive": rate}
    return {OVER_PATTERNS: nested, TRAINING: cost, VALIDATION: config["validation"]}


def scenario_rows(finished: Sequence[Finished], label: LabelSpec) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of curves.csv, per_pattern.csv and observed_count.csv."""
    result: dict[str, list[dict[str, Any]]] = {"curves": [], "per_pattern": [], "observed_count": []}
    for own in finished:
        runs, scored = [own.predictions], [own.scored]
        rows = {
            "curves": curve_rows(runs, scored, own.scenarios),
            "per_pattern": pattern_rows(runs, scored, own.scenarios),
            "observed_count": count_rows(runs, own.scenarios, own.labels, label),
        }
        for name, added in rows.items():
            result[name] += [{"variant": own.run.variant, **row} for row in added]
    return result


def scenario_of(name: str, modalities: Sequence[str]) -> str:
    """Return the scenario that a column of the suite means."""
    return f"pattern_{'+'.join(modalities)}" if name == "complete" else name


def require_columns(suite: Suite, params: Path, overrides: Sequence[str]) -> None:
    """Raise UserError, before anything runs, for a column that no variant has."""
    known: dict[str, None] = {}
    for chosen in resolve(suite, params, overrides).values():
        names, rates = chosen.dataset.modalities, chosen.evaluate.missing_rates
        known |= {s.name: None for s in build_scenarios([], np.ones((0, len(names)), bool), names, 0, rates)}
    absent = [name for name in suite.columns if name != "complete" and name not in known]
    if absent:
        raise UserError(f"columns: unknown scenarios {absent}. Known: complete, {', '.join(known)}.")


def compare_entries(
    suite: Suite, finished: Sequence[Finished], table: SamplesTable, settings: EvaluateSettings
) -> list[dict[str, Any]]:
    """Return a row for each scenario, pair of entries and metric: each entry against the best other, and the
    reference against each."""
    groups, labels = table.groups(table.ids("test")), table.labels("test")
    rows = []
    for column in suite.columns:
        resampled, count = _resample(column, finished, labels, groups, table.info.label, settings)
        for kind, first, second in _pairs(suite, resampled, monitor_name(table.info.label).removeprefix("neg_")):
            for metric, values in intervals(resampled[first], resampled[second]).items():
                about = {"scenario": column, "comparison": kind, "entry": first, "other": second, "samples": count}
                rows.append({**about, "metric": metric, **values})
    return rows


def _resample(
    column: str,
    finished: Sequence[Finished],
    labels: Array,
    groups: Array,
    label: LabelSpec,
    settings: EvaluateSettings,
) -> tuple[dict[str, dict[str, Array]], int]:
    """Metrics of each entry under the same resamples, and the number of samples that all of them predict."""
    predicted: dict[str, list[Array]] = {}
    for own in finished:
        values = own.stored.predicted.get(scenario_of(column, own.run.params.dataset.modalities))
        if values is not None:
            whole = np.full((len(labels), values.shape[1]), np.nan)
            whole[own.stored.rows] = values
            predicted.setdefault(own.entry, []).append(whole)
    everywhere = [np.isfinite(p).all(-1) for runs in predicted.values() for p in runs]
    rows = np.logical_and.reduce(everywhere) if everywhere else np.zeros(len(labels), bool)
    if not rows.any():
        return {}, 0
    arguments = (labels[rows], label, groups[rows], settings.bootstrap_draws, settings.mask_seed)
    return {e: resample_metrics([p[rows] for p in runs], *arguments) for e, runs in predicted.items()}, int(rows.sum())


def _pairs(suite: Suite, resampled: Mapping[str, Mapping[str, Array]], metric: str) -> list[tuple[str, str, str]]:
    sign = -1 if metric in LOWER_IS_BETTER else 1
    score = {e: sign * float(values[metric][0]) for e, values in resampled.items() if np.isfinite(values[metric][0])}
    pairs = []
    for entry in score:
        others = {name: value for name, value in score.items() if name != entry}
        if others:
            pairs.append(("best_other", entry, max(others, key=others.__getitem__)))
    if suite.reference in score:
        pairs += [("reference", suite.reference, other) for other in score if other != suite.reference]
    return pairs
