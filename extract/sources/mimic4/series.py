"""Events in buckets to one regular series a stay.

`fixed`: [bins, 17] in the channels' units, NaN where nothing was observed; the encoder standardises with the training
split. `paper`: MedFuse's dense [bins, 76]: 12 numbers, one-hot coma scales, then 17 masks; an unobserved cell takes the
value before it, else a usual one, and numbers are standardised with mean and deviation of the training split after
that. Works bucket by bucket; the series of all stays stay in memory (17 x 4 bytes a bin).
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl

from extract.sources.buckets import read_buckets
from extract.sources.mimic4 import variables as v
from extract.sources.mimic4.cleaning import clean, clean_as_published
from extract.sources.mimic4.events import TABLES
from extract.sources.series import bin_series

EPSILON = 1e-6
NUMBERS = tuple(place for place, variable in enumerate(v.VARIABLES) if not variable.categories)


def bin_events(
    work: Path, bins: Mapping[int, int], bin_hours: float, *, paper: bool, counts: Counter[str]
) -> dict[int, np.ndarray]:
    """Return float32 [bins, 17] by stay id, NaN where unobserved, of stays with a usable event.

    Args:
        work: folder of the buckets.
        bins: number of bins by stay id.
        bin_hours: width of a bin.
        paper: MedFuse's units and bins; coma channels hold ranks of categories.
        counts: what cleaning removed is added here.
    """
    series = {}
    for events in read_buckets(work / kind for kind in TABLES):
        for stay, hours, channel, values in _stays(events, paper, counts):
            if paper:  # a value on the border of two bins belongs to the earlier
                hours = np.maximum(hours - EPSILON * bin_hours, 0)
            grid = bin_series(hours, channel, values, len(v.CHANNELS), bins[stay], bin_hours)
            if not paper:
                grid[:, v.PLACE["gcs_total"]] = grid[:, [v.PLACE[name] for name in v.COMA_PARTS]].sum(1)
            if np.isfinite(grid).any():
                series[stay] = grid
    return series


def _stays(
    events: pl.DataFrame, paper: bool, counts: Counter[str]
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield (stay id, hours, channel, cleaned values) of a bucket's stays."""
    events = events.sort("stay_id")
    places = {**v.chart_places(paper=paper), **v.lab_places(paper=paper)}
    known = np.array(sorted(places))
    item, stay = events["item"].to_numpy(), events["stay_id"].to_numpy()
    channel = np.array([places[int(i)] for i in known])[np.searchsorted(known, item)]
    values = (clean_as_published if paper else clean)(item, channel, events["number"].to_numpy(), counts)
    hours = events["second"].to_numpy() / 3600
    edges = np.r_[0, np.flatnonzero(stay[1:] != stay[:-1]) + 1, len(stay)]
    for start, end in pairwise(edges):
        rows = slice(start, end)
        yield int(stay[start]), hours[rows], channel[rows], values[rows]


def column_names() -> tuple[str, ...]:
    """Return the names of the 76 columns."""
    names = [f"{u.name}={c}" for u in v.VARIABLES for c in u.categories or ("",)]
    return (*(name.removesuffix("=") for name in names), *(f"mask of {name}" for name in v.CHANNELS))


def discretise(grid: np.ndarray) -> np.ndarray:
    """Return MedFuse's float32 [bins, 76] of a [bins, 17] series, not yet standardised."""
    seen = np.isfinite(grid)
    last = np.maximum.accumulate(np.where(seen, np.arange(len(grid))[:, None], -1), axis=0)
    filled = np.where(last >= 0, np.take_along_axis(grid, np.maximum(last, 0), axis=0), _usual())
    columns = []
    for place, variable in enumerate(v.VARIABLES):
        value = filled[:, place : place + 1]
        columns.append(value == _codes(variable)[None] if variable.categories else value)
    return np.concatenate([*columns, seen], axis=1).astype(np.float32)


def standardise(dense: dict[int, np.ndarray], train: set[int]) -> dict[str, tuple[float, float]]:
    """Standardise the columns of numbers, in place, with mean and deviation over the bins of the training stays.

    Returns:
        Mean and deviation by channel.
    """
    names = column_names()
    place = [names.index(v.CHANNELS[i]) for i in NUMBERS]
    columns = [dense[stay][:, place] for stay in sorted(train & dense.keys())]
    count = sum(map(len, columns))
    mean = sum(c.sum(0, dtype=np.float64) for c in columns) / count
    squares = sum(((c - mean) ** 2).sum(0) for c in columns)
    deviation = np.maximum(np.sqrt(squares / (count - 1)), 1e-7)
    for grid in dense.values():
        grid[:, place] = (grid[:, place] - mean) / deviation
    return {v.CHANNELS[i]: (float(m), float(d)) for i, m, d in zip(NUMBERS, mean, deviation, strict=True)}


def observed_moments(series: Mapping[int, np.ndarray], train: set[int]) -> dict[str, tuple[float, float] | None]:
    """Return mean and deviation of the observed training cells by channel, None where there are none."""
    moments: dict[str, tuple[float, float] | None] = {}
    for place, name in enumerate(v.CHANNELS):
        cells = np.concatenate([series[stay][:, place] for stay in sorted(train & series.keys())] or [np.empty(0)])
        cells = cells[np.isfinite(cells)].astype(np.float64)
        moments[name] = (float(cells.mean()), float(cells.std())) if len(cells) else None
    return moments


def _codes(variable: v.Variable) -> np.ndarray:
    """Return the number in a series that stands for each category, in the order of its columns."""
    if variable.name in v.COMA_PARTS:
        ranks = sorted(variable.categories)
        return np.array([ranks.index(text) for text in variable.categories], np.float32)
    return np.array([float(text) for text in variable.categories], np.float32)


def _usual() -> np.ndarray:
    usual = [u.usual for u in v.VARIABLES]
    for name, text in v.USUAL_TEXT.items():
        usual[v.PLACE[name]] = sorted(v.VARIABLES[v.PLACE[name]].categories).index(text)
    return np.array(usual, np.float32)
