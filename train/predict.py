"""Prediction for raw samples with any subset of modalities: encoders and model in memory, no cache, no labels.

Rows are read, encoded and predicted one batch at a time, so that memory is that of a batch. A value that cannot be
read counts as missing and is named in `reason`; a row with nothing left has a reason instead of a probability.
Tokens are float32 here and rounded to the stored type in the cache: the difference is that rounding alone. Several
models, such as the seeds of a method, are averaged; those with the same encoders share the encoding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
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


@dataclass(frozen=True)
class Group:
    """Models that read the tokens of the same encoders."""

    encoders: dict[str, Encoder]
    methods: list[Method]


def predict(
    model_folder: Path | Sequence[Path],
    samples: Path | SamplesTable,
    encoders: Mapping[str, Path] | None = None,
    *,
    root: Path = Path(),
    batch_size: int = 32,
    device: torch.device | str | None = None,
) -> pd.DataFrame:
    """Predict every row of a samples table, csv or parquet file.

    Args:
        model_folder: checkpoint of stage two or of the joint stage; of several, the mean prediction is returned.
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
        UserError: checkpoint, encoder or file cannot be used, or the models differ in modalities or label.
    """
    folders = [model_folder] if isinstance(model_folder, Path) else list(model_folder)
    if not folders:
        raise UserError("No model is given. Give at least one checkpoint folder.")
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    groups, config = _load(folders, encoders or {}, root, place)
    spec = groups[0].methods[0].spec
    table = samples if isinstance(samples, SamplesTable) else read_requests(samples, spec, config)
    starts = range(0, len(table.frame), batch_size)
    parts = [
        _predict_rows(groups, table, table.frame.iloc[start : start + batch_size], place)
        for start in track(starts, description="predict", console=Console(stderr=True))
    ]
    return pd.concat(parts, ignore_index=True)


def probability_columns(label: LabelSpec) -> list[str]:
    """Return the names of the output's probability columns."""
    if label.kind == "regression":
        return [f"predicted_{name}" for name in label.names]
    return [f"p_{name}" for name in (label.classes if label.kind == "multiclass" else label.names)]


def _load(
    folders: Sequence[Path], given: Mapping[str, Path], root: Path, device: torch.device
) -> tuple[list[Group], dict[str, Any]]:
    """Return the models by what encodes for them, and the first one's configuration."""
    loaded = [load_checkpoint(folder) for folder in folders]
    first = loaded[0][0].spec
    groups: dict[tuple[Path, ...], Group] = {}
    for folder, (method, config) in zip(folders, loaded, strict=True):
        if (method.spec.modalities, method.spec.label) != (first.modalities, first.label):
            raise UserError(
                f"{folder} has the modalities {list(method.spec.modalities)} and the label "
                f"{list(method.spec.label.names)}; {folders[0]} has {list(first.modalities)} and "
                f"{list(first.label.names)}. Models that are averaged must have the same."
            )
        named = _encoder_folders(method, config, folder, given, root)
        key = tuple(named[name].resolve() for name in first.modalities)
        if key not in groups:
            groups[key] = Group(_load_encoders(method, named, device), [])
        groups[key].methods.append(method.to(device))
    return list(groups.values()), loaded[0][1]


def _predict_rows(
    groups: Sequence[Group], table: SamplesTable, frame: pd.DataFrame, device: torch.device
) -> pd.DataFrame:
    names, label = groups[0].methods[0].spec.modalities, groups[0].methods[0].spec.label
    ids = tuple(frame["sample_id"].astype(str))
    encoded = [_encode(group.encoders, table, frame, names, ids, device) for group in groups]
    scores = [
        predict_bank(method, bank, None, len(frame))
        for group, (bank, _) in zip(groups, encoded, strict=True)
        for method in group.methods
    ]
    mean, observed = np.mean(scores, axis=0), encoded[0][0].observed.tolist()
    result = pd.DataFrame({"sample_id": list(ids), "observed": [_joined(names, flags) for flags in observed]})
    for column, name in enumerate(probability_columns(label)):
        result[name] = mean[:, column]
    reasons = zip(*(problems for _, problems in encoded), strict=True)
    return result.assign(reason=["; ".join(filter(None, dict.fromkeys(own))) for own in reasons])


def _encode(
    encoders: Mapping[str, Encoder],
    table: SamplesTable,
    frame: pd.DataFrame,
    names: Sequence[str],
    ids: tuple[str, ...],
    device: torch.device,
) -> tuple[EncodedBank, list[str]]:
    """Return the rows' tokens, and for each row what could not be used."""
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
    return EncodedBank(encoders, InputBank(encoders, items, None, ids), device), reasons


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


def _encoder_folders(
    method: Method, config: Mapping[str, Any], model_folder: Path, given: Mapping[str, Path], root: Path
) -> dict[str, Path]:
    unknown = sorted(set(given) - set(method.spec.modalities))
    if unknown:
        raise UserError(f"Encoders given for {unknown}; the model's modalities are {list(method.spec.modalities)}.")
    return {
        name: given.get(name) or _encoder_folder(config, name, model_folder, root) for name in method.spec.modalities
    }


def _load_encoders(method: Method, folders: Mapping[str, Path], device: torch.device) -> dict[str, Encoder]:
    loaded = {}
    for name, folder in folders.items():
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
