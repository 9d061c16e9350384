"""Chart and laboratory events of MIMIC-IV to regular series.

The tables have hundreds of millions of rows: polars streams them, keeping only the mapped items of the cohort in the
window, so that memory grows with the kept events (about 30 bytes each), not with the file. Every unit repair and range
rule is applied here, and what it removed is counted.
"""

from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl

from cache.errors import UserError
from extract.sources import mimic4_variables as v
from extract.sources.series import bin_series

TIME = "%Y-%m-%d %H:%M:%S"
PRESSURES = r"^\s*(\d+)\s*/\s*(\d+)\s*$"  # 120/80


def find(raw: Path, name: str) -> Path | None:
    """Return the path of a table, `.csv` before `.csv.gz`, or None where it is absent."""
    return next((path for end in (".csv", ".csv.gz") if (path := raw / f"{name}{end}").is_file()), None)


def scan(raw: Path, name: str, columns: Mapping[str, pl.DataType | type[pl.DataType]]) -> pl.LazyFrame:
    """Scan `<name>.csv` or `.csv.gz`, the named columns only, everything read as the given types.

    Raises:
        UserError: the table or a column is absent, or the file is no csv.
    """
    path = find(raw, name)
    if path is None:
        raise UserError(
            f"There is no {raw / name}.csv or .csv.gz. --raw must hold MIMIC-IV's hosp/ and icu/ folders; note/ and "
            "mimic-cxr-jpg/ are optional."
        )
    try:
        present = pl.scan_csv(path, infer_schema=False).collect_schema().names()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path} cannot be read as csv ({type(error).__name__}). Download it again.") from error
    absent = [column for column in columns if column not in present]
    if absent:
        raise UserError(f"{path} lacks the columns {absent}; it has {present}. Is it MIMIC-IV v2.x?")
    return pl.scan_csv(path, infer_schema=False, schema_overrides=dict(columns)).select(list(columns))


def timestamp(column: str) -> pl.Expr:
    """Parse a MIMIC time; null where it is malformed."""
    return pl.col(column).str.strptime(pl.Datetime("us"), TIME, strict=False)


def collect(frame: pl.LazyFrame, what: str) -> pl.DataFrame:
    """Run a query in the streaming engine; the error for a malformed file quotes none of its content.

    Raises:
        UserError: a row of `what` cannot be read.
    """
    try:
        return frame.collect(engine="streaming")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(
            f"{what} cannot be read to its end ({type(error).__name__}): truncated, or a value is not of its column's "
            "type. Compare its checksum and download it again."
        ) from error


def hourly_series(
    raw: Path, stays: pl.DataFrame, hours: float, bin_hours: float, counts: Counter[str]
) -> dict[int, np.ndarray]:
    """Return float32 [bins, channels] by stay id, for stays with a usable event in [0, hours].

    Args:
        raw: MIMIC-IV folder.
        stays: cohort with subject_id, hadm_id, stay_id, intime, prediction_time; one stay per admission.
        hours: window since admission to the ICU.
        bin_hours: width of a bin.
        counts: what the rules removed is added here.
    """
    chart, lab = _chart(raw, stays), _lab(raw, stays)
    found = []
    for name, events in (("icu/chartevents", chart), ("hosp/labevents", lab)):
        since = (timestamp("charttime") - pl.col("intime")).dt.total_seconds() / 3600
        events = events.with_columns(hour=since).filter(pl.col("hour").is_between(0, hours))
        part = collect(events.select(*_compact(), "late"), str(raw / name))
        counts["result stored after the prediction time"] += int(part["late"].sum())
        found.append(part.filter(~pl.col("late")).drop("late"))
    joined = pl.concat(found).sort("stay_id", maintain_order=True)
    return _bin(joined, round(hours / bin_hours), bin_hours, counts)


def _chart(raw: Path, stays: pl.DataFrame) -> pl.LazyFrame:
    """Scan bedside values; a row without a stay belongs to the only stay of its admission."""
    ids = {"hadm_id": pl.Int64, "stay_id": pl.Int64, "itemid": pl.Int64}
    events = scan(raw, "icu/chartevents", {**ids, "charttime": pl.String, "value": pl.String, "valuenum": pl.Float64})
    events = events.filter(pl.col("itemid").is_in(list(v.CHART))).rename({"stay_id": "own"})
    events = events.join(stays.lazy().select("hadm_id", "stay_id", "intime"), on="hadm_id")
    return events.filter((pl.col("own") == pl.col("stay_id")).fill_null(True)).with_columns(late=pl.lit(False))


def _lab(raw: Path, stays: pl.DataFrame) -> pl.LazyFrame:
    """Scan laboratory values; a row without an admission, as many are, is assigned by subject and time.

    A result is known when it is stored, not when the blood was drawn.
    """
    texts = dict.fromkeys(("charttime", "storetime", "value"), pl.String)
    ids = {"subject_id": pl.Int64, "hadm_id": pl.Int64, "itemid": pl.Int64}
    events = scan(raw, "hosp/labevents", {**ids, **texts, "valuenum": pl.Float64})
    events = events.filter(pl.col("itemid").is_in(list(v.LAB))).rename({"hadm_id": "own"})
    cohort = stays.lazy().select("subject_id", "hadm_id", "stay_id", "intime", "prediction_time")
    events = events.join(cohort, on="subject_id").filter((pl.col("own") == pl.col("hadm_id")).fill_null(True))
    late = (timestamp("storetime") > pl.col("prediction_time")).fill_null(False)
    return events.with_columns(late=late)


def _compact() -> list[pl.Expr]:
    """Select stay, item, hour and number: the number as recorded, else one read from the text."""
    item, text = pl.col("itemid"), pl.col("value").str.strip_chars()
    upper, lower = (text.str.extract(PRESSURES, group).cast(pl.Float64, strict=False) for group in (1, 2))
    pressure = pl.when(item.is_in(v.SYSTOLIC)).then(upper).when(item.is_in(v.DIASTOLIC)).then(lower)
    score = pl.concat_str(item.cast(pl.String), pl.lit(":"), text.str.to_lowercase()).replace_strict(
        v.COMA_SCORES, default=None, return_dtype=pl.Float64
    )
    number = pl.coalesce(pressure, "valuenum", score, text.cast(pl.Float64, strict=False))
    return [pl.col("stay_id").cast(pl.Int32), item.cast(pl.Int32), pl.col("hour"), number.alias("number")]


def _bin(events: pl.DataFrame, bins: int, bin_hours: float, counts: Counter[str]) -> dict[int, np.ndarray]:
    stay, item = events["stay_id"].to_numpy(), events["itemid"].to_numpy()
    places = {**v.CHART, **v.LAB}
    known = np.array(sorted(places))
    channel = np.array([places[int(i)] for i in known])[np.searchsorted(known, item)]
    values = clean(item, channel, events["number"].to_numpy(), counts)
    hours = events["hour"].to_numpy()
    edges = np.r_[0, np.flatnonzero(stay[1:] != stay[:-1]) + 1, len(stay)] if len(stay) else np.array([0])
    series = {}
    for start, end in pairwise(edges):
        rows = slice(start, end)
        grid = bin_series(hours[rows], channel[rows], values[rows], len(v.CHANNELS), bins, bin_hours)
        if np.isfinite(grid).any():
            series[int(stay[start])] = grid
    return series


def clean(item: np.ndarray, channel: np.ndarray, values: np.ndarray, counts: Counter[str]) -> np.ndarray:
    """Repair units by item id, then apply the range rules.

    Args:
        item: item ids, [n].
        channel: place in `VARIABLES`, [n].
        values: numbers as recorded, [n]; NaN where there is none.
        counts: missing, implausible and clamped values are added here.

    Returns:
        Float64 [n] in the channel's unit, NaN where unusable.
    """
    values = values.astype(np.float64).copy()
    values[item == v.FAHRENHEIT] = (values[item == v.FAHRENHEIT] - 32) / 1.8
    values[item == v.INCHES] *= 2.54
    values[item == v.POUNDS] *= 0.453592
    values[(item == v.FIO2) & (values > 1)] /= 100
    values[np.isin(item, v.SATURATION) & (values <= 1)] *= 100
    low, high = (np.array([variable.drop[side] for variable in v.VARIABLES])[channel] for side in (0, 1))
    floor, ceiling = (np.array([variable.valid[side] for variable in v.VARIABLES])[channel] for side in (0, 1))
    outside = (values < low) | (values > high)
    counts["value missing"] += int(np.isnan(values).sum())
    counts["value implausible"] += int(outside.sum())
    values[outside] = np.nan
    counts["value clamped"] += int(((values < floor) | (values > ceiling)).sum())
    return np.clip(values, floor, ceiling)
