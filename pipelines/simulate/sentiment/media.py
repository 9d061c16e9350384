"""Waveforms and films of the simulated corpus: a tone whose pitch, and a picture whose brightness, tell of a severity.

Films are 32 x 32 pixels at 5 frames a second with a mono track, written by FFmpeg (PyAV) without dates or versions in
the file, so that the same plan gives the same bytes.
"""

import math
from pathlib import Path

import av
import numpy as np
import soundfile
from av.codec.context import Flags

from pipelines.simulate.sentiment.plan import Segment, Video

RATE_HZ, SLOW_HZ, STEREO_HZ = 16_000, 8_000, 44_100
FRAMES_PER_SECOND, SIDE = 5, 32
KEPT_OF_DAMAGED = 0.4


def write_wav(path: Path, video: Video) -> None:
    """Write a video's waveform with its oddity; nothing where it is absent."""
    if video.wav == "absent":
        return
    rate = {"slow": SLOW_HZ, "stereo": STEREO_HZ}.get(video.wav, RATE_HZ)
    samples = waveform(video, rate, 0, video.seconds)
    if video.wav == "header_only":
        samples = samples[:0]
    if video.wav == "short" and video.wav_seconds:
        samples = samples[: int(video.wav_seconds * rate)]
    if video.wav == "stereo":
        samples = np.stack([samples, samples], axis=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype="PCM_16")
    if video.wav == "truncated" and video.wav_seconds:
        header = 44
        path.write_bytes(path.read_bytes()[: header + 2 * int(video.wav_seconds * rate)])


def write_film(path: Path, video: Video, start: float, end: float) -> None:
    """Write the part of a video from `start` to `end` seconds with its sound; nothing where it is absent."""
    if video.film == "absent":
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = waveform(video, RATE_HZ, start, end)
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        _write_streams(container, _pictures(video, start, end), samples)
    if video.film == "truncated":
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * KEPT_OF_DAMAGED)])


def waveform(video: Video, rate_hz: int, start: float, end: float) -> np.ndarray:
    """Return float32 samples: a quiet hum, and in each segment a tone of 400 Hz, half an octave more per severity."""
    time = np.arange(int(start * rate_hz), int(end * rate_hz)) / rate_hz
    samples = 0.02 * np.sin(2 * math.pi * 60 * time)
    for segment in video.segments:
        inside = (time >= segment.start) & (time < segment.end)
        samples[inside] = 0.4 * np.sin(2 * math.pi * 400 * 2 ** (segment.severity["audio"] / 2) * time[inside])
    return samples.astype(np.float32)


def _pictures(video: Video, start: float, end: float) -> list[np.ndarray]:
    """Return grey pictures [32, 32, 3]: a gradient around the brightness of the segment that is on."""
    pictures = []
    for number in range(max(1, round((end - start) * FRAMES_PER_SECOND))):
        level = 0.0 if video.film == "black" else 128 + 30 * _severity(video.segments, start, number)
        slope = 0 if video.film == "black" else np.linspace(-16, 16, SIDE)
        row = np.clip(level + slope * np.ones(SIDE), 0, 255).astype(np.uint8)
        pictures.append(np.broadcast_to(row[None, :, None], (SIDE, SIDE, 3)).copy())
    return pictures


def _severity(segments: tuple[Segment, ...], start: float, number: int) -> float:
    now = start + (number + 0.5) / FRAMES_PER_SECOND
    return next((s.severity["video"] for s in reversed(segments) if s.start <= now < s.end), 0.0)


def _write_streams(container: "av.container.OutputContainer", pictures: list[np.ndarray], samples: np.ndarray) -> None:
    film = container.add_stream("mpeg4", rate=FRAMES_PER_SECOND)
    film.width = film.height = SIDE
    film.pix_fmt, film.codec_context.thread_count = "yuv420p", 1
    film.codec_context.qmin = film.codec_context.qmax = 3
    sound = container.add_stream("mp2", rate=RATE_HZ, layout="mono")  # twenty times as fast as AAC
    sound.codec_context.bit_rate = 32_000
    for stream in (film, sound):
        stream.codec_context.flags |= Flags.bitexact
    for picture in pictures:
        container.mux(film.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
    container.mux(film.encode())
    frame = av.AudioFrame.from_ndarray((samples[None] * 32767).astype(np.int16), format="s16", layout="mono")
    frame.sample_rate, frame.pts = RATE_HZ, 0
    container.mux(sound.encode(frame))
    container.mux(sound.encode())
