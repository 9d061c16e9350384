"""Image, audio and video files: decoded in this process by Pillow, libsndfile and FFmpeg, damage told from content.

Formats of images are named, because some of Pillow's start another program (EPS) or have no signature. A file that
declares more than it holds is damaged: what is left of it would stand for the whole. Costs one read of the file; a
video is decoded twice when frames are asked for.
"""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
from PIL import Image

IMAGE_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
IMAGE_ERRORS = (
    *(OSError, ValueError, SyntaxError, RuntimeError, EOFError, KeyError, IndexError, TypeError, AttributeError),
    *(OverflowError, MemoryError, struct.error, Image.DecompressionBombError),
)
"""What Pillow's formats raise for damaged files."""
LOWEST_RATE_HZ, HIGHEST_RATE_HZ = 1_000, 768_000
"""Rates of real recordings; a damaged header may claim any, and resampling would take all memory."""
FULL_SCALE = 2.0**31
"""Of 32-bit integer samples; spectra of louder ones overflow."""
WHOLE = 0.9
"""Share of what a file declares from which on it counts as whole: containers count roughly."""
STREAMED = (0, 0xFFFFFFFF)
"""Sizes in a WAV header that was written before the sound was known."""


class UnreadableValue(Exception):
    """A value is there but cannot be used; the text is the reason, without any content of the value."""


@dataclass(frozen=True)
class Waveform:
    """Mono audio: float32 [n] at `rate_hz`."""

    samples: np.ndarray
    rate_hz: int


@dataclass(frozen=True)
class Video:
    """A video file; decoded when frames are asked for, since whole clips do not fit the memory."""

    path: Path

    def frames(self, most: int) -> list[Image.Image]:
        """Return `most` RGB frames, evenly spaced over the file, or all of a shorter one.

        Decodes the file twice: first to count its frames, which containers get wrong.

        Raises:
            UnreadableValue: it cannot be decoded, has no frames, or ends long before the end that it declares.
        """
        count = sum(1 for _ in self._decoded())
        if not count:
            raise UnreadableValue("video has no frames")
        # The middle frame of each of `most` equal parts.
        wanted = {(2 * part + 1) * count // (2 * most) for part in range(most)} if count > most else set(range(count))
        return [self._picture(frame) for number, frame in enumerate(self._decoded()) if number in wanted]

    def _decoded(self) -> Iterator[Any]:
        count, end = 0, 0.0
        try:
            with av.open(str(self.path)) as container:
                if not container.streams.video:
                    raise UnreadableValue("file has no video stream")
                stream = container.streams.video[0]
                for frame in container.decode(video=0):
                    count, end = count + 1, frame.time or end
                    yield frame
        except (av.FFmpegError, OSError, ValueError) as error:
            raise UnreadableValue(f"video cannot be decoded ({type(error).__name__})") from error
        if count and _ends_early(stream, count, end):
            raise UnreadableValue("video is cut short")

    def _picture(self, frame: Any) -> Image.Image:
        try:
            picture: Image.Image = frame.to_image()
        except (av.FFmpegError, OSError, ValueError, MemoryError) as error:
            raise UnreadableValue(f"video cannot be decoded ({type(error).__name__})") from error
        return picture


def _ends_early(stream: Any, count: int, last: float) -> bool:
    """Whether the last of `count` frames, shown at `last` seconds, is long before the end that a file declares.

    Where the file says a time and no number, times are compared: frames of a varying rate cannot be counted on.
    """
    if stream.frames:
        return bool(count < WHOLE * stream.frames)
    step = last / (count - 1) if count > 1 else 1 / (stream.average_rate or 1)
    return bool(last + step < WHOLE * _declared_seconds(stream))


def _declared_seconds(stream: Any) -> float:
    """Return the length that Matroska and WebM write, 0 where there is none."""
    hours, _, rest = stream.metadata.get("DURATION", "").partition(":")
    minutes, _, seconds = rest.partition(":")
    try:
        length = timedelta(hours=int(hours), minutes=int(minutes), seconds=float(seconds))
    except (ValueError, OverflowError):
        return 0.0
    return length.total_seconds()


def decode_image(path: Path) -> Image.Image:
    """Return the first picture of a file, mode L or RGB, 8 bit.

    Raises:
        UnreadableValue: damaged, of no known format, or with values that are not finite.
    """
    try:
        with Image.open(io.BytesIO(path.read_bytes()), formats=_image_formats()) as image:
            image.load()
            return _eight_bit(image)
    except IMAGE_ERRORS as error:
        raise UnreadableValue(f"image cannot be decoded ({type(error).__name__})") from error


@cache
def _image_formats() -> tuple[str, ...]:
    """Return those that this build of Pillow has."""
    Image.init()
    return tuple(name for name in IMAGE_FORMATS if name in Image.OPEN)


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":  # 16 bit saturates when converted directly
        pixels = np.asarray(image, np.float32)
        if not np.isfinite(pixels).all():
            raise UnreadableValue("image holds values that are not finite")
        low, high = float(pixels.min()), float(pixels.max())
        scaled = (pixels - low) / max(high - low, 1e-6) * 255
        return Image.fromarray(scaled.astype(np.uint8))
    return image.convert("L" if image.mode in ("L", "1", "LA") else "RGB")


def decode_audio(path: Path) -> Waveform:
    """Return the mean of a file's channels.

    Raises:
        UnreadableValue: damaged, empty, not finite, or with a rate or samples that no recording has.
    """
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError, TypeError, ValueError, MemoryError) as error:
        # TypeError: a name that ends in .raw
        raise UnreadableValue("audio cannot be decoded") from error
    if _is_torn_wav(path):
        raise UnreadableValue("audio is cut short")
    if not len(samples):
        raise UnreadableValue("empty audio")
    if not np.isfinite(samples).all():
        raise UnreadableValue("audio holds values that are not finite")
    if np.abs(samples).max() > FULL_SCALE:
        raise UnreadableValue("audio holds samples beyond 32-bit full scale")
    if not LOWEST_RATE_HZ <= rate <= HIGHEST_RATE_HZ:
        raise UnreadableValue(f"audio declares {int(rate)} Hz")
    return Waveform(samples.mean(axis=1), int(rate))


def _is_torn_wav(path: Path) -> bool:
    """Whether a WAV file ends long before the size in its header; libsndfile reads what is left without a word."""
    with path.open("rb") as file:
        head = file.read(8)
    if len(head) < 8 or head[:4] != b"RIFF":
        return False
    declared = int.from_bytes(head[4:], "little")
    return declared not in STREAMED and path.stat().st_size < WHOLE * (8 + declared)
