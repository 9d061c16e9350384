"""Series of a user's table that lie in a file of their own with a row a measurement: sample, time, variable, value.

One pass over the file keeps the rows that count, in buckets by sample; each bucket is binned on its own, so that a
file of any size and order needs the memory of its largest bucket and of the series themselves (4 bytes a cell):
10 million rows (215 MB of csv) peak at 0.94 GB, 30 million at 1.03 GB, 2.7 s a million on one shared core.
Channels that are not declared are the variables of the training samples: the other splits add none.
"""

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import polars as pl
from pydantic import BaseModel, ConfigDict, Field, model_validator

from cache.errors import UserError
from extract.samples import ModalitySpec, check_identity
from extract.sources import long_files
from extract.sources.buckets import MOST, fill_buckets, frame_digest, read_buckets, stamp_of
from extract.sources.series import bin_means, bin_series, whole_bins
from extract.sources.staging import file_within, set_missing

HOURS = {"seconds": 1 / 3600, "minutes": 1 / 60, "hours": 1.0, "days": 24.0}
COMBINE = {"last": bin_series, "mean": bin_means}
BUCKET_BYTES = 32 << 20  # of the file
NO_MEASUREMENT = "no_measurement"


class LongForm(BaseModel):
    """Where a series' measurements lie, and how they become bins."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    file: str
    """Relative to the table's folder: csv, csv.gz or parquet."""
    sample: str
    """Column of the sample ids."""
    time: str
    """Column of the times: numbers since the window's begin in `unit`, or timestamps if `start` is given."""
    variable: str
    """Column of the variables' names."""
    value: str
    """Column of the numbers."""
    unit: Literal["seconds", "minutes", "hours", "days"] | None = None
    start: str | None = None
    """Column of the samples file with the timestamp at which a sample's window begins."""
    hours: float = Field(gt=0)
    """The window's length; it ends at the prediction time."""
    combine: Literal["last", "mean"]
    """Of several measurements in a bin."""

    @property
    def columns(self) -> tuple[str, str, str, str]:
        """The four columns of the file."""
        return self.sample, self.time, self.variable, self.value

    @model_validator(mode="after")
    def _is_consistent(self) -> "LongForm":
        if (self.unit is None) == (self.start is None):
            raise ValueError(f"needs one of unit ({', '.join(HOURS)}) and start (a column of the samples file)")
        if len(set(self.columns)) < 4:
            raise ValueError("sample, time, variable and value must be four columns")
        if not self.file.endswith(long_files.FORMS):
            raise ValueError(f"file must end in one of {', '.join(long_files.FORMS)}")
        return self


class DeclaredModality(ModalitySpec):
    """A modality of a user's dataset.json."""

    long: LongForm | None = None

    @model_validator(mode="after")
    def _is_a_series(self) -> "DeclaredModality":
        if self.long and (self.kind != "timeseries" or self.column != f"{self.name}_array"):
            raise ValueError(f"long needs kind timeseries and column {self.name}_array")
        if self.long and not (self.bin_hours and 0 < self.bin_hours < np.inf):
            raise ValueError("long needs bin_hours above 0")
        if len(set(self.channels)) < len(self.channels):
            raise ValueError("channels must be unique")
        return self


def add_long(
    raw: Path, work: Path, declared: DeclaredModality, frame: pd.DataFrame
) -> tuple[DeclaredModality, dict[str, int]]:
    """Add a modality's series to the frame: columns `<name>_array`, `<name>_shape`, `<name>_missing_reason`.

    Args:
        raw: the table's folder.
        work: folder for the buckets, removed at the end; a pass that an interruption followed is not made again.
        declared: with `long`.
        frame: one row a sample, with its split.

    Returns:
        The modality with its channels, and rows of the file by what became of them.

    Raises:
        UserError: the file, a column or a type is not as declared, no row can be used, or ids break a rule.
    """
    form, name = declared.long, declared.name
    assert form is not None
    assert declared.bin_hours is not None
    bins, path = whole_bins(form.hours, declared.bin_hours), _file(raw, form.file)
    samples = _samples(frame, declared, raw)
    counts: Counter[str] = Counter()
    stamp = stamp_of(path, Path(__file__).parent, declared.model_dump(mode="json"), frame_digest(samples))
    buckets = min(MOST, len(samples), 1 + path.stat().st_size // BUCKET_BYTES)
    fill_buckets(work, stamp, _kept(path, declared, samples, bins, counts), "row", buckets, counts)
    channels = declared.channels or _channels(work, path, name, counts)
    grids = _grids(work, channels, bins, form.combine, counts)
    shutil.rmtree(work)
    _add_columns(frame, name, grids)
    return declared.model_copy(update={"channels": channels}), {key: counts[key] for key in sorted(counts)}


def _file(raw: Path, name: str) -> Path:
    path = file_within(raw, name, "dataset.json")
    if path is None:
        raise UserError(f'There is no {raw / name}, which dataset.json names under "long". Add the file or correct it.')
    return path


def _samples(frame: pd.DataFrame, declared: DeclaredModality, raw: Path) -> pl.DataFrame:
    """Return id, row, train and start (null where unknown or not declared) of each sample."""
    where = f"{raw}, {declared.name}"
    check_identity(frame, where)
    taken = [name for name in (declared.column, f"{declared.name}_shape") if name in frame.columns]
    if taken:
        raise UserError(f'{where}: the samples file has the columns {taken}, which "long" makes. Leave one out.')
    samples = pl.DataFrame({"id": frame["sample_id"].tolist(), "train": (frame["split"] == "train").tolist()})
    samples = samples.with_row_index("row").with_columns(pl.col("row").cast(pl.Int32))
    assert declared.long is not None
    start = declared.long.start
    if start is None:
        return samples.with_columns(start=pl.lit(None, pl.Datetime("us")))
    if start not in frame.columns:
        raise UserError(f"{where}: the samples file has no column '{start}' (start); it has {sorted(frame.columns)}.")
    cells = pl.Series("start", [None if pd.isna(cell) else str(cell) for cell in frame[start]], pl.String)
    parsed = samples.with_columns(cells).with_columns(long_files.timestamps("start", pl.String()))
    wrong = parsed["start"].null_count() - cells.null_count()
    if wrong:
        raise UserError(
            f"{where}: {wrong} cells of column '{start}' are no timestamps such as 2026-01-31 08:30 or "
            "2026-01-31 08:30:00, without a time zone. Correct them, or leave them empty where unknown."
        )
    return parsed


def _kept(
    path: Path, declared: DeclaredModality, samples: pl.DataFrame, bins: int, counts: Counter[str]
) -> Iterator[pl.DataFrame]:
    """Yield row, train, at (in bins), variable and value of the rows that count."""
    form = declared.long
    assert form is not None
    used = 0
    for block in long_files.read_rows(path, form.columns):
        long_files.check_types(
            path, block, (form.sample, form.variable), form.value, form.time, stamped=form.start is not None
        )
        counts["rows"] += len(block)
        rows = _in_roles(block, declared, samples)
        kept = long_files.usable(rows, bins, declared.channels, counts)
        used += len(kept)
        if len(kept):
            yield kept.select("row", "train", "at", "variable", "value")
    if not used:
        reasons = ", ".join(f"{reason}: {n}" for reason, n in sorted(counts.items()) if reason != "rows")
        raise UserError(
            f"{path}: none of its {counts['rows']} rows is a measurement of '{declared.name}' ({reasons}). "
            'Check the columns, unit or start, hours and channels under "long" in dataset.json (docs/samples.md), then '
            "run the same command again."
        )


def _in_roles(block: pl.DataFrame, declared: DeclaredModality, samples: pl.DataFrame) -> pl.DataFrame:
    form, kinds = declared.long, block.schema
    assert form is not None
    assert declared.bin_hours is not None
    if form.unit:
        time, begun = long_files.number(form.time, kinds[form.time]) * HOURS[form.unit], pl.lit(True)
    else:
        time, begun = long_files.timestamps(form.time, kinds[form.time]), pl.col("start").is_not_null()
    columns = block.select(
        id=pl.col(form.sample).cast(pl.String),
        variable=pl.col(form.variable).cast(pl.String),
        time=time,
        value=long_files.number(form.value, kinds[form.value]) + 0.0,  # -0.0 and 0.0 are one value
    )
    joined = columns.join(samples, on="id", how="left")
    hours = pl.col("time") if form.unit else (pl.col("time") - pl.col("start")).dt.total_microseconds() / 3.6e9
    return joined.with_columns(at=long_files.in_bins(hours, declared.bin_hours), begun=begun)


def _channels(work: Path, path: Path, name: str, counts: Counter[str]) -> tuple[str, ...]:
    """Return the variables of the training samples and count the rows of others."""
    rows = pl.scan_parquet(work / "*.parquet").group_by("variable").agg(pl.len(), pl.col("train").any())
    found = rows.collect(engine="streaming")
    channels = tuple(sorted(found.filter("train")["variable"].to_list()))
    if not channels:
        raise UserError(
            f"{path}: no training sample has a measurement of '{name}', so that its channels are unknown. Declare "
            '"channels" in dataset.json, or check the split.'
        )
    others = int(found.filter(~pl.col("train"))["len"].sum())
    counts.update({"of a variable that no training sample has": others} if others else {})
    return channels


def _grids(
    work: Path, channels: tuple[str, ...], bins: int, combine: str, counts: Counter[str]
) -> dict[int, np.ndarray]:
    """Return float32 [bins, channels] by row of the samples that have a measurement."""
    places = {name: place for place, name in enumerate(channels)}
    grids, seen = {}, set()
    for bucket in read_buckets([work]):
        known = bucket.filter(pl.col("variable").is_in(list(channels)))
        distinct = known.unique()
        counts.update({"used": len(distinct)})
        counts.update({"repeated": len(known) - len(distinct)} if len(distinct) < len(known) else {})
        seen |= set(distinct["variable"].unique())
        channel = distinct.with_columns(pl.col("variable").replace_strict(places, return_dtype=pl.Int64))
        for (row,), part in channel.partition_by("row", as_dict=True).items():
            at, variable, value = (part[key].to_numpy() for key in ("at", "variable", "value"))
            grids[int(row)] = COMBINE[combine](at, variable, value, len(channels), bins, 1.0)
    counts.update({"channels without a measurement": len(places) - len(seen)} if len(seen) < len(places) else {})
    return grids


def _add_columns(frame: pd.DataFrame, name: str, grids: Mapping[int, np.ndarray]) -> None:
    cells: list[Any] = [grids.get(row) for row in range(len(frame))]
    for column, of in ((f"{name}_array", np.ravel), (f"{name}_shape", np.shape)):
        values = [None if cell is None else np.asarray(of(cell)) for cell in cells]
        frame[column] = pd.Series(values, index=frame.index, dtype=object)
    set_missing(frame, name, frame[f"{name}_array"].isna(), NO_MEASUREMENT)
