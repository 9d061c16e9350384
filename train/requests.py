"""Rows to predict from a folder, csv or parquet file, with the samples table's column convention.

Unlike `SamplesTable.read`, nothing but `sample_id` is required: labels, groups and splits are for training. A
modality without a column is missing in every row.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from cache.errors import UserError
from extract.samples import DatasetInfo, Kind, ModalitySpec, SamplesTable
from train.methods.base import ModelSpec

IMAGES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}
AUDIO = {".wav", ".flac", ".ogg", ".mp3"}
SUFFIXES = ("_text", "_path", "_array")


def read_requests(path: Path, spec: ModelSpec, config: Mapping[str, Any]) -> SamplesTable:
    """Read rows to predict.

    Args:
        path: samples table folder, or a csv or parquet file; paths in it are relative to its folder.
        spec: the model's modalities and label.
        config: the checkpoint's configuration; its `modalities`, when stored, say how columns are read.

    Raises:
        UserError: no readable file, no or duplicate sample ids, no column of any modality.
    """
    if (path / "dataset.json").is_file():
        return SamplesTable.read(path)
    source = path / "samples.parquet" if path.is_dir() else path
    frame = _read_frame(source)
    _check_ids(frame, source)
    declared = {m["name"]: ModalitySpec.model_validate(m) for m in config.get("modalities", [])}
    modalities = []
    for name in spec.modalities:
        column = _column(frame, name, declared.get(name))
        if column is not None:
            modalities.append(_declare(frame, name, column, declared.get(name)))
    if not modalities:
        wanted = [f"{name}{suffix}" for name in spec.modalities for suffix in SUFFIXES]
        raise UserError(f"{source} has no column of any modality: it has {list(frame.columns)}, known are {wanted}.")
    info = DatasetInfo(name=source.stem, label=spec.label, modalities=tuple(modalities))
    return SamplesTable(source.parent, info, _parsed(frame, modalities, source))


def _read_frame(path: Path) -> pd.DataFrame:
    if not path.is_file() or path.suffix not in (".csv", ".parquet"):
        raise UserError(f"{path} is no samples table folder, .csv or .parquet file. Give one of these.")
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        # An empty cell alone is missing: a text that reads "NA" or "None" is a text.
        return pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""])
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _check_ids(frame: pd.DataFrame, path: Path) -> None:
    if "sample_id" not in frame.columns:
        raise UserError(f"{path} has no column sample_id; it has {list(frame.columns)}.")
    if frame.empty:
        raise UserError(f"{path} has no rows. Give at least one sample.")
    ids = frame["sample_id"]
    if ids.isna().any() or ids.duplicated().any():
        raise UserError(
            f"{path}: sample_id must be unique and never empty; {int(ids.isna().sum())} are empty, "
            f"{int(ids.duplicated().sum())} repeat."
        )


def _column(frame: pd.DataFrame, name: str, declared: ModalitySpec | None) -> str | None:
    candidates = [declared.column] if declared else []
    candidates += [f"{name}{suffix}" for suffix in SUFFIXES]
    return next((column for column in candidates if column in frame.columns), None)


def _declare(frame: pd.DataFrame, name: str, column: str, declared: ModalitySpec | None) -> ModalitySpec:
    if declared is not None:
        return declared.model_copy(update={"column": column})
    return ModalitySpec(name=name, kind=_kind(frame, column), column=column)


def _kind(frame: pd.DataFrame, column: str) -> Kind:
    if column.endswith("_text"):
        return "text"
    known = frame[column].dropna()
    if column.endswith("_path") and len(known):
        extension = Path(str(known.iloc[0]).partition("#")[0]).suffix.lower()
        if extension in IMAGES:
            return "image"
        if extension in AUDIO:
            return "audio"
    return "timeseries"


def _parsed(frame: pd.DataFrame, modalities: list[ModalitySpec], path: Path) -> pd.DataFrame:
    """Arrays in a csv are JSON lists; in parquet they are lists already."""
    result = frame.copy()
    for modality in modalities:
        if not modality.column.endswith("_array"):
            continue
        for column in (modality.column, f"{modality.name}_shape"):
            if column not in frame.columns:
                raise UserError(f"{path} has {modality.column} but no {column}. Add the shape, such as [48, 12].")
            try:
                result[column] = [json.loads(cell) if isinstance(cell, str) else cell for cell in frame[column]]
            except ValueError as error:
                raise UserError(f"{path}: column {column} must hold JSON lists of numbers ({error}).") from error
        if (result[modality.column].notna() & result[f"{modality.name}_shape"].isna()).any():
            raise UserError(f"{path}: rows with {modality.column} but an empty {modality.name}_shape. Fill it in.")
    return result
