"""Evaluation (METHOD part 5): every method and seed on the same stored missingness of the test split.

Writes to one folder: `metrics.json` (method -> scenario -> metric -> {mean, sd}), `per_pattern.csv`, `curves.csv`
(metrics against the missing rate), `observed_count.csv` (against the number of observed modalities), `masks.parquet`
(the protocol's draw) and `comparisons.json` (paired bootstrap, selfmask minus each other method). Costs one pass over
the test tokens per checkpoint and scenario; the bootstrap is computed on stored probabilities.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from cache.errors import UserError
from cache.publish import write_json
from extract.samples import SamplesTable
from extract.task import LabelSpec
from train.bootstrap import intervals, resample_metrics
from train.checkpoint import load_checkpoint
from train.config import EvaluateSettings
from train.encoded import encoded_bank
from train.scenarios import Scenario, build_scenarios, write_masks
from train.scored import (
    Run,
    count_rows,
    curve_rows,
    pattern_rows,
    predict_scenarios,
    require_match,
    score_run,
)
from train.scoring import Bank
from train.tables import summarise, write_csv

Array = np.ndarray
COMPARED = ("natural", "protocol")
OURS = "selfmask"


def evaluate_checkpoints(
    folders: Mapping[str, Sequence[Path]],
    bank: Bank,
    table: SamplesTable,
    settings: EvaluateSettings,
    out: Path,
    token_keys: Mapping[str, Any] | None = None,
    sample_ids: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Score checkpoints on the test split and write the tables; returns the content of `metrics.json`.

    Args:
        folders: checkpoint folders of each method, one per training seed.
        bank: tokens of `table.ids("test")`, in this order, with labels; a cache's or an `EncodedBank`.
        table: gives the sample ids and the label.
        settings: seed, rates, bootstrap and batch size.
        out: folder to write.
        token_keys: what `train.stage.token_keys` returns; checkpoints trained on other tokens are then refused.
        sample_ids: ids in the bank's order, where these are not the table's test split.

    Raises:
        UserError: no checkpoint; a checkpoint of other modalities, labels or tokens; unlabelled test samples.
    """
    if bank.labels is None or not any(folders.values()):
        raise UserError("Evaluation needs test labels and at least one checkpoint. Run `selfmask train`.")
    ids, observed = list(sample_ids or table.ids("test")), bank.observed.cpu().numpy()
    scenarios = build_scenarios(ids, observed, bank.modalities, settings.mask_seed, settings.missing_rates)
    runs = _predict_all(folders, bank, table, scenarios, settings.batch_size, token_keys)
    labels = bank.labels.cpu().numpy()
    protocol = next(s for s in scenarios if s.name == "protocol")
    write_masks(out / "masks.parquet", ids, protocol, bank.modalities, settings.mask_seed)
    return _write_tables(runs, scenarios, labels, table.groups(ids), table.info.label, settings, out)


def _write_tables(
    runs: Sequence[Run],
    scenarios: Sequence[Scenario],
    labels: Array,
    groups: Array,
    label: LabelSpec,
    settings: EvaluateSettings,
    out: Path,
) -> dict[str, Any]:
    scored = [score_run(run, scenarios, labels, label) for run in runs]
    metrics = _nested(runs, scored, [s.name for s in scenarios if s.pattern is None])
    write_csv(out / "curves.csv", curve_rows(runs, scored, scenarios))
    write_csv(out / "per_pattern.csv", pattern_rows(runs, scored, scenarios))
    write_csv(out / "observed_count.csv", count_rows(runs, scenarios, labels, label))
    write_json(out / "comparisons.json", compare(runs, labels, groups, label, settings))
    write_json(out / "metrics.json", metrics)
    return metrics


def compare(
    runs: Sequence[Run], labels: Array, groups: Array, label: LabelSpec, settings: EvaluateSettings
) -> dict[str, Any]:
    """Return other method -> scenario -> metric -> selfmask minus it, with a paired bootstrap interval."""
    predicted: dict[str, list[Run]] = {}
    for run in runs:
        predicted.setdefault(run.method, []).append(run)
    if OURS not in predicted:
        return {}
    resampled = {}
    for name in COMPARED:
        probabilities = {method: [run.predicted[name] for run in own] for method, own in predicted.items()}
        resampled[name] = _resample(probabilities, labels, groups, label, settings)
    others = sorted(set(predicted) - {OURS})
    return {
        other: {name: intervals(values[OURS], values[other]) for name, values in resampled.items()} for other in others
    }


def _resample(
    predicted: Mapping[str, Sequence[Array]], labels: Array, groups: Array, label: LabelSpec, settings: EvaluateSettings
) -> dict[str, dict[str, Array]]:
    """Return the resampled metrics of every method, each computed once, over the samples that have a prediction."""
    rows = np.isfinite(predicted[OURS][0]).all(-1)
    about = labels[rows], label, groups[rows], settings.bootstrap_draws, settings.mask_seed
    return {method: resample_metrics([p[rows] for p in own], *about) for method, own in predicted.items()}


def _predict_all(
    folders: Mapping[str, Sequence[Path]],
    bank: Bank,
    table: SamplesTable,
    scenarios: Sequence[Scenario],
    batch_size: int,
    token_keys: Mapping[str, Any] | None,
) -> list[Run]:
    runs, device, label = [], "cuda" if torch.cuda.is_available() else "cpu", table.info.label
    with Progress(console=Console(stderr=True)) as progress:  # stdout is for --json
        total = sum(map(len, folders.values())) * len(scenarios)
        task = progress.add_task("evaluate", total=total)
        for name, paths in folders.items():
            for position, path in enumerate(paths):
                method, config = load_checkpoint(path)
                own = encoded_bank(path, table, batch_size) if config.get("stage") == "joint" else bank
                require_match(path, method, config, own, label, token_keys)
                predicted = predict_scenarios(
                    method.to(device), own, scenarios, batch_size, lambda: progress.advance(task)
                )
                runs.append(Run(name, int(config.get("seed", position)), predicted))
    return runs


def _nested(
    runs: Sequence[Run], scored: Sequence[Mapping[str, Mapping[str, float]]], names: Sequence[str]
) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for method in dict.fromkeys(run.method for run in runs):
        own = [values for run, values in zip(runs, scored, strict=True) if run.method == method]
        result[method] = {name: summarise([values[name] for values in own]) for name in names}
    return result
