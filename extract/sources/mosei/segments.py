"""Labelled segments of CMU-MOSEI, whatever layout they come from, and the rules that leave some of them out.

A segment is a video and an interval; its id is made of both, never of a row number: the label file's rows, the
transcript's clips and MMSA's clips are three different numberings.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import pandas as pd

from cache.errors import UserError
from extract.samples import CountStep

EMOTIONS = ("happy", "sad", "anger", "surprise", "disgust", "fear")
LARGEST = 3.0  # sentiment is the mean of annotators' answers from -3 to 3
SHORT_SECONDS = 0.5


@dataclass(frozen=True)
class Segment:
    """A labelled segment."""

    id: str
    video: str
    start: float
    """Seconds from the video's start, at least 0; NaN where a layout has no intervals (MMSA)."""
    end: float
    sentiment: float
    emotions: tuple[float, ...]
    """In the order of EMOTIONS, NaN where unknown."""
    split: str | None = None
    clip: str | None = None
    """Number of its sentence in the transcript, where a layout gives it."""
    text: str | None = None
    """Text, where a layout gives it with the label."""

    @property
    def labels(self) -> tuple[float, ...]:
        """Sentiment and emotions."""
        return (self.sentiment, *self.emotions)


@dataclass
class Funnel:
    """Steps so far, and the segments that they left out."""

    steps: list[CountStep] = field(default_factory=list)
    dropped: list[dict[str, str]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    """What was repaired or ignored without losing a segment."""

    def keep(
        self, segments: Iterable[Segment], step: str, reason: str, rule: Callable[[Segment], bool]
    ) -> list[Segment]:
        """Keep the segments that a rule holds for; log the others."""
        kept: list[Segment] = []
        out: list[Segment] = []
        for segment in segments:
            (kept if rule(segment) else out).append(segment)
        self.dropped += [{"source_id": s.id, "step": step, "reason": reason} for s in out]
        self.steps.append(CountStep(step=step, kept=len(kept), dropped=len(out)))
        return kept

    def table(self) -> pd.DataFrame:
        """Return what was left out: source_id, step, reason."""
        return pd.DataFrame(self.dropped, columns=["source_id", "step", "reason"], dtype=str)


def interval_id(video: str, start: float, end: float) -> str:
    """Return `<video>_<start>_<end>` in milliseconds, from the clamped start."""
    return f"{video}_{round(start * 1000)}_{round(end * 1000)}"


def check_video(video: str, where: object) -> str:
    """Return a video's id, which becomes part of file names.

    Raises:
        UserError: it holds other characters than letters, digits, '-' and '_'.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", video):
        raise UserError(f"{where} names the video {video!r}; ids consist of letters, digits, '-' and '_'.")
    return video


def clamped(video: str, start: float, end: float, labels: tuple[float, ...], counts: Counter[str]) -> Segment:
    """Return a segment whose start is at least 0."""
    counts["start before the video, set to 0"] += start < 0
    first = max(0.0, start)
    return Segment(
        interval_id(video, first, end), video, first, end, rounded(labels[0]), tuple(map(rounded, labels[1:]))
    )


def rounded(label: float) -> float:
    """Return a label that is the same from a file of float32 and from a text."""
    return round(float(label), 6)


def without_duplicates(segments: Iterable[Segment], funnel: Funnel) -> list[Segment]:
    """Keep one of each id, in order of ids.

    Raises:
        UserError: two of one id differ.
    """
    ordered = sorted(segments, key=lambda s: s.id)
    seen: dict[str, Segment] = {}

    def first(segment: Segment) -> bool:
        known = seen.setdefault(segment.id, segment)
        if repr(known) != repr(segment):  # by text: NaN equals NaN here
            raise UserError(f"Segment {segment.id} is listed twice with different contents. Leave one of them.")
        return known is segment

    return funnel.keep(ordered, "duplicates", "listed twice", first)


def with_lengths(segments: Iterable[Segment], funnel: Funnel) -> list[Segment]:
    """Leave out intervals of no length; those of MMSA are not known."""
    kept = funnel.keep(segments, "interval", "interval of no length", lambda s: not s.end <= s.start)
    funnel.counts[f"shorter than {SHORT_SECONDS:g} s"] += sum(s.end - s.start < SHORT_SECONDS for s in kept)
    return kept


def in_folds(
    segments: Iterable[Segment], folds: Mapping[str, str], unlisted: str | None, funnel: Funnel
) -> list[Segment]:
    """Give each segment the split of its video.

    Args:
        segments: segments.
        folds: split by video.
        unlisted: split of the videos that are in no fold; None leaves them out.
        funnel: log.
    """
    placed = [replace(s, split=folds.get(s.video, unlisted)) for s in segments]
    funnel.counts["fold ids without a label"] += len(set(folds) - {s.video for s in placed})
    return funnel.keep(placed, "folds", "video in no fold", lambda s: s.split is not None)


def is_known(values: Iterable[float]) -> bool:
    """Tell whether every label is a number."""
    return all(math.isfinite(value) for value in values)
