"""One run of a suite: train, then predict the test split in every scenario and keep the probabilities.

Both halves are skipped when their fingerprint says that they are done. What is kept is `predictions.npz`: probabilities
by scenario, the rows of the test split that they belong to, and which modalities each has; no ids, labels or values. So
tables can be made again without tokens, and rows of variants with other modalities can be matched.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache.errors import UserError
from cache.precision import token_bytes
from cache.publish import fingerprint, replacing
from cache.streaming import CachedBank
from extract.samples import SamplesTable
from pipelines.benchmark.suite import BenchmarkRun, Training
from pipelines.training import current_stores, train_run
from train.checkpoint import load_checkpoint
from train.scenarios import build_scenarios
from train.scored import predict_scenarios, require_match
from train.stage import load_banks, open_stores, token_keys

Array = np.ndarray
PREDICTIONS = "predictions.npz"
ABOUT = ("fingerprint", "rows", "observed", "parameters")
SCENARIO = "p/"
UNRELATED = {"methods", "memory_gb"}
"""Settings of the loop that say nothing of the weights of a method whose tokens fit the memory."""


@dataclass(frozen=True)
class Stored:
    """What a run left: probabilities [N, C] by scenario, rows of the test split [N], observed [N, M]."""

    fingerprint: str
    rows: Array
    observed: Array
    parameters: int
    predicted: dict[str, Array]


def execute(run: BenchmarkRun) -> None:
    """Train and predict what is not done yet.

    Raises:
        UserError: tokens or settings do not allow it.
    """
    names, root, samples = run.params.dataset.modalities, run.params.tokens.resolve(), run.params.samples.resolve()
    table = training_table(_whole(samples).select(names), run.training)
    stores = current_stores(run.params, table)
    keys = token_keys(stores)
    banks = _banks(samples, root, names, run.training, run.params.train.memory_gb, fingerprint(keys))
    train_run(run.params, run.method, run.seed, table, stores, banks, run.folder)
    if not run.searching:
        _predict(run, table, banks["test"], keys)


def training_table(table: SamplesTable, training: Training) -> SamplesTable:
    """Leave out training samples that lack a modality, if asked for."""
    if training == "natural":
        return table
    complete = table.frame[[m.column for m in table.info.modalities]].notna().all(axis=1)
    kept = table.frame[complete | (table.frame["split"] != "train")]
    if not (kept["split"] == "train").any():
        raise UserError("No training sample has every modality. Choose `training: natural`, or fewer modalities.")
    return replace(table, frame=kept.reset_index(drop=True))


@lru_cache(maxsize=1)
def _whole(samples: Path) -> SamplesTable:
    return SamplesTable.read(samples)


@lru_cache(maxsize=1)
def _banks(
    samples: Path, root: Path, names: tuple[str, ...], training: Training, memory_gb: float | None, _keys: str
) -> dict[str, CachedBank]:
    """Tokens that consecutive runs of a process share."""
    table = training_table(_whole(samples).select(names), training)
    stores = open_stores(table, root, names)
    learnt = load_banks(table, stores, ("train", "valid"), memory_gb)
    return learnt | load_banks(table, stores, ("test",), memory_gb)


def _predict(run: BenchmarkRun, table: SamplesTable, bank: CachedBank, keys: Mapping[str, Any]) -> None:
    wanted = prediction_fingerprint(run, table, keys)
    if _is_stored(run.folder, wanted):
        return
    settings = run.params.evaluate
    method, config = load_checkpoint(run.folder)
    require_match(run.folder, method, config, bank, table.info.label, keys)
    ids, observed = table.ids("test"), bank.observed.cpu().numpy()
    scenarios = build_scenarios(ids, observed, bank.modalities, settings.mask_seed, settings.missing_rates)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    predicted = predict_scenarios(method.to(device), bank, scenarios, settings.batch_size, lambda: None)
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    rows = test_rows(_whole(run.params.samples.resolve()), ids)
    store_predictions(run.folder / PREDICTIONS, Stored(wanted, rows, observed, trained, predicted))


def prediction_fingerprint(run: BenchmarkRun, table: SamplesTable, keys: Mapping[str, Any]) -> str:
    """Digest of what the predictions depend on: weights, tokens, test samples, draws."""
    weights = json.loads((run.folder / "config.json").read_text())["weights_sha256"]
    draws = {"mask_seed": run.params.evaluate.mask_seed, "rates": run.params.evaluate.missing_rates}
    return fingerprint([weights, dict(keys), table.ids("test"), draws, run.training])


def test_rows(table: SamplesTable, ids: Sequence[str]) -> Array:
    """Return each id's row in the whole table's test split, int64 [N]."""
    places = {sample_id: row for row, sample_id in enumerate(table.ids("test"))}
    return np.array([places[i] for i in ids], dtype=np.int64)


def store_predictions(path: Path, stored: Stored) -> None:
    """Publish a run's predictions."""
    arrays = {f"{SCENARIO}{name}": values for name, values in stored.predicted.items()}
    about = {name: np.asarray(getattr(stored, name)) for name in ABOUT}
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **{**about, **arrays})  # type: ignore[arg-type]


def read_predictions(folder: Path) -> Stored | None:
    """Return what a run left, None if it has not come so far."""
    path = folder / PREDICTIONS
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as arrays:
        predicted = {k.removeprefix(SCENARIO): arrays[k] for k in arrays.files if k.startswith(SCENARIO)}
        fingerprint_, count = str(arrays["fingerprint"]), int(arrays["parameters"])
        return Stored(fingerprint_, arrays["rows"], arrays["observed"], count, predicted)


def finished(run: BenchmarkRun, keys: Mapping[str, Any], table: SamplesTable) -> Stored | None:
    """Return the predictions of a run that is done with just these settings and tokens; opens no tokens."""
    if not is_trained(run, keys, table):
        return None
    stored = read_predictions(run.folder)
    return stored if stored and stored.fingerprint == prediction_fingerprint(run, table, keys) else None


def is_trained(run: BenchmarkRun, keys: Mapping[str, Any], table: SamplesTable) -> bool:
    """Tell whether a run's checkpoint has just these settings and tokens; opens no tokens."""
    config = run.folder / "config.json"
    if not config.is_file():
        return False
    held, own = json.loads(config.read_text()), run.params.method_settings(run.method)
    wanted = {
        "seed": run.seed,
        "model": run.params.model.model_dump(mode="json"),
        "options": own.model_dump(mode="json") if own else {},
        "tokens": dict(keys),
    }
    train = run.params.train.model_dump(mode="json", exclude=UNRELATED)
    return (
        held["spec"]["label"] == table.info.label.model_dump(mode="json")
        and {key: held["train"].get(key) for key in train} == train
        and all(held.get(key) == value for key, value in wanted.items())
    )


def _is_stored(folder: Path, wanted: str) -> bool:
    stored = read_predictions(folder)
    return stored is not None and stored.fingerprint == wanted


def memory_bytes(run: BenchmarkRun) -> int:
    """Return what the tokens of a run take in memory at most."""
    stores = open_stores(_whole(run.params.samples.resolve()), run.params.tokens, run.params.dataset.modalities)
    sizes = [(entry["tokens"], token_bytes(s.width, s.dtype)) for s in stores.values() for entry in s.entries()]
    whole = sum(int(tokens) * size for tokens, size in sizes)
    budget = run.params.train.memory_gb
    return whole if budget is None else min(whole, 2 * int(budget * 1e9))
