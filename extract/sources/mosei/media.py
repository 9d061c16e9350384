"""Sound and film of segments: cut from a video's files, resampled, written once as small files.

FFmpeg (PyAV) decodes films, and their sound where there is no wav file; soundfile reads wav files without decoding what
lies before a segment. Sound becomes mono 16-bit wav. Films become MPEG-4 with few frames a second and a short side of
few pixels, which is what encoders of faces and scenes take; the real corpus shrinks from 120 GB to a few.
"""

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import av
import numpy as np
import soundfile
from av.audio.stream import AudioStream
from av.codec.context import Flags
from av.container import InputContainer
from av.video.stream import VideoStream
from scipy.signal import resample_poly

from cache.publish import write_bytes

BLACK = 20  # of 255; black is 16 in video's limited range
F = TypeVar("F", av.AudioFrame, av.VideoFrame)
NOT_RECORDED, EMPTY, UNREADABLE, NOT_IN_SOURCE = "not_recorded", "empty", "unreadable", "not_in_source"


class NotThere(Exception):
    """A segment has no usable sound or film; the text is the reason for `<modality>_missing_reason`."""


@dataclass(frozen=True)
class Cut:
    """What is cut: a file and an interval in seconds; an infinite end is the file's."""

    source: Path
    start: float
    end: float


def find_media(raw: Path, suffix: str) -> dict[str, Path]:
    """Return files by stem, those below a folder named Full first: segments were also cut by others."""
    found: dict[str, Path] = {}
    paths = [path for path in raw.rglob(f"*{suffix}") if path.is_file()]
    for path in sorted(paths, key=lambda p: ("Full" not in p.parts, len(p.parts), p.as_posix())):
        found.setdefault(path.stem, path)
    return found


def write_sound(path: Path, cut: Cut, rate_hz: int) -> None:
    """Write a cut's sound as mono 16-bit wav.

    Raises:
        NotThere: the file ends before the segment, is empty or damaged.
    """
    samples, rate = _wav_samples(cut) if cut.source.suffix.lower() == ".wav" else _film_samples(cut)
    common = math.gcd(rate_hz, rate)
    if rate != rate_hz:
        samples = resample_poly(samples, rate_hz // common, rate // common).astype(np.float32)
    content = io.BytesIO()
    soundfile.write(content, np.clip(samples, -1, 1), rate_hz, format="WAV", subtype="PCM_16")
    write_bytes(path, content.getvalue())


def _wav_samples(cut: Cut) -> tuple[np.ndarray, int]:
    try:
        with soundfile.SoundFile(cut.source) as file:
            rate, total = int(file.samplerate), len(file)
            first, last = round(cut.start * rate), total if math.isinf(cut.end) else round(cut.end * rate)
            if not total or first >= total:
                raise NotThere(NOT_RECORDED if total else EMPTY)
            file.seek(first)
            samples = file.read(max(1, last - first), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise NotThere(UNREADABLE) from error
    return _checked(samples.mean(axis=1)), rate


def _film_samples(cut: Cut) -> tuple[np.ndarray, int]:
    """Return the samples of a film's sound, [n] in mono at its own rate."""
    try:
        with av.open(str(cut.source)) as container:
            if not container.streams.audio:
                raise NotThere(NOT_IN_SOURCE)
            stream = container.streams.audio[0]
            rate = int(stream.rate)
            mono = av.AudioResampler(format="flt", layout="mono", rate=rate)
            parts: list[np.ndarray] = []
            clock: float | None = None
            _seek(container, stream, cut)
            for frame in _until(container.decode(stream), cut.end):
                clock = float(frame.time or 0) if clock is None else clock
                parts += [part.to_ndarray()[0] for part in mono.resample(frame)]
    except (av.error.FFmpegError, ValueError) as error:
        raise NotThere(UNREADABLE) from error
    if clock is None:
        raise NotThere(NOT_RECORDED)
    first = max(0, round((cut.start - clock) * rate))
    last = None if math.isinf(cut.end) else first + max(1, round((cut.end - cut.start) * rate))
    return _checked(np.concatenate(parts)[first:last]), rate


def _checked(samples: np.ndarray) -> np.ndarray:
    if not len(samples):
        raise NotThere(NOT_RECORDED)
    if not np.isfinite(samples).all():
        raise NotThere(UNREADABLE)
    return samples


def _seek(container: InputContainer, stream: VideoStream | AudioStream, cut: Cut) -> None:
    """Go to the last key frame before a cut."""
    if cut.start > 0 and stream.time_base:
        container.seek(int(cut.start / stream.time_base), stream=stream)


def _until(frames: Iterator[F], end: float) -> Iterator[F]:
    """Yield the frames with a time before `end`."""
    for frame in frames:
        if frame.time is not None and frame.time >= end:
            return
        yield frame


def write_film(path: Path, cut: Cut, frames_per_second: int, pixels: int, quantiser: int) -> None:
    """Write a cut's film.

    Args:
        path: file to write.
        cut: file and interval.
        frames_per_second: of what is written; each is what the source shows at that time.
        pixels: short side of what is written; smaller sources keep their size.
        quantiser: of MPEG-4, from 1, the finest, to 31.

    Raises:
        NotThere: the file ends before the segment, is black or damaged.
    """
    try:
        with av.open(str(cut.source)) as container:
            if not container.streams.video:
                raise NotThere(NOT_IN_SOURCE)
            pictures = list(_pictures(container, cut, frames_per_second, pixels))
    except (av.error.FFmpegError, ValueError) as error:
        raise NotThere(UNREADABLE) from error
    if not pictures:
        raise NotThere(NOT_RECORDED)
    if max(int(picture.max()) for picture in pictures) <= BLACK:
        raise NotThere(EMPTY)
    write_bytes(path, _encoded(pictures, frames_per_second, quantiser))


def _pictures(container: InputContainer, cut: Cut, frames_per_second: int, pixels: int) -> Iterator[np.ndarray]:
    """Yield what is shown at start, start + 1 / frames_per_second, ...: uint8 [height, width, 3]."""
    stream = container.streams.video[0]
    scale = min(1.0, pixels / max(1, min(stream.width, stream.height)))
    width, height = (max(2, 2 * round(side * scale / 2)) for side in (stream.width, stream.height))
    shown: av.VideoFrame | None = None
    until, number = 0.0, 0
    _seek(container, stream, cut)
    for frame in _until(container.decode(stream), cut.end):
        while shown is not None and _due(cut, number, frames_per_second) < min(float(frame.time or 0), cut.end):
            yield shown.to_ndarray(format="rgb24", width=width, height=height)
            number += 1
        shown, until = frame, float(frame.time or 0) + 1 / float(stream.average_rate or frames_per_second)
    while shown is not None and _due(cut, number, frames_per_second) < min(until, cut.end):
        yield shown.to_ndarray(format="rgb24", width=width, height=height)
        number += 1


def _due(cut: Cut, number: int, frames_per_second: int) -> float:
    """Return the time of a picture; a microsecond later, so that rounding decides for the frame that starts then."""
    return cut.start + number / frames_per_second + 1e-6


def _encoded(pictures: list[np.ndarray], frames_per_second: int, quantiser: int) -> bytes:
    """Return an mp4 file without dates or versions in it, so that the same film gives the same bytes."""
    content = io.BytesIO()
    with av.open(content, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("mpeg4", rate=frames_per_second)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        codec = stream.codec_context
        codec.thread_count, codec.qmin, codec.qmax = 1, quantiser, quantiser
        codec.flags |= Flags.bitexact
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return content.getvalue()
