"""Evaluation (METHOD part 5): every method and seed on the same stored missingness of the test split.

Writes to one folder: `metrics.json` (method -> scenario -> metric -> {mean, sd}), `per_pattern.csv`, `curves.csv`
(metrics against the missing rate), `observed_count.csv` (against the number of observed modalities), `masks.parquet`
(the protocol's draw) and `comparisons.json` (paired bootstrap, selfmask minus each other method). Costs one pass over
the test tokens per checkpoint and scenario; the bootstrap is computed on stored probabilities.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from cache.errors import UserError
from cache.publish import write_json
from extract.metrics import compute_metrics
from extract.samples import SamplesTable
from extract.task import LabelSpec
from train.bootstrap import paired_bootstrap
from train.checkpoint import load_checkpoint
from train.config import EvaluateSettings
from train.encoded import encoded_bank
from train.methods.base import Method
from train.scenarios import Scenario, build_scenarios, write_masks
from train.scoring import Bank, predict_bank
from train.tables import summarise, write_csv

Array = np.ndarray
COMPARED = ("natural", "protocol")
OURS = "selfmask"


@dataclass(frozen=True)
class Run:
    """Probabilities [N, C] of one checkpoint, by scenario name; NaN where a sample takes no part."""

    method: str
    seed: int
    predicted: dict[str, Array]


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
    scored = [{s.name: _metrics(run.predicted[s.name], labels, s.rows, label) for s in scenarios} for run in runs]
    metrics = _nested(runs, scored, [s.name for s in scenarios if s.pattern is None])
    write_csv(out / "curves.csv", _curves(runs, scored, scenarios))
    write_csv(out / "per_pattern.csv", _patterns(runs, scored, scenarios))
    write_csv(out / "observed_count.csv", _counts(runs, scenarios, labels, label))
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
    result: dict[str, Any] = {}
    for other in sorted(set(predicted) - {OURS}) if OURS in predicted else ():
        for name in COMPARED:
            ours, theirs = ([run.predicted[name] for run in predicted[m]] for m in (OURS, other))
            rows = np.isfinite(ours[0]).all(-1)
            result.setdefault(other, {})[name] = paired_bootstrap(
                [p[rows] for p in ours],
                [p[rows] for p in theirs],
                labels[rows],
                label,
                groups[rows],
                settings.bootstrap_draws,
                settings.mask_seed,
            )
    return result


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
                _check(path, method, config, own, label, token_keys)
                predicted, known = {}, {}  # equal masks, such as rate 0 and natural, are computed once
                for scenario in scenarios:
                    content = scenario.kept.tobytes()
                    if content not in known:
                        known[content] = predict_bank(method.to(device), own, scenario.kept, batch_size)
                    predicted[scenario.name] = known[content]
                    progress.advance(task)
                runs.append(Run(name, int(config.get("seed", position)), predicted))
    return runs


def _check(
    path: Path,
    method: Method,
    config: Mapping[str, Any],
    bank: Bank,
    label: LabelSpec,
    token_keys: Mapping[str, Any] | None,
) -> None:
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


def _metrics(predicted: Array, labels: Array, rows: Array, label: LabelSpec) -> dict[str, float]:
    chosen = rows & np.isfinite(predicted).all(-1) & np.isfinite(labels.reshape(len(labels), -1)).any(-1)
    return compute_metrics(predicted[chosen], labels[chosen], label) if chosen.any() else {}


def _nested(
    runs: Sequence[Run], scored: Sequence[Mapping[str, Mapping[str, float]]], names: Sequence[str]
) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for method in dict.fromkeys(run.method for run in runs):
        own = [values for run, values in zip(runs, scored, strict=True) if run.method == method]
        result[method] = {name: summarise([values[name] for values in own]) for name in names}
    return result


def _curves(
    runs: Sequence[Run], scored: Sequence[Mapping[str, Mapping[str, float]]], scenarios: Sequence[Scenario]
) -> list[dict[str, Any]]:
    return [
        {"method": run.method, "seed": run.seed, "missing_rate": s.rate, **values[s.name]}
        for run, values in zip(runs, scored, strict=True)
        for s in scenarios
        if s.rate is not None
    ]


def _patterns(
    runs: Sequence[Run], scored: Sequence[Mapping[str, Mapping[str, float]]], scenarios: Sequence[Scenario]
) -> list[dict[str, Any]]:
    rows = []
    for run, values in zip(runs, scored, strict=True):
        for s in scenarios:
            if s.pattern is not None:
                about = {"pattern": "+".join(s.pattern), "observed_modalities": len(s.pattern)}
                size = {"samples": int(s.rows.sum())}
                rows.append({"method": run.method, "seed": run.seed, **about, **size, **values[s.name]})
    return rows


def _counts(
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
            values = _metrics(predicted, pooled, taking_part, label)
            rows.append({"method": run.method, "seed": run.seed, **about, **values})
    return rows
