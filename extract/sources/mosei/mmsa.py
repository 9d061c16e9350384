"""CMU-MOSEI as MMSA lays it out: label.csv, `Raw/<video>/<clip>.mp4`, pickles of padded features.

Its clips were cut again by others, without intervals, and some of their times are wrong (docs/mosei.md): where the
authors' files are at hand, prefer those. Pickles are read without running them; memory is that of the file, twice.
"""

from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cache.errors import UserError
from cache.importing.unpickling import read_pickle
from extract.samples import SPLITS
from extract.sources.mosei.features import Found, observed
from extract.sources.mosei.media import EMPTY, NOT_IN_SOURCE
from extract.sources.mosei.sdk import read_csv
from extract.sources.mosei.segments import EMOTIONS, Segment, check_video, rounded

COLUMNS = ("video_id", "clip_id", "text", "label", "mode")
KEYS = {"covarep": "audio", "facet": "vision"}
PICKLES = ("unaligned_50.pkl", "aligned_50.pkl")


def mmsa_segments(path: Path) -> list[Segment]:
    """Return the rows of label.csv; intervals and emotions are not known.

    Raises:
        UserError: a column is absent, an id or a mode is not in order, a label is no number, a video is in two modes.
    """
    frame = read_csv(path)
    absent = [name for name in COLUMNS if name not in frame.columns]
    if absent:
        raise UserError(f"{path} lacks the columns {absent}; it needs {', '.join(COLUMNS)}. Download it again.")
    unknown = sorted(set(frame["mode"]) - set(SPLITS))
    if unknown:
        raise UserError(f"{path} has the modes {unknown[:3]}; they must be {', '.join(SPLITS)}. Download it again.")
    labels = pd.to_numeric(frame["label"].replace("", "nan"), errors="coerce")
    strange = labels.isna() & ~frame["label"].str.lower().isin(["", "nan"])
    if strange.any() or not frame["clip_id"].str.fullmatch(r"\w+").all():
        raise UserError(f"{path} holds labels that are no numbers, or clip_ids with other than letters and digits.")
    if (frame.groupby("video_id")["mode"].nunique() > 1).any():
        raise UserError(f"{path} puts a video in several modes; a video must be in one. Correct the mode of its clips.")
    unknown_emotions = (float("nan"),) * len(EMOTIONS)
    return [
        Segment(
            f"{check_video(video, path)}$_${clip}",
            *(video, float("nan"), float("nan"), rounded(label), unknown_emotions),
            split=mode,
            clip=clip,
            text=text.strip(),
        )
        for video, clip, text, label, mode in zip(
            *(frame[name] for name in ("video_id", "clip_id", "text")), labels, frame["mode"], strict=True
        )
    ]


def mmsa_clips(raw: Path) -> dict[tuple[str, str], Path]:
    """Return the films by video and clip."""
    return {(path.parent.name, path.stem): path for path in sorted(raw.rglob("*.mp4"))}


def find_pickle(raw: Path) -> Path | None:
    """Return the pickle of features, the unaligned one where both are there."""
    for name in PICKLES:
        paths = sorted(raw.rglob(name))
        if paths:
            return paths[0]
    return None


def pickle_series(path: Path, segments: Iterable[Segment], name: str) -> Iterator[tuple[str, dict[str, Found]]]:
    """Yield a modality's series of each video's segments by their ids, padding and zeros as unobserved.

    Raises:
        UserError: the pickle is not in MMSA's form, or holds anything but numbers, texts and arrays.
    """
    content = read_pickle(path)
    rows: dict[str, np.ndarray] = {}
    for split in SPLITS:
        part = content.get(split) if isinstance(content, dict) else None
        if not isinstance(part, dict) or "id" not in part:
            raise UserError(f"{path} lacks {split}/id, which MMSA's pickles have. Download it again.")
        ids = [str(name) for name in part["id"]]
        arrays, lengths = _arrays(part, KEYS[name], len(ids), f"{path}: {split}")
        rows |= {i: array[:length] for i, array, length in zip(ids, arrays, lengths, strict=True)}
    for video, group in groupby(sorted(segments, key=lambda s: (s.video, s.id)), key=lambda s: s.video):
        yield video, {s.id: _series(rows[s.id]) if s.id in rows else NOT_IN_SOURCE for s in group}


def _arrays(part: dict[str, Any], key: str, rows: int, where: str) -> tuple[np.ndarray, list[int]]:
    array = part.get(key)
    if not isinstance(array, np.ndarray) or array.ndim != 3 or len(array) != rows:
        raise UserError(f"{where}/{key} is no array [{rows}, T, D], one row for each id. Download it again.")
    lengths = part.get(f"{key}_lengths")
    if lengths is None:
        return array, [array.shape[1]] * rows
    if len(lengths) != rows:
        raise UserError(f"{where}/{key}_lengths has {len(lengths)} entries for {rows} ids. Download it again.")
    return array, [int(length) for length in lengths]


def _series(frames: np.ndarray) -> Found:
    values = observed(frames).astype(np.float32)
    return values if np.isfinite(values).any() else EMPTY
