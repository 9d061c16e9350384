"""Published feature frames (COVAREP, FACET, OpenFace 2) as series of their own modality, one npz file a video.

A frame of zeros is one in which the extractor saw no face or heard no voice, -inf and NaN are its failures: all are
unobserved, NaN, never 0. Frames are averaged over bins of equal length, because 100 frames a second for a hundred
seconds are more tokens than any encoder takes. The averages go to files rather than into the table: the real corpus'
are gigabytes, and a table is read whole. One video's frames are in memory at a time.
"""

import io
import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path

import numpy as np

from cache.errors import UserError
from cache.publish import write_bytes
from extract.sources.mosei.csd import ComputationalSequence
from extract.sources.mosei.media import EMPTY, NOT_IN_SOURCE, NOT_RECORDED
from extract.sources.mosei.segments import Segment

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
) -> Iterator[tuple[str, dict[str, Found]]]:
    """Yield the series of each video's segments by their ids, from a computational sequence.

    Raises:
        UserError: the file is damaged, or its videos have different numbers of columns.
    """
    width = 0
    with ComputationalSequence(path) as sequence:
        for video, group in groupby(sorted(segments, key=lambda s: (s.video, s.id)), key=lambda s: s.video):
            content = sequence.read(video)
            if content is None:
                yield video, dict.fromkeys([s.id for s in group], NOT_IN_SOURCE)
                continue
            width = width or content[0].shape[1]
            if content[0].shape[1] != width:
                raise UserError(
                    f"{path}: video {video} has {content[0].shape[1]} columns, those before it {width}. Releases are "
                    "mixed: download the file again."
                )
            yield video, {s.id: binned(*content, s.start, s.end, bins_per_second) for s in group}


def write_series(path: Path, found: Mapping[str, Found]) -> None:
    """Write a video's series, an array [T, D] per segment that has one."""
    arrays = {name: series for name, series in found.items() if isinstance(series, np.ndarray)}
    if arrays:
        content = io.BytesIO()
        np.savez(content, **arrays)  # type: ignore[arg-type]
        write_bytes(path, content.getvalue())
