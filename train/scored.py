"""Runs and their figures: predictions of one checkpoint in every scenario, and the rows of tables made from them.

Shared by the evaluation of a project's checkpoints and by benchmark suites. Equal masks, such as rate 0 and the natural
missingness, are predicted once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache.errors import UserError
from extract.metrics import compute_metrics
from extract.task import LabelSpec
from train.methods.base import Method
from train.scenarios import Scenario
from train.scoring import Bank, predict_bank

Array = np.ndarray
Scored = Mapping[str, Mapping[str, float]]
"""Scenario name to metrics."""


@dataclass(frozen=True)
class Run:
    """Probabilities [N, C] of one checkpoint, by scenario name; NaN where a sample takes no part."""

    method: str
    seed: int
    predicted: dict[str, Array]


def predict_scenarios(
    method: Method, bank: Bank, scenarios: Sequence[Scenario], batch_size: int, advance: Callable[[], None]
) -> dict[str, Array]:
    """Return probabilities [N, C] by scenario name; `advance` is called after each."""
    predicted: dict[str, Array] = {}
    known: dict[bytes, Array] = {}
    for scenario in scenarios:
        content = scenario.kept.tobytes()
        if content not in known:
            known[content] = predict_bank(method, bank, scenario.kept, batch_size)
        predicted[scenario.name] = known[content]
        advance()
    return predicted


def score_run(run: Run, scenarios: Sequence[Scenario], labels: Array, label: LabelSpec) -> dict[str, dict[str, float]]:
    """Return the metrics of each scenario."""
    return {s.name: scenario_metrics(run.predicted[s.name], labels, s.rows, label) for s in scenarios}


def require_match(
    path: Path,
    method: Method,
    config: Mapping[str, Any],
    bank: Bank,
    label: LabelSpec,
    token_keys: Mapping[str, Any] | None,
) -> None:
    """Raise UserError if the checkpoint at `path` is of other modalities, labels or tokens than the bank."""
    widths = {m: tokens.shape[-1] for m, tokens in bank.batch(torch.zeros(1, dtype=torch.int64)).tokens.items()}
    if method.spec.modalities != tuple(bank.modalities) or method.spec.widths != widths:
        raise UserError(
            f"{path} was trained on {method.spec.widths} (modality: width), the tokens given are {widths}. "
            "Run `selfmask train` again."
        )
    if method.spec.label != label:
        raise UserError(f"{path} predicts {method.spec.label.names}, the table holds {label.names}. Train again.")
    if token_keys is not None and config.get("stage") == "train" and config.get("tokens") != dict(token_keys):
        raise UserError(f"{path} was trained on other tokens than the cache holds. Run `selfmask train` again.")


def scenario_metrics(predicted: Array, labels: Array, rows: Array, label: LabelSpec) -> dict[str, float]:
    """Return the metrics over the samples [N] that take part and have a prediction and a label; {} without any."""
    chosen = rows & np.isfinite(predicted).all(-1) & np.isfinite(labels.reshape(len(labels), -1)).any(-1)
    return compute_metrics(predicted[chosen], labels[chosen], label) if chosen.any() else {}


def curve_rows(runs: Sequence[Run], scored: Sequence[Scored], scenarios: Sequence[Scenario]) -> list[dict[str, Any]]:
    """Return metrics against the missing rate, a row a run and rate."""
    return [
        {"method": run.method, "seed": run.seed, "missing_rate": s.rate, **values[s.name]}
        for run, values in zip(runs, scored, strict=True)
        for s in scenarios
        if s.rate is not None
    ]


def pattern_rows(runs: Sequence[Run], scored: Sequence[Scored], scenarios: Sequence[Scenario]) -> list[dict[str, Any]]:
    """Return metrics of each pattern, a row a run and pattern."""
    rows = []
    for run, values in zip(runs, scored, strict=True):
        for s in scenarios:
            if s.pattern is not None:
                about = {"pattern": "+".join(s.pattern), "observed_modalities": len(s.pattern)}
                size = {"samples": int(s.rows.sum())}
                rows.append({"method": run.method, "seed": run.seed, **about, **size, **values[s.name]})
    return rows


def count_rows(
    runs: Sequence[Run], scenarios: Sequence[Scenario], labels: Array, label: LabelSpec
) -> list[dict[str, Any]]:
    """Pool the (sample, pattern) pairs of patterns of equal size."""
    by_size: dict[int, list[Scenario]] = {}
    for s in scenarios:
        if s.pattern is not None:
            by_size.setdefault(len(s.pattern), []).append(s)
    rows = []
    for run in runs:
        for size, group in sorted(by_size.items()):
            predicted = np.concatenate([run.predicted[s.name] for s in group])
            taking_part = np.concatenate([s.rows for s in group])
            pooled = np.concatenate([labels] * len(group))
            about = {"observed_modalities": size, "pairs": int(taking_part.sum())}
            values = scenario_metrics(predicted, pooled, taking_part, label)
            rows.append({"method": run.method, "seed": run.seed, **about, **values})
    return rows
