"""What is predicted on CMU-MOSEI: sentiment as binary, seven classes or a number, or the six emotions.

Published work differs in what it makes of a sentiment of exactly 0 (a fifth of the segments), so it is an option:
`nonneg` counts it as positive, `exclude_zero` leaves it out. Seven classes round away from zero, [-3, -2) .. (2, 3],
with 0 a class of its own. An emotion is present where its mean intensity is above 0; several can be.
"""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

from extract.sources.mosei.segments import EMOTIONS, LARGEST, Funnel, Segment, is_known
from extract.task import LabelSpec

Task = Literal["binary", "seven", "regression", "emotions"]
SEVEN = ("-3", "-2", "-1", "0", "1", "2", "3")


def label_spec(task: Task, zero: str) -> LabelSpec:
    """Return the label of a task; `zero` is `nonneg` or `exclude_zero`."""
    if task == "emotions":
        return LabelSpec(kind="multilabel", names=EMOTIONS)
    if task == "seven":
        return LabelSpec(kind="multiclass", names=("sentiment",), classes=SEVEN)
    if task == "regression":
        return LabelSpec(kind="regression", names=("sentiment",))
    return LabelSpec(kind="binary", names=("nonnegative" if zero == "nonneg" else "positive",))


def usable(segments: Iterable[Segment], task: Task, zero: str, out_of_range: str, funnel: Funnel) -> list[Segment]:
    """Leave out segments that have no label for the task.

    Args:
        segments: segments.
        task: the task.
        zero: nonneg or exclude_zero, for the binary task.
        out_of_range: clip or drop, for sentiments outside [-3, 3].
        funnel: log.
    """
    if task == "emotions":
        return funnel.keep(segments, "label", "no label", lambda s: is_known(s.emotions))
    known = funnel.keep(segments, "label", "no label", lambda s: math.isfinite(s.sentiment))
    if out_of_range == "drop":
        known = funnel.keep(known, "range", "sentiment outside -3 .. 3", lambda s: abs(s.sentiment) <= LARGEST)
    funnel.counts["sentiment clipped to -3 .. 3"] += sum(abs(s.sentiment) > LARGEST for s in known)
    clipped = [replace(s, sentiment=min(LARGEST, max(-LARGEST, s.sentiment))) for s in known]
    if task == "binary" and zero == "exclude_zero":
        return funnel.keep(clipped, "zero", "sentiment of 0", lambda s: s.sentiment != 0)
    return clipped


def targets(segment: Segment, task: Task) -> dict[str, float]:
    """Return the label columns of a usable segment."""
    if task == "emotions":
        return {f"label_{name}": float(value > 0) for name, value in zip(EMOTIONS, segment.emotions, strict=True)}
    if task == "regression":
        return {"label": segment.sentiment}
    return {"label": float(seven_class(segment.sentiment) if task == "seven" else segment.sentiment >= 0)}


def seven_class(sentiment: float) -> int:
    """Return the index 0 .. 6 of a sentiment's class: away from zero to the next whole number."""
    return int(math.copysign(math.ceil(abs(sentiment)), sentiment)) + 3
