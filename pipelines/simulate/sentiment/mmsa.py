"""The simulated corpus as MMSA lays it out: label.csv, one film a segment, and pickles of padded features."""

import csv
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipelines.simulate.sentiment.csd import FEATURES, feature_frames
from pipelines.simulate.sentiment.media import write_film
from pipelines.simulate.sentiment.plan import Segment, Video

COLUMNS = ("video_id", "clip_id", "text", "label", "label_T", "label_A", "label_V", "annotation", "mode")
STEPS = {"covarep": 60, "facet": 45}
KEYS = {"covarep": "audio", "facet": "vision"}


def write_mmsa(root: Path, videos: Sequence[Video], random: np.random.Generator) -> None:
    """Write `label.csv`, `Raw/<video>/<clip>.mp4` and `Processed/unaligned_50.pkl`."""
    listed = [(video, segment) for video in videos for segment in video.segments if in_mmsa(video, segment)]
    root.mkdir(parents=True, exist_ok=True)
    with (root / "label.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        writer.writerows(_row(v, s) for v, s in listed for _ in range(s.copies))
    for video, segment in listed:
        end = min(segment.end, video.seconds)
        write_film(root / f"Raw/{video.id}/{segment.clip}.mp4", video, max(0, segment.start), end)
    path = root / "Processed/unaligned_50.pkl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(_features(listed, random), protocol=4))


def in_mmsa(video: Video, segment: Segment) -> bool:
    """Tell whether MMSA would list a segment: a clip with a length, in a fold."""
    return video.fold is not None and segment.end > segment.start


def _row(video: Video, segment: Segment) -> list[object]:
    value = segment.sentiment
    annotation = "Positive" if value > 0 else "Negative" if value < 0 else "Neutral"
    label = "" if value != value else repr(value)
    return [video.id, segment.clip, segment.text, label, "", "", "", annotation, video.fold]


def _features(listed: Sequence[tuple[Video, Segment]], random: np.random.Generator) -> dict[str, dict[str, object]]:
    content: dict[str, dict[str, object]] = {}
    for fold in ("train", "valid", "test"):
        chosen = [(v, s) for v, s in listed if v.fold == fold]
        content[fold] = {
            "id": [f"{v.id}$_${s.clip}" for v, s in chosen],
            "raw_text": [s.text for _, s in chosen],
            "regression_labels": np.array([s.sentiment for _, s in chosen], np.float32),
        }
        for name, key in KEYS.items():
            arrays = [_padded(v, s, name, random) for v, s in chosen]
            content[fold][key] = np.stack([array for array, _ in arrays])
            content[fold][f"{key}_lengths"] = [length for _, length in arrays]
    return content


def _padded(video: Video, segment: Segment, name: str, random: np.random.Generator) -> tuple[np.ndarray, int]:
    """Return [steps, D], zeros after the segment's frames, and their number; all zero where a video has none."""
    frames, intervals = feature_frames(video, name, random)
    if name == "covarep" and not video.in_covarep:
        frames = np.zeros_like(frames)
    inside = frames[(intervals[:, 0] >= segment.start) & (intervals[:, 0] < segment.end)]
    chosen = inside[:: max(1, len(inside) // STEPS[name] + 1)]
    padded = np.zeros((STEPS[name], FEATURES[name][2]), np.float32)
    padded[: len(chosen)] = chosen
    return padded, len(chosen)
