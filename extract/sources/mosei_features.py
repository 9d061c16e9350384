"""Published feature frames (COVAREP, FACET, OpenFace 2) as series of their own modality, one HDF5 file each.

A frame of zeros is one in which the extractor saw no face or heard no voice, -inf and NaN are its failures: all are
unobserved, NaN, never 0. Frames are averaged over bins of equal length, because 100 frames a second for a hundred
seconds are more tokens than any encoder takes. The averages go to HDF5 rather than into the table: the real corpus'
are gigabytes, and a table is read whole.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import h5py
import numpy as np

from extract.sources.mosei_csd import ComputationalSequence
from extract.sources.mosei_media import EMPTY, NOT_IN_SOURCE, NOT_RECORDED
from extract.sources.mosei_segments import Segment

Found = np.ndarray | str
"""A series [T, D] with NaN where unobserved, or the reason why there is none."""
FEATURES = ("covarep", "facet", "openface")


def observed(frames: np.ndarray) -> np.ndarray:
    """Return float64 frames [T, D] with NaN for what is not finite and for frames of zeros."""
    values = np.where(np.isfinite(frames), frames, np.nan).astype(np.float64)
    values[(frames == 0).all(axis=1)] = np.nan
    return values


def binned(frames: np.ndarray, intervals: np.ndarray, start: float, end: float, bins_per_second: float) -> Found:
    """Average the frames whose middle lies in [start, end) over bins, each cell over what was observed.

    Args:
        frames: [T, D].
        intervals: [T, 2] in seconds.
        start: start of the segment in seconds.
        end: its end.
        bins_per_second: the last bin may be shorter.

    Returns:
        float32 [ceil((end - start) x bins_per_second), D], or a reason.
    """
    middles = intervals.mean(axis=1)
    inside = (middles >= start) & (middles < end)
    if not inside.any():
        return NOT_RECORDED
    values = observed(frames[inside])
    bins = max(1, math.ceil((end - start) * bins_per_second - 1e-9))
    place = np.minimum(((middles[inside] - start) * bins_per_second).astype(int), bins - 1)
    seen = np.isfinite(values)
    total, count = np.zeros((2, bins, frames.shape[1]))
    np.add.at(total, place, np.where(seen, values, 0))
    np.add.at(count, place, seen)
    if not seen.any():
        return EMPTY
    with np.errstate(invalid="ignore"):
        return (total / count).astype(np.float32)


def sequence_series(
    path: Path, segments: Iterable[Segment], bins_per_second: float
) -> tuple[list[str], dict[str, Found]]:
    """Return names of the columns, and the series of each segment by its id, from a computational sequence."""
    ordered = sorted(segments, key=lambda s: (s.video, s.start))
    found: dict[str, Found] = {}
    width = 0
    with ComputationalSequence(path) as sequence:
        names = sequence.dimension_names()
        current, content = "", None
        for segment in ordered:
            if segment.video != current:
                current, content = segment.video, sequence.read(segment.video)
            if content is None:
                found[segment.id] = NOT_IN_SOURCE
                continue
            width = content[0].shape[1]
            found[segment.id] = binned(*content, segment.start, segment.end, bins_per_second)
    return (names if len(names) == width else []), found


def write_series(path: Path, found: Mapping[str, Found]) -> None:
    """Write a dataset [T, D] per segment that has a series."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # of a run that was cut off
    with h5py.File(path, "w") as file:
        for name, series in sorted(found.items()):
            if isinstance(series, np.ndarray):
                file.create_dataset(name, data=series)
