"""The samples table: one row a sample, one value column per modality, missing is null.

A folder holds `samples.parquet`, `dropped.parquet` (source id, step, reason of every row left out) and `dataset.json`,
which is published last: a folder without it is unfinished. Writing is byte-identical on a re-run.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from cache.errors import UserError
from cache.publish import file_sha256, fingerprint, replacing, write_json
from extract.task import LabelSpec

SCHEMA_VERSION = 1
SPLITS = ("train", "valid", "test")
Kind = Literal["text", "image", "timeseries", "audio", "video", "features"]
SUFFIXES: dict[str, tuple[str, ...]] = {
    "text": ("text", "path"),
    "image": ("path",),
    "audio": ("path",),
    "video": ("path",),
    "timeseries": ("array", "path"),
    "features": ("array", "path"),
}
"""The value columns that each kind can be read from."""
DROPPED = ["source_id", "step", "reason"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModalitySpec(_Frozen):
    """One modality: its kind and the column that holds its values."""

    name: str
    kind: Kind
    column: str
    """`<name>_text`, `<name>_path` (optionally `file#key`) or `<name>_array` (with `<name>_shape`)."""
    channels: tuple[str, ...] = ()
    """Names of a series' or features' columns."""
    bin_hours: float | None = None
    """Width of a series' bin."""


class CountStep(_Frozen):
    """Samples kept and dropped by one filter step."""

    step: str
    kept: int
    dropped: int


class DatasetInfo(_Frozen):
    """Content of dataset.json."""

    schema_version: int = SCHEMA_VERSION
    name: str
    label: LabelSpec
    modalities: tuple[ModalitySpec, ...]
    source: dict[str, Any] = {}
    options: dict[str, Any] = {}
    counts: tuple[CountStep, ...] = ()


@dataclass(frozen=True)
class SamplesTable:
    """A validated samples table; `root` is what its paths are relative to."""

    root: Path
    info: DatasetInfo
    frame: pd.DataFrame

    @classmethod
    def read(cls, root: Path) -> "SamplesTable":
        """Read and validate a table.

        Raises:
            UserError: the folder is absent or unfinished, or the table breaks a rule.
        """
        path = root / "dataset.json"
        if not path.is_file():
            raise UserError(f"{root} holds no finished samples table (no dataset.json). Run `selfmask prepare`.")
        try:
            info = DatasetInfo.model_validate(json.loads(path.read_text()))
            frame = pd.read_parquet(root / "samples.parquet")
        except (ValidationError, ValueError, OSError, pa.ArrowException) as error:
            raise UserError(
                f"{root} holds no readable samples table: {error}. Run `selfmask prepare` again."
            ) from error
        validate(info, frame, str(root))
        return cls(root, info, frame)

    @classmethod
    def write(cls, root: Path, info: DatasetInfo, frame: pd.DataFrame, dropped: pd.DataFrame) -> "SamplesTable":
        """Validate and publish a table, dataset.json last.

        Args:
            root: folder; value files that paths name lie below it already.
            info: declaration of label and modalities.
            frame: one row a sample.
            dropped: columns source_id, step, reason; stored in that order of rows, whatever the order given.

        Raises:
            UserError: the table breaks a rule; an older table at `root` is left as it is.
        """
        validate(info, frame, str(root))
        if sorted(dropped.columns) != sorted(DROPPED):
            raise UserError(f"{root}: dropped rows have the columns {list(dropped.columns)}; they must be {DROPPED}.")
        removed = dropped[DROPPED].sort_values(DROPPED, kind="stable").reset_index(drop=True)
        (root / "dataset.json").unlink(missing_ok=True)
        ordered = frame.sort_values("sample_id", kind="stable").reset_index(drop=True)
        for name, content in (("samples", ordered), ("dropped", removed)):
            with replacing(root / f"{name}.parquet") as temporary:
                content.to_parquet(temporary, index=False)
        write_json(root / "dataset.json", info.model_dump(mode="json"))
        return cls(root, info, ordered)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names in declared order."""
        return tuple(m.name for m in self.info.modalities)

    def modality(self, name: str) -> ModalitySpec:
        """Return a modality's declaration."""
        for modality in self.info.modalities:
            if modality.name == name:
                return modality
        raise UserError(f"There is no modality '{name}' in {self.root}; it has {', '.join(self.modalities)}.")

    def select(self, names: Sequence[str]) -> "SamplesTable":
        """Return the table with some modalities only; samples that have none of them are left out."""
        chosen = tuple(self.modality(name) for name in names)
        has_any = self.frame[[m.column for m in chosen]].notna().any(axis=1)
        info = self.info.model_copy(update={"modalities": chosen})
        return SamplesTable(self.root, info, self.frame[has_any].reset_index(drop=True))

    def split(self, name: str) -> pd.DataFrame:
        """Return the rows of a split.

        Raises:
            UserError: unknown or empty split.
        """
        if name not in SPLITS:
            raise UserError(f"Split '{name}' is not one of {', '.join(SPLITS)}.")
        rows = self.frame[self.frame["split"] == name]
        if rows.empty:
            raise UserError(f"The {name} split of {self.root} is empty. Run `selfmask check {self.root}`.")
        return rows

    def row(self, sample_id: str) -> "pd.Series[Any]":
        """Return one sample's row.

        Raises:
            UserError: no such sample.
        """
        rows = self.frame[self.frame["sample_id"] == sample_id]
        if rows.empty:
            raise UserError(f"{self.root} has no sample of the given id. Its ids are in samples.parquet, sample_id.")
        return rows.iloc[0]

    def groups(self, sample_ids: Sequence[str]) -> np.ndarray:
        """Return the group (patient, video) of each sample, [N]; all ids must be in the table."""
        return self.frame.set_index("sample_id")["group_id"].loc[list(sample_ids)].to_numpy(str)

    def ids(self, split: str) -> list[str]:
        """Return the sample ids of a split."""
        return [str(i) for i in self.split(split)["sample_id"]]

    def labels(self, split: str) -> np.ndarray:
        """Return float32 labels [N], or [N, L] for several; NaN where unlabelled."""
        values = self.split(split)[label_columns(self.info.label)].to_numpy(np.float32)
        return values if self.info.label.kind == "multilabel" else values[:, 0]

    def observed(self, split: str) -> np.ndarray:
        """Return bool [N, M]: the value column is not null."""
        return self.split(split)[[m.column for m in self.info.modalities]].notna().to_numpy()

    def digest(self) -> str:
        """Return a digest of declaration and rows."""
        path = self.root / "samples.parquet"
        return fingerprint([self.info.model_dump(mode="json"), file_sha256(path) if path.exists() else None])


def label_columns(label: LabelSpec) -> list[str]:
    """Return the label's columns: `label`, or `label_<name>` for multi-label."""
    return [f"label_{name}" for name in label.names] if label.kind == "multilabel" else ["label"]


def validate(info: DatasetInfo, frame: pd.DataFrame, where: str) -> None:
    """Check every rule of a samples table.

    Raises:
        UserError: names the rule, the offending column or count, and what is allowed.
    """
    if info.schema_version != SCHEMA_VERSION:
        raise UserError(f"{where}: schema version {info.schema_version}; this version reads {SCHEMA_VERSION}.")
    _check_columns(info, frame, where)
    check_identity(frame, where)
    _check_labels(info.label, frame, where)
    for modality in info.modalities:
        _check_cells(modality, frame, where)
    values = frame[[m.column for m in info.modalities]]
    empty = int((~values.notna().any(axis=1)).sum())
    if empty:
        raise UserError(f"{where}: {empty} rows have no modality at all. Drop them, with a reason in dropped.parquet.")


def _check_columns(info: DatasetInfo, frame: pd.DataFrame, where: str) -> None:
    names = [m.name for m in info.modalities]
    if not names or len(set(names)) != len(names):
        raise UserError(f"{where}: modalities {names} must be non-empty and unique.")
    needed = ["sample_id", "group_id", "split", *label_columns(info.label)]
    for modality in info.modalities:
        needed.append(modality.column)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", modality.name):  # it becomes the name of a folder
            raise UserError(f"{where}: modality '{modality.name}' must consist of letters, digits, '_' and '-'.")
        allowed = [f"{modality.name}_{suffix}" for suffix in SUFFIXES[modality.kind]]
        if modality.column not in allowed:
            raise UserError(
                f"{where}: column '{modality.column}' of {modality.kind} '{modality.name}' must be "
                f"{' or '.join(allowed)}."
            )
        if modality.column.endswith("_array"):
            needed.append(f"{modality.name}_shape")
    absent = [name for name in needed if name not in frame.columns]
    if absent:
        raise UserError(f"{where}: missing columns {absent}; the table has {sorted(frame.columns)}.")


def check_identity(frame: pd.DataFrame, where: str) -> None:
    """Check samples, groups and splits, whatever the modalities.

    Raises:
        UserError: a column is absent, there is no row, an id is unusable or repeated, a group lies in several splits.
    """
    absent = [name for name in ("sample_id", "group_id", "split") if name not in frame.columns]
    if absent:
        raise UserError(f"{where}: missing columns {absent}; the table has {sorted(frame.columns)}.")
    if frame.empty:
        raise UserError(f"{where}: the table has no rows. Check what `selfmask prepare` was given.")
    ids = frame["sample_id"]
    if not ids.map(lambda value: isinstance(value, str) and value != "").all():
        raise UserError(f"{where}: sample_id must be a non-empty string in every row.")
    if ids.duplicated().any():
        raise UserError(f"{where}: {int(ids.duplicated().sum())} duplicate values in sample_id; it must be unique.")
    unknown = sorted(set(frame["split"].astype(str)) - set(SPLITS))
    if unknown:
        raise UserError(f"{where}: splits {unknown} are not among {', '.join(SPLITS)}.")
    crossing = int((frame.groupby("group_id", dropna=False)["split"].nunique() > 1).sum())
    if crossing or frame["group_id"].isna().any():
        raise UserError(
            f"{where}: {crossing} groups lie in several splits or lack an id; a group must lie in one split."
        )


def _check_labels(label: LabelSpec, frame: pd.DataFrame, where: str) -> None:
    for column in label_columns(label):
        values = pd.to_numeric(frame[column], errors="coerce").to_numpy(np.float64)
        if (frame[column].notna().to_numpy() & ~np.isfinite(values)).any():
            raise UserError(f"{where}: column '{column}' holds values that are not finite numbers.")
        known = values[np.isfinite(values)]
        classes = 2 if label.kind in ("binary", "multilabel") else len(label.classes)
        if label.kind != "regression" and not np.isin(known, np.arange(classes)).all():
            raise UserError(f"{where}: column '{column}' holds labels outside 0 .. {classes - 1}.")


def _check_cells(modality: ModalitySpec, frame: pd.DataFrame, where: str) -> None:
    """Check what can be checked without opening a file: paths stay below the root, arrays have a shape."""
    cells = frame[modality.column].dropna()
    if modality.column.endswith("_path"):
        outside = int((~cells.map(_is_below_root)).sum())
        if outside:
            raise UserError(
                f"{where}: {outside} cells of '{modality.column}' are empty, absolute or leave the table's folder; "
                "paths are relative to it, and a missing value is null."
            )
    if modality.column.endswith("_array"):
        shapeless = int(frame.loc[cells.index, f"{modality.name}_shape"].isna().sum())
        if shapeless:
            raise UserError(f"{where}: {shapeless} rows have '{modality.column}' but no '{modality.name}_shape'.")


def _is_below_root(cell: object) -> bool:
    path = PurePosixPath(cell.partition("#")[0]) if isinstance(cell, str) else PurePosixPath("/")
    return path.name != "" and not path.is_absolute() and ".." not in path.parts
