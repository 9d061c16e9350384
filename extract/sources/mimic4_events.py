"""Chart and laboratory events of MIMIC-IV to hourly series.

The tables have hundreds of millions of rows: polars scans them lazily, keeping only the mapped items and the cohort,
before anything is in memory. Every unit repair and range rule is applied here, and what it removed is counted.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl

from cache.errors import UserError
from extract.sources import mimic4_variables as v
from extract.sources.series import bin_series

TIME = "%Y-%m-%d %H:%M:%S"


def scan(raw: Path, name: str, columns: Mapping[str, pl.DataType | type[pl.DataType]]) -> pl.LazyFrame:
    """Scan `<name>.csv` or `.csv.gz`, the named columns only, everything read as the given types.

    Raises:
        UserError: the table or a column is absent.
    """
    paths = [raw / f"{name}.csv", raw / f"{name}.csv.gz"]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise UserError(
            f"There is no {paths[0]} or {paths[1].name}. --raw must hold MIMIC-IV's hosp/ and icu/ folders."
        )
    try:
        frame = pl.scan_csv(path, schema_overrides=dict(columns))
        present = frame.collect_schema().names()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path} cannot be read as csv ({type(error).__name__}). Download it again.") from error
    absent = [column for column in columns if column not in present]
    if absent:
        raise UserError(f"{path} lacks the columns {absent}; it has {present}. Is it MIMIC-IV v2.x?")
    return frame.select(list(columns))


def timestamp(column: str) -> pl.Expr:
    """Parse a MIMIC time."""
    return pl.col(column).str.strptime(pl.Datetime("us"), TIME, strict=False)


def collect(frame: pl.LazyFrame, what: str) -> pl.DataFrame:
    """Run a query; a malformed row is a clear error."""
    try:
        return frame.collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{what} holds a row that cannot be read: {error}") from error


def hourly_series(
    raw: Path, stays: pl.DataFrame, hours: float, bin_hours: float, counts: Counter[str]
) -> dict[int, np.ndarray]:
    """Return float32 [bins, channels] by stay id, for stays with an event in [0, hours].

    Args:
        raw: MIMIC-IV folder.
        stays: cohort with stay_id, hadm_id, intime.
        hours: window since admission to the ICU.
        bin_hours: width of a bin.
        counts: what the rules removed is added here.
    """
    numbers = {"charttime": pl.String, "itemid": pl.Int64, "valuenum": pl.Float64}
    chart = scan(raw, "icu/chartevents", {"stay_id": pl.Int64, **numbers})
    chart = chart.filter(pl.col("itemid").is_in(list(v.CHART))).join(
        stays.lazy().select("stay_id", "intime"), on="stay_id"
    )
    lab = scan(raw, "hosp/labevents", {"hadm_id": pl.Int64, **numbers})
    lab = lab.filter(pl.col("itemid").is_in(list(v.LAB))).join(
        stays.lazy().select("hadm_id", "stay_id", "intime"), on="hadm_id"
    )
    columns = ["stay_id", "itemid", "charttime", "valuenum", "intime"]
    events = pl.concat([chart.select(columns), lab.select(columns)])
    since = (timestamp("charttime") - pl.col("intime")).dt.total_seconds() / 3600
    events = events.with_columns(hour=since).filter(pl.col("hour").is_between(0, hours))
    found = collect(events.select("stay_id", "itemid", "hour", "valuenum"), "chartevents or labevents")
    return _bin(found.sort("stay_id"), round(hours / bin_hours), bin_hours, counts)


def _bin(events: pl.DataFrame, bins: int, bin_hours: float, counts: Counter[str]) -> dict[int, np.ndarray]:
    stay, item = events["stay_id"].to_numpy(), events["itemid"].to_numpy()
    places = {**v.CHART, **v.LAB}
    channel = np.array([places[int(i)] for i in item], int)
    values = clean(item, channel, events["valuenum"].to_numpy(), counts)
    hours = events["hour"].to_numpy()
    starts = np.flatnonzero(np.r_[True, stay[1:] != stay[:-1]]) if len(stay) else np.array([], int)
    series = {}
    for start, end in zip(starts, [*starts[1:], len(stay)], strict=True):
        rows = slice(start, end)
        grid = bin_series(hours[rows], channel[rows], values[rows], len(v.CHANNELS), bins, bin_hours)
        if np.isfinite(grid).any():
            series[int(stay[start])] = grid
    return series


def clean(item: np.ndarray, channel: np.ndarray, values: np.ndarray, counts: Counter[str]) -> np.ndarray:
    """Repair units by item id, then apply the range rules; unusable values become NaN."""
    values = values.astype(np.float64).copy()
    values[item == v.FAHRENHEIT] = (values[item == v.FAHRENHEIT] - 32) / 1.8
    values[item == v.INCHES] *= 2.54
    values[item == v.POUNDS] *= 0.453592
    percent = (item == v.FIO2) & (values > 1)
    values[percent] /= 100
    fraction = np.isin(item, v.SATURATION) & (values <= 1)
    values[fraction] *= 100
    low, high = (np.array([variable.drop[side] for variable in v.VARIABLES])[channel] for side in (0, 1))
    outside = (values < low) | (values > high)
    counts["value missing"] += int(np.isnan(values).sum())
    counts["value implausible"] += int(outside.sum())
    values[outside] = np.nan
    floor, ceiling = (np.array([variable.valid[side] for variable in v.VARIABLES])[channel] for side in (0, 1))
    return np.clip(values, floor, ceiling)
