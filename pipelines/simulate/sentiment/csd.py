"""The simulated corpus as computational sequences: HDF5 files in the layout of the CMU-MultimodalSDK.

`/<root name>/data/<video>/features` [T, D] and `/intervals` [T, 2] in seconds, `/<root name>/metadata/<key>`. Metadata
are JSON in some files and plain in others, arrays compressed or not, as in the real ones. Only a few columns of each
feature vary, so that the files stay small.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np

from pipelines.simulate.sentiment.plan import EMOTIONS, Video

# file, root name, columns, frames a second, column that tells of the severity
FEATURES = {
    "covarep": ("acoustic/CMU_MOSEI_COVAREP.csd", "COAVAREP", 74, 100, 1),
    "facet": ("visual/CMU_MOSEI_VisualFacet42.csd", "FACET 4.2", 35, 30, 4),
    "openface": ("visual/CMU_MOSEI_VisualOpenFace2.csd", "OpenFace_2", 713, 5, 2),
}
VARYING = 6
Sequences = Mapping[str, tuple[np.ndarray, np.ndarray]]


def write_csds(root: Path, videos: Sequence[Video], random: np.random.Generator) -> None:
    """Write labels, words, word vectors and the three kinds of frames."""
    write_csd(root / "labels/CMU_MOSEI_Labels.csd", "All Labels", _labels(videos, random), as_json=True, gzip=None)
    words = {video.id: _words(video) for video in videos}
    write_csd(root / "language/CMU_MOSEI_TimestampedWords.csd", "words", words, as_json=False, gzip=9)
    vectors = {name: (np.full((len(w), 300), 0.25, np.float32), at) for name, (w, at) in words.items()}
    path = root / "language/CMU_MOSEI_TimestampedWordVectors.csd"
    write_csd(path, "glove_vectors", vectors, as_json=True, gzip=9)
    for name, (file, title, *_) in FEATURES.items():
        frames = {v.id: feature_frames(v, name, random) for v in videos if name != "covarep" or v.in_covarep}
        write_csd(root / file, title, frames, as_json=name != "facet", gzip=4)


def write_csd(path: Path, title: str, sequences: Sequences, as_json: bool, gzip: int | None) -> None:
    """Write one file.

    Args:
        path: file.
        title: name of its root group.
        sequences: features [T, D] and intervals [T, 2] of each video.
        as_json: metadata as JSON documents, as newer files have them.
        gzip: level, or None for plain arrays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    width = next(iter(sequences.values()))[0].shape[1]
    metadata: dict[str, object] = {
        "root name": title,
        "computational sequence version": "1.0",
        "dataset name": "CMU_MOSEI",
    }
    metadata |= {"dimension names": [f"{title} {place}" for place in range(width)]} if as_json else {}
    options = {} if gzip is None else {"compression": "gzip", "compression_opts": gzip}
    with h5py.File(path, "w") as file:
        for video, (features, intervals) in sequences.items():
            group = file.create_group(f"{title}/data/{video}")
            group.create_dataset("features", data=features, **options)
            group.create_dataset("intervals", data=intervals, **options)
        for key, value in metadata.items():
            text = json.dumps(value) if as_json else str(value)
            file.create_dataset(f"{title}/metadata/{key}", data=[text], dtype=h5py.string_dtype())


def feature_frames(video: Video, name: str, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return a video's frames [T, D] and their intervals [T, 2], the cases' harm included."""
    _, _, columns, rate, telling = FEATURES[name]
    count = int(video.seconds * rate)
    frames = np.zeros((count, columns), np.float32)
    frames[:, :VARYING] = np.round(random.normal(0, 1, (count, VARYING)) * 2) / 2
    frames[:, VARYING:8] = 1  # never all zero: that is what a frame without a face or a voice is
    starts = np.arange(count) / rate
    for segment in video.segments:
        inside = (starts >= segment.start) & (starts < segment.end)
        frames[inside, telling] += np.float32(segment.severity["facet" if name == "openface" else name])
        _harm(frames, inside, segment.harm, name)
    return frames, np.stack([starts, starts + 1 / rate], axis=1)


def _harm(frames: np.ndarray, inside: np.ndarray, harm: str | None, name: str) -> None:
    if harm == f"{name}_zero":
        frames[inside] = 0
    if harm == f"{name}_nonfinite":
        rows = np.flatnonzero(inside)
        frames[rows[::3], 3] = -np.inf
        frames[rows, 5] = np.nan


def _labels(videos: Sequence[Video], random: np.random.Generator) -> Sequences:
    """Return sentiment and emotions [segments, 7]; rows out of time order where the video says so."""
    sequences = {}
    for place in random.permutation(len(videos)):
        rows = [s for s in videos[place].segments for _ in range(s.copies)]
        if videos[place].shuffled:
            rows = rows[::-1]
        features = np.array([(s.sentiment, *s.emotions) for s in rows], np.float32).reshape(-1, 1 + len(EMOTIONS))
        sequences[videos[place].id] = (features, np.array([(s.start, s.end) for s in rows], np.float64).reshape(-1, 2))
    return sequences


def _words(video: Video) -> tuple[np.ndarray, np.ndarray]:
    """Return words [T, 1] as bytes of one length, pauses as `sp`, and their intervals."""
    words = sorted((w for s in video.segments for w in s.spoken), key=lambda word: word[1])
    rows: list[tuple[str, float, float]] = []
    clock = 0.0
    for word, start, end in words:
        rows += [("sp", clock, start)] if start > clock + 0.05 else []
        rows.append((word, start, end))
        clock = end
    rows.append(("sp", clock, video.seconds))
    text = np.array([[word.encode()] for word, _, _ in rows])
    return text, np.array([(start, end) for _, start, end in rows])
