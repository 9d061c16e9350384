"""The search of a suite: every method tries the same points, and keeps the one that is best on validation.

A comparison in which one method was tuned and the others were not says little. All methods get the same points, the
same seed and the same early stopping; the test split is not touched. The seed of the search among the suite's seeds is
not trained again. Costs points x methods runs before the suite's own.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from pipelines.benchmark.suite import BenchmarkRun, Search, Suite, resolve
from train.config import MethodName


@dataclass(frozen=True)
class Choice:
    """What the search found for one method of one variant: the validation figure of each point, and the best one."""

    best: BenchmarkRun
    monitors: list[float]


def plan_search(suite: Suite, search: Search, params: Path, overrides: Sequence[str], out: Path) -> list[BenchmarkRun]:
    """Return a run for every variant, method and point.

    Raises:
        UserError: a point does not fit params.yaml.
    """
    resolved = [resolve(suite, params, overrides, point) for point in search.points]
    runs = []
    for variant, method in product(suite.variants, suite.methods):
        for number, chosen in enumerate(resolved):
            folder = out / variant / method / f"search{number}"
            about = variant, method, search.seed, chosen[variant], suite.training, folder
            runs.append(BenchmarkRun(*about, searching=True))
    return runs


def choose(trained: Sequence[BenchmarkRun], points: int) -> dict[tuple[str, MethodName], Choice]:
    """Return the choice by variant and method from the trained runs of a search; of equal points the first.

    A method that has not tried every one of the `points` has no choice: it would be one from a smaller budget.
    """
    found: dict[tuple[str, MethodName], Choice] = {}
    for own in (runs for runs in _by_entry(trained).values() if len(runs) == points):
        monitors = [_monitor(run) for run in own]
        best = own[monitors.index(max(monitors))]
        found[best.variant, best.method] = Choice(best, monitors)
    return found


def _by_entry(runs: Sequence[BenchmarkRun]) -> dict[tuple[str, MethodName], list[BenchmarkRun]]:
    found: dict[tuple[str, MethodName], list[BenchmarkRun]] = {}
    for run in runs:
        found.setdefault((run.variant, run.method), []).append(run)
    return found


def _monitor(run: BenchmarkRun) -> float:
    return float(json.loads((run.folder / "config.json").read_text())["validation"]["monitor"])


def plan_chosen(suite: Suite, choices: Mapping[tuple[str, MethodName], Choice], out: Path) -> list[BenchmarkRun]:
    """Return the suite's own runs, with the settings of each method's best point."""
    return list(_plan_chosen(suite, choices, out))


def _plan_chosen(suite: Suite, choices: Mapping[tuple[str, MethodName], Choice], out: Path) -> Iterator[BenchmarkRun]:
    for (variant, method), choice in choices.items():
        for seed in suite.seeds:
            again = choice.best.folder if seed == choice.best.seed else out / variant / method / f"seed{seed}"
            yield replace(choice.best, seed=seed, folder=again, searching=False)


def settings_rows(search: Search, choices: Mapping[tuple[str, MethodName], Choice]) -> list[dict[str, Any]]:
    """Return a row for every point that a method tried: its changes, its validation figure, whether it was kept."""
    return [
        {
            "variant": variant,
            "method": method,
            "point": number,
            "changes": " ".join(search.points[number]),
            "validation": monitor,
            "chosen": number == choice.monitors.index(max(choice.monitors)),
        }
        for (variant, method), choice in choices.items()
        for number, monitor in enumerate(choice.monitors)
    ]
