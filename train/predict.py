"""Prediction for raw samples with any subset of modalities: encoders and model in memory, no cache, no labels.

Rows are read, encoded and predicted one batch at a time, so that memory is that of a batch. A value that cannot be
read counts as missing and is named in `reason`; a row with nothing left has a reason instead of a probability.
Tokens are float32 here and rounded to the stored type in the cache: the difference is that rounding alone.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.progress import track

from cache.errors import UserError
from extract.encoders.base import Encoder
from extract.encoders.registry import load_encoder
from extract.inputs import InputBank
from extract.samples import SamplesTable
from extract.task import LabelSpec
from extract.values import UnreadableValue, read_value
from train.checkpoint import load_checkpoint
from train.encoded import EncodedBank
from train.methods.base import Method
from train.requests import read_requests
from train.scoring import predict_bank

EMPTY = "no modality observed"


def predict(
    model_folder: Path,
    samples: Path | SamplesTable,
    encoders: Mapping[str, Path] | None = None,
    *,
    root: Path = Path(),
    batch_size: int = 32,
    device: torch.device | str | None = None,
) -> pd.DataFrame:
    """Predict every row of a samples table, csv or parquet file.

    Args:
        model_folder: checkpoint of stage two or of the joint stage.
        samples: a table, its folder, or a file with `sample_id` and value columns by the same suffixes
            (`<m>_text`, `<m>_path` relative to the file, `<m>_array` with `<m>_shape`); label and split not needed.
        encoders: encoder folders by modality, in the place of those that the checkpoint names.
        root: project root, what the checkpoint's encoder folders are relative to.
        batch_size: rows in memory at a time; does not change the result.
        device: default CUDA when available.

    Returns:
        One row a sample in the given order: `sample_id`, `observed` (names joined by +), one probability column
        per class or label (`p_<name>`; the value itself for regression, `predicted_<name>`), and `reason` (empty,
        or why a value or the whole row could not be used).

    Raises:
        UserError: checkpoint, encoder or file cannot be used.
    """
    method, config = load_checkpoint(model_folder)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    method.to(place)
    loaded = _load_encoders(method, config, model_folder, encoders or {}, root, place)
    table = samples if isinstance(samples, SamplesTable) else read_requests(samples, method.spec, config)
    starts = range(0, len(table.frame), batch_size)
    parts = [
        _predict_rows(method, loaded, table, table.frame.iloc[start : start + batch_size], place)
        for start in track(starts, description="predict", console=Console(stderr=True))
    ]
    return pd.concat(parts, ignore_index=True)


def probability_columns(label: LabelSpec) -> list[str]:
    """Return the names of the output's probability columns."""
    if label.kind == "regression":
        return [f"predicted_{name}" for name in label.names]
    return [f"p_{name}" for name in (label.classes if label.kind == "multiclass" else label.names)]


def _predict_rows(
    method: Method,
    encoders: Mapping[str, Encoder],
    table: SamplesTable,
    frame: pd.DataFrame,
    device: torch.device,
) -> pd.DataFrame:
    names = method.spec.modalities
    items: dict[str, list[Any]] = {name: [] for name in names}
    reasons: list[str] = []
    for _, row in frame.iterrows():
        problems = []
        for name in names:
            value, problem = _prepare(table, row, name, encoders[name])
            items[name].append(value)
            problems.extend([f"{name}: {problem}"] if problem else [])
        if all(items[name][-1] is None for name in names):
            problems.insert(0, EMPTY)
        reasons.append("; ".join(problems))
    ids = tuple(frame["sample_id"].astype(str))
    bank = EncodedBank(encoders, InputBank(encoders, items, None, ids), device)
    scores = predict_bank(method, bank, None, len(frame))
    observed = bank.observed.tolist()
    result = pd.DataFrame({"sample_id": list(ids), "observed": [_joined(names, flags) for flags in observed]})
    for column, name in enumerate(probability_columns(method.spec.label)):
        result[name] = scores[:, column]
    return result.assign(reason=reasons)


def _joined(names: Sequence[str], flags: Sequence[bool]) -> str:
    return "+".join(name for name, flag in zip(names, flags, strict=True) if flag)


def _prepare(table: SamplesTable, row: Any, name: str, encoder: Encoder) -> tuple[Any, str | None]:
    if name not in table.modalities:
        return None, None
    try:
        value = read_value(table, row, name)
        return (None if value is None else encoder.preprocess(value)), None
    except UnreadableValue as error:
        return None, str(error)


def _load_encoders(
    method: Method,
    config: Mapping[str, Any],
    model_folder: Path,
    given: Mapping[str, Path],
    root: Path,
    device: torch.device,
) -> dict[str, Encoder]:
    unknown = sorted(set(given) - set(method.spec.modalities))
    if unknown:
        raise UserError(f"Encoders given for {unknown}; the model's modalities are {list(method.spec.modalities)}.")
    loaded = {}
    for name in method.spec.modalities:
        folder = given.get(name) or _encoder_folder(config, name, model_folder, root)
        encoder = load_encoder(folder)
        if encoder.width != method.spec.widths[name]:
            raise UserError(
                f"The encoder in {folder} has width {encoder.width}, the model expects {method.spec.widths[name]} "
                f"for '{name}'. Give the encoder it was trained with, or run `selfmask train` again."
            )
        loaded[name] = encoder.to(device).eval()
    return loaded


def _encoder_folder(config: Mapping[str, Any], name: str, model_folder: Path, root: Path) -> Path:
    """Joint checkpoints hold their encoders below their own folder; stage two names those of the project."""
    named = config.get("encoders", {}).get(name)
    if named is None:
        raise UserError(f"The checkpoint {model_folder} names no encoder for '{name}'. Give its folder.")
    own = model_folder / str(named)
    return own if own.is_dir() else root / str(named)
