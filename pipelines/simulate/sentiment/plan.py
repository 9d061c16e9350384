"""What the simulated sentiment corpus is: videos, labelled segments, severities, and what a preparation must find.

Each modality sees a severity of its own, a part of it shared; the sentiment follows their sum, so one modality tells of
it imperfectly and all together clearly better. The named edge cases (`cases`) come first, then ordinary
videos. Everything that is written later, and `expected.json`, follows from this plan.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MODALITIES = ("text", "audio", "video", "covarep", "facet")
EMOTIONS = ("happy", "sad", "anger", "surprise", "disgust", "fear")
PAD_SECONDS = 0.5  # the label file's intervals are a sentence padded on both sides
FOLDS = ("train", "train", "valid", "train", "test")
POSITIVE = ("wonderful", "funny", "moving", "clever", "charming")
NEGATIVE = ("dull", "awful", "clumsy", "lifeless", "stale")
NEUTRAL = ("the", "film", "um", "scene", "with", "actor", "and", "story", "this", "plot")


@dataclass(frozen=True)
class Segment:
    """A labelled segment; times in seconds from the video's start."""

    name: str
    video: str
    clip: int
    """Number of its sentence in the transcript: not its place in the label file."""
    start: float
    end: float
    said: tuple[float, float]
    """Interval of the sentence without the padding."""
    text: str
    spoken: tuple[tuple[str, float, float], ...]
    """Words of its own with their times."""
    sentiment: float
    answers: tuple[str, ...]
    """Sentiment as each annotator gave it."""
    emotions: tuple[float, ...]
    severity: dict[str, float]
    dropped: str | None = None
    """Reason for which no task can use it."""
    missing: dict[str, str] = field(default_factory=dict)
    """Reason of each modality that is missing in spite of the rest of the corpus having it."""
    copies: int = 1
    """Times that the label file lists it."""
    harm: str | None = None
    """What is done to its feature frames."""


@dataclass(frozen=True)
class Video:
    """A video with its media's oddities."""

    id: str
    seconds: float
    fold: str | None
    segments: tuple[Segment, ...]
    wav: str = "plain"
    """plain, stereo, slow, header_only, absent, short or truncated."""
    wav_seconds: float | None = None
    """Length of the wav file where it is not the video's."""
    film: str = "plain"
    """plain, absent, truncated or black."""
    in_covarep: bool = True
    shuffled: bool = False
    """The label file's rows are not in order of time."""
    extra_clips: tuple[tuple[int, float, float], ...] = ()
    """Sentences of the transcript that nobody labelled."""


def make_segment(
    random: np.random.Generator,
    name: str,
    video: str,
    clip: int,
    start: float,
    end: float,
    speech: tuple[float, float] | None = None,
    **changes: Any,
) -> Segment:
    """Return a segment whose severities, sentiment, emotions, answers and words are drawn.

    Args:
        random: what draws.
        name: name of the case, or `<video>/<clip>`.
        video: id of the video.
        clip: number of the sentence in the transcript.
        start: start of the labelled interval.
        end: its end.
        speech: interval in which the words are spoken, if that is not the sentence's.
        changes: values of fields that are not drawn.
    """
    shared = random.normal(0, 0.6)
    severity = {modality: float(shared + random.normal(0, 1)) for modality in MODALITIES}
    sentiment = float(np.clip(np.round(np.mean(list(severity.values())) * 6), -9, 9)) / 3
    said = _said(start, end)
    words = _words(random, severity["text"], max(0, min(12, int(3 * (said[1] - said[0])))))
    drawn: dict[str, Any] = {
        "said": said,
        "text": " ".join(words),
        "spoken": timed(words, *(speech or said)),
        "sentiment": sentiment,
        "answers": answers(sentiment),
        "emotions": tuple(float(max(0, round(v))) / 3 for v in random.normal(0.2, 1.2, len(EMOTIONS))),
        "severity": severity,
    }
    return Segment(name, video, clip, start, end, **{**drawn, **changes})


def timed(words: Iterable[str], start: float, end: float) -> tuple[tuple[str, float, float], ...]:
    """Spread words evenly over an interval."""
    listed = list(words)
    edges = np.linspace(start, end, len(listed) + 1)
    return tuple((word, float(a), float(b)) for word, a, b in zip(listed, edges[:-1], edges[1:], strict=True))


def answers(sentiment: float) -> tuple[str, ...]:
    """Return three whole numbers with that mean, a multiple of 1/3."""
    total = round(sentiment * 3)
    low = total // 3
    return tuple(str(low + (place < total - 3 * low)) for place in range(3))


def ordinary_videos(count: int, random: np.random.Generator) -> list[Video]:
    """Return videos without oddities: three to five segments, pauses of a second and more between them."""
    videos = []
    for number in range(count):
        identity = _identity(number, random)
        clock, segments = 1.0, []
        for clip in range(int(random.integers(3, 6))):
            end = clock + float(random.integers(20, 45)) / 10
            name = f"{identity}/{clip}"
            segments.append(make_segment(random, name, identity, clip, clock, end, **_gaps(random)))
            clock = round(end + float(random.integers(1, 3)), 3)
        videos.append(Video(identity, clock, FOLDS[number % len(FOLDS)], tuple(segments)))
    return videos


def _said(start: float, end: float) -> tuple[float, float]:
    padded = end - start > 3 * PAD_SECONDS
    return (max(0.0, start + PAD_SECONDS), end - PAD_SECONDS) if padded else (max(0.0, start), end)


def _words(random: np.random.Generator, severity: float, count: int) -> list[str]:
    chance = 1 / (1 + np.exp(-2 * severity))
    telling = [str(random.choice(POSITIVE if random.random() < chance else NEGATIVE)) for _ in range(count)]
    return [word if random.random() < 0.5 else str(random.choice(NEUTRAL)) for word in telling]


def _identity(number: int, random: np.random.Generator) -> str:
    """Return an id of six digits or, three times out of four, one in the form of YouTube's."""
    if number % 4 == 3:
        return str(200_000 + number)
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return "".join(random.choice(list(letters), 7)) + f"{number:04d}"


def _gaps(random: np.random.Generator) -> dict[str, Any]:
    """Hide faces in a tenth of the segments: a frame without a face is all zero in FACET."""
    return {"harm": "facet_zero", "missing": {"facet": "empty"}} if random.random() < 0.1 else {}
