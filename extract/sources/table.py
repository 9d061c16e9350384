"""A table of the user's own: csv, jsonl or parquet with declared columns, and the files that its cells name.

`dataset.json` declares label and modalities, as in a finished table; nothing is guessed from the cells. A series may
lie in a file with a row a measurement instead. An empty cell is missing, and so is a file that is not there, which is
counted. A copy is made, because DVC owns and replaces its outputs; it holds the files that cells name and no others.
"""

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cache.errors import UserError
from cache.publish import replacing
from extract.samples import DROPPED, CountStep, DatasetInfo, SamplesTable, label_columns, validate
from extract.sources.long_form import DeclaredModality, add_long
from extract.sources.splits import hash_fraction
from extract.sources.staging import check_places, clear_when_full, file_within, publish, set_missing, stage

NAMES = ("samples.csv", "samples.jsonl", "samples.parquet")
NOT_IN_SOURCE = "not_in_source"
LONG = ".long"  # folder of passes over files in long form, beside the copied files


class Shares(BaseModel):
    """Shares of the groups that rows without a split get, by a hash of the group's id."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    valid: float = Field(gt=0, lt=1)
    test: float = Field(gt=0, lt=1)
    seed: int


class Declaration(DatasetInfo):
    """Content of the user's dataset.json."""

    modalities: tuple[DeclaredModality, ...]
    assign: Shares | None = None
    """How rows with an empty split are placed; without it every row needs one."""


def prepare_table(raw: Path, out: Path) -> SamplesTable:
    """Check a table and copy it with its files.

    Args:
        raw: folder with dataset.json and one of samples.csv, samples.jsonl and samples.parquet.
        out: folder to write.

    Raises:
        UserError: a file is absent or not in its form, or the table breaks a rule (`extract.samples.validate`).
    """
    check_places(raw, out)
    declared = _declaration(raw / "dataset.json")
    source = _source(raw)
    frame = _placed(_parsed(_read(source), declared, source), declared, source)
    with clear_when_full(out):
        partial = stage(raw, out, {})
        declared = _with_long(raw, partial / LONG, declared, frame)
        frame, empty = _with_some_modality(frame, declared)
        validate(declared, frame, str(source))
        absent = _copy_files(raw, partial, declared, frame, source)
        frame, lost = _with_some_modality(frame, declared)
        return publish(partial, out, _write(raw, partial, declared, frame, pd.concat([empty, lost]), absent))


def _declaration(path: Path) -> Declaration:
    if not path.is_file():
        raise UserError(f"There is no {path}, which declares label and modalities. See docs/samples.md.")
    try:
        return Declaration.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UserError(f"{path}: {problems}. See docs/samples.md.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no JSON document ({error}). See docs/samples.md.") from error


def _source(raw: Path) -> Path:
    found = [raw / name for name in NAMES if (raw / name).is_file()]
    if len(found) != 1:
        there = ", ".join(path.name for path in found) or "none of them"
        raise UserError(f"{raw} must hold one of {', '.join(NAMES)}; it holds {there}.")
    return found[0]


def _read(path: Path) -> pd.DataFrame:
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        if path.suffix == ".jsonl":
            return _read_lines(path)
        # An empty cell alone is missing: a text that reads "NA" or "None" is a text.
        return pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""], encoding="utf-8-sig")
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read as {path.suffix[1:]}: {error}") from error


def _read_lines(path: Path) -> pd.DataFrame:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is no JSON object")
            rows.append(row)
    return pd.DataFrame(rows, dtype=object)


def _parsed(frame: pd.DataFrame, declared: Declaration, source: Path) -> pd.DataFrame:
    """Return the frame with labels and arrays as numbers and all else as it is, whatever the file's form."""
    result = frame.copy()
    if "group_id" not in result.columns and "sample_id" in result.columns:
        result["group_id"] = result["sample_id"]
    if "split" not in result.columns:
        result["split"] = None
    for name in result.columns[[not pd.api.types.is_numeric_dtype(kind) for kind in result.dtypes]]:
        result[name] = result[name].astype(object).where(result[name].notna(), None)
    for name in label_columns(declared.label):
        if name in result.columns:
            result[name] = _labels(result[name], source)
    for modality in declared.modalities:
        if modality.column.endswith("_array"):
            for name, kind in ((modality.column, np.float32), (f"{modality.name}_shape", np.int64)):
                if name in result.columns:
                    result[name] = pd.Series([_numbers(c, kind, name, source) for c in result[name]], dtype=object)
    return result


def _labels(cells: "pd.Series[Any]", source: Path) -> "pd.Series[Any]":
    numbers = pd.to_numeric(cells, errors="coerce").astype(np.float64)
    if (numbers.isna() & cells.notna()).any():
        raise UserError(f"{source}: column '{cells.name}' holds labels that are no numbers. Give classes by index.")
    return numbers


def _numbers(cell: Any, kind: type[np.float32] | type[np.int64], column: str, source: Path) -> np.ndarray | None:
    if cell is None or (isinstance(cell, float) and np.isnan(cell)):
        return None
    try:
        return np.array(json.loads(cell) if isinstance(cell, str) else list(cell), kind).ravel()
    except (ValueError, TypeError) as error:
        raise UserError(f"{source}: column '{column}' must hold lists of numbers such as [1, 2.5, null].") from error


def _placed(frame: pd.DataFrame, declared: Declaration, source: Path) -> pd.DataFrame:
    """Give rows without a split one; rows of a group that has one elsewhere get that."""
    empty = frame["split"].isna()
    if not empty.any():
        return frame
    if declared.assign is None:
        raise UserError(
            f'{source}: {int(empty.sum())} rows have no split. Fill the column, or let dataset.json say how: "assign": '
            '{"valid": 0.15, "test": 0.15, "seed": 0}.'
        )
    known = frame[~empty].drop_duplicates("group_id").set_index("group_id")["split"].to_dict()
    groups = frame.loc[empty, "group_id"]
    frame.loc[empty, "split"] = [known.get(g) or _split(str(g), declared.assign) for g in groups]
    return frame


def _split(group: str, shares: Shares) -> str:
    place = hash_fraction(group, f"table:{shares.seed}")
    return "test" if place < shares.test else "valid" if place < shares.test + shares.valid else "train"


def _with_long(raw: Path, work: Path, declared: Declaration, frame: pd.DataFrame) -> Declaration:
    """Add the series in long form to the frame; returns the declaration with their channels, roles and counts."""
    modalities, counts, roles = list(declared.modalities), {}, {}
    for place, modality in enumerate(modalities):
        if modality.long:
            modalities[place], counts[modality.name] = add_long(raw, work / str(place), modality, frame)
            roles[modality.name] = modality.long.model_dump(exclude_none=True)
    shutil.rmtree(work, ignore_errors=True)
    source = {**declared.source, **({"measurements": counts, "long": roles} if counts else {})}
    return declared.model_copy(update={"modalities": tuple(modalities), "source": source})


def _copy_files(raw: Path, root: Path, declared: Declaration, frame: pd.DataFrame, source: Path) -> Counter[str]:
    """Copy the files that cells name; cells of absent files become missing, with a reason, and are counted."""
    absent: Counter[str] = Counter()
    for modality in declared.modalities:
        if not modality.column.endswith("_path"):
            continue
        cells = frame[modality.column]
        there = {cell: _copy_file(raw, root, str(cell), source) for cell in cells.dropna().unique()}
        gone = pd.Series([not pd.isna(cell) and not there[cell] for cell in cells], index=frame.index, dtype=bool)
        if gone.any():
            set_missing(frame, modality.name, gone, NOT_IN_SOURCE)
            frame.loc[gone, modality.column] = None
            absent[f"{modality.name}: files that are not there"] += int(gone.sum())
    return absent


def _copy_file(raw: Path, root: Path, cell: str, source: Path) -> bool:
    name = cell.partition("#")[0]
    path = file_within(raw, name, f"{source}: a cell")
    if path and not (root / name).exists():
        with replacing(root / name) as temporary:
            shutil.copyfile(path, temporary)
    return path is not None


def _with_some_modality(frame: pd.DataFrame, declared: Declaration) -> tuple[pd.DataFrame, pd.DataFrame]:
    columns = [m.column for m in declared.modalities if m.column in frame.columns]
    empty = ~frame[columns].notna().any(axis=1)
    names = frame.loc[empty, "sample_id"].astype(str).tolist() if "sample_id" in frame.columns else []
    dropped = [{"source_id": name, "step": "modality", "reason": "no modality at all"} for name in names]
    return frame[~empty].reset_index(drop=True), pd.DataFrame(dropped, columns=DROPPED, dtype=str)


def _write(
    raw: Path, root: Path, declared: Declaration, frame: pd.DataFrame, dropped: pd.DataFrame, absent: Counter[str]
) -> SamplesTable:
    """Write the table; what the user's own preparation left out and counted is kept."""
    step = CountStep(step="modality", kept=len(frame), dropped=len(dropped))
    if (raw / "dropped.parquet").is_file():
        dropped = pd.concat([pd.read_parquet(raw / "dropped.parquet"), dropped])
    source: Mapping[str, Any] = {**declared.source, **({"rules": dict(sorted(absent.items()))} if absent else {})}
    content = declared.model_dump(exclude={"assign": True, "modalities": {"__all__": {"long"}}})
    info = DatasetInfo.model_validate({**content, "source": source, "counts": [*declared.counts, step]})
    return SamplesTable.write(root, info, frame, dropped)
