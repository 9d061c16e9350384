"""A simulated sentiment corpus in CMU-MOSEI's raw layouts, with every known oddity of the real one as a named segment.

The plan (`plan`, `cases`) comes first; the files are written from it, and `expected.json` states
from the same plan, never from the preparation, what a correct preparation finds. Same seed, same bytes. 20 ordinary
videos beside the cases take about ten seconds, most of them for films.
"""

import json
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from cache.errors import UserError
from cache.publish import write_json
from pipelines.simulate.sentiment.cases import FOLDS_WITHOUT_LABELS, case_videos
from pipelines.simulate.sentiment.csd import write_csds
from pipelines.simulate.sentiment.mmsa import in_mmsa, write_mmsa
from pipelines.simulate.sentiment.plan import FOLDS, Segment, Video, ordinary_videos
from pipelines.simulate.sentiment.raw import write_raw

Layout = Literal["csd", "raw", "mmsa"]
LAYOUTS: tuple[Layout, ...] = ("csd", "raw", "mmsa")


def simulate_sentiment(out: Path, layout: Layout, videos: int, seed: int) -> None:
    """Write the corpus.

    Args:
        out: folder to write; replaced as a whole, once everything is there.
        layout: csd (computational sequences), raw (the same with Raw folders) or mmsa.
        videos: videos without oddities, beside those of the cases; at least one for each place in the folds.
        seed: of everything, at least 0.

    Raises:
        UserError: unknown layout, too few videos, a negative seed, or `out` holds something else.
    """
    if layout not in LAYOUTS or videos < len(FOLDS) or seed < 0:
        raise UserError(f"--layout must be one of {', '.join(LAYOUTS)}, --videos at least {len(FOLDS)}, so that every "
                        f"split has one, and --seed at least 0; given: {layout}, {videos} and {seed}.")  # fmt: skip
    if out.exists() and not (out / "expected.json").is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there and is no simulated corpus; it would be replaced. Give another --out.")
    random = np.random.default_rng(seed)
    plan = [*case_videos(random), *ordinary_videos(videos, random)]
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex}.partial")
    try:
        _write_layout(temporary, layout, plan, np.random.default_rng(seed + 1))
        write_json(temporary / "expected.json", _expected(layout, plan))
        _publish(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_layout(root: Path, layout: Layout, plan: Sequence[Video], random: np.random.Generator) -> None:
    root.mkdir(parents=True)
    if layout == "mmsa":
        write_mmsa(root, plan, random)
        return
    write_csds(root, plan, random)
    (root / "folds.json").write_text(json.dumps(_folds(plan), indent=1))
    if layout == "raw":
        write_raw(root / "Raw", plan)


def _publish(temporary: Path, out: Path) -> None:
    """Rename; without a flush of every small file, which takes longer than simulating them again."""
    old = out.with_name(f".{out.name}.{uuid.uuid4().hex}.old.partial")
    if out.exists():
        out.rename(old)
    temporary.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _folds(plan: Sequence[Video]) -> dict[str, list[str]]:
    folds: dict[str, list[str]] = {name: [*FOLDS_WITHOUT_LABELS.get(name, ())] for name in ("train", "valid", "test")}
    for video in plan:
        if video.fold is not None:
            folds[video.fold].append(video.id)
    return folds


def _expected(layout: Layout, plan: Sequence[Video]) -> dict[str, object]:
    listed = [(v, s) for v in plan for s in v.segments if layout != "mmsa" or in_mmsa(v, s)]
    kept = [(v, s) for v, s in listed if s.dropped is None]
    copies = sum(s.copies - 1 for _, s in listed)
    return {
        "layout": layout,
        "rows": len(listed) + copies,
        "samples": len(kept),
        "labels": {_id(layout, v, s): s.sentiment for v, s in kept},
        "duplicates": copies,
        "dropped": {s.name: {"id": _id(layout, v, s), "reason": s.dropped} for v, s in listed if s.dropped is not None},
        "zeros": sum(s.sentiment == 0 for _, s in kept),
        "segments": {s.name: _facts(layout, v, s) for v, s in kept},
    }


def _facts(layout: Layout, video: Video, segment: Segment) -> dict[str, object]:
    """Return what is known of a kept segment; its sentiment as the label file has it, not clipped."""
    return {
        "id": _id(layout, video, segment),
        "id_by_answers": interval_id(video.id, *segment.said),
        "video": video.id,
        "split": video.fold,
        "start": max(0.0, segment.start),
        "end": segment.end,
        "sentiment": segment.sentiment,
        "emotions": list(segment.emotions),
        "text": segment.text or None,
        "audio_seconds": _audio_seconds(layout, video, segment),
        "severity": segment.severity,
        "missing": _missing(layout, segment),
    }


def _id(layout: Layout, video: Video, segment: Segment) -> str:
    return f"{video.id}$_${segment.clip}" if layout == "mmsa" else interval_id(video.id, segment.start, segment.end)


def interval_id(video: str, start: float, end: float) -> str:
    """Return the id of a segment without a clip number: its interval in milliseconds."""
    return f"{video}_{round(max(0.0, start) * 1000)}_{round(end * 1000)}"


def _audio_seconds(layout: Layout, video: Video, segment: Segment) -> float | None:
    if layout == "csd" or "audio" in _missing(layout, segment):
        return None
    length = video.seconds if layout == "mmsa" or video.wav_seconds is None else video.wav_seconds
    return min(segment.end, length) - max(0.0, segment.start)


def _missing(layout: Layout, segment: Segment) -> dict[str, str]:
    """Return reasons by modality: MMSA's sound comes from the films, and its pickles have a row for every segment."""
    reasons = dict(segment.missing)
    if layout == "mmsa":
        reasons.pop("audio", None)
        if reasons.get("video") in ("unreadable", "not_in_source"):
            reasons["audio"] = reasons["video"]
        if "covarep" in reasons:
            reasons["covarep"] = "empty"
    return reasons
