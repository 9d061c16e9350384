"""Odd and damaged audio: resampled, padded to the first frame, or with a reason."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from extract.config import AudioSettings, ConvolutionalSpeechSettings, SpeechSettings
from extract.encoders.audio import AudioEncoder
from extract.encoders.base import Encoder
from extract.encoders.resampling import resampled
from extract.encoders.wav2vec import Wav2VecEncoder
from extract.encoders.wav2vec2 import Wav2Vec2Encoder
from extract.values import UnreadableValue, Waveform

Read = Callable[[str, str], Any]
SMALL = {"width": 16, "layers": 1, "heads": 2, "dropout": 0.0, "sample_rate_hz": 16000, "max_seconds": 1.0}


def logmel() -> Encoder:
    frames = {"window_ms": 32, "hop_ms": 10, "mels": 12, "frames_per_token": 4}
    return AudioEncoder(AudioSettings.model_validate({"type": "logmel", **frames, **SMALL}))


def wav2vec2() -> Encoder:
    fields = {"type": "wav2vec2", "weights": "scratch", "revision": None, **SMALL}
    return Wav2Vec2Encoder(SpeechSettings.model_validate(fields))


def wav2vec() -> Encoder:
    fields = {"type": "wav2vec", "weights": "scratch", "width": 16, "sample_rate_hz": 16000, "max_seconds": 1.0}
    return Wav2VecEncoder(ConvolutionalSpeechSettings.model_validate(fields))


ENCODERS = {"logmel": logmel, "wav2vec2": wav2vec2, "wav2vec": wav2vec}


def noise(samples: int, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, (samples, channels)).astype(np.float32)


@pytest.mark.parametrize("kind", ENCODERS)
def test_every_recording_has_finite_tokens(
    kind: str, tmp_path: Path, read_file: Read, tokens_of: Callable[..., np.ndarray]
) -> None:
    encoder = ENCODERS[kind]()
    recordings: list[tuple[str, np.ndarray, int, str | None, tuple[int, ...]]] = [  # and the tokens of each encoder
        ("stereo.wav", noise(2205, 2), 44100, None, (1, 2, 3)),  # 0.05 s
        ("short.wav", noise(160), 16000, None, (1, 1, 1)),  # less than one window of any
        ("two.wav", noise(2), 16000, None, (1, 1, 1)),
        ("eight.wav", noise(4000, 1), 8000, "PCM_U8", (12, 24, 48)),
        ("deep.wav", noise(8000, 6), 16000, "PCM_24", (12, 24, 48)),
        ("loud.wav", noise(8000) * 2.0**31, 16000, "FLOAT", (12, 24, 48)),
        ("quiet.wav", noise(8000) * 1e-30, 16000, "FLOAT", (12, 24, 48)),
        ("prime.flac", noise(22027), 44053, None, (12, 24, 48)),
        ("long.ogg", noise(48000), 16000, None, (25, 49, 98)),  # three seconds
    ]
    for name, samples, rate, subtype, counts in recordings:
        soundfile.write(tmp_path / name, samples, rate, subtype=subtype)
        tokens = tokens_of(encoder, read_file("audio", name))
        assert len(tokens) == dict(zip(ENCODERS, counts, strict=True))[kind], name


REFUSED = {
    "empty.wav": (noise(0), 16000, "empty audio"),
    "silent.wav": (noise(8000) * 0, 16000, "silent"),
    "constant.wav": (noise(8000) * 0 + 0.25, 16000, "silent"),
    "opposite.wav": (noise(8000) * np.array([[1, -1]], np.float32), 16000, "silent"),
    "late.wav": (np.concatenate([noise(20000) * 0, noise(8000)]), 16000, "silent"),  # sound after max_seconds
    "nan.wav": (np.where(np.arange(8000)[:, None] == 77, np.nan, noise(8000)), 16000, "not finite"),
    "infinite.wav": (np.where(np.arange(8000)[:, None] == 77, -np.inf, noise(8000)), 16000, "not finite"),
    "extreme.wav": (noise(8000) * 1e30, 16000, "full scale"),
    "slow.wav": (noise(8000), 10, "declares 10 Hz"),
    "fast.wav": (noise(8000), 2**31 - 1, "declares 2147483647 Hz"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_recording_has_a_reason(name: str, tmp_path: Path, read_file: Read) -> None:
    samples, rate, reason = REFUSED[name]
    soundfile.write(tmp_path / name, samples, rate, subtype="FLOAT")
    with pytest.raises(UnreadableValue, match=reason):
        logmel().preprocess(read_file("audio", name))


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_a_file_cut_in_half_or_empty_has_a_reason(suffix: str, tmp_path: Path, read_file: Read) -> None:
    soundfile.write(tmp_path / f"a.{suffix}", noise(16000), 16000)
    whole = (tmp_path / f"a.{suffix}").read_bytes()
    for name, content in (("half", whole[: len(whole) // 2]), ("empty", b"")):
        (tmp_path / f"{name}.{suffix}").write_bytes(content)
        with pytest.raises(UnreadableValue, match=r"cut short|cannot be decoded|empty audio"):
            read_file("audio", f"{name}.{suffix}")


def test_a_wav_that_was_streamed_does_not_know_its_size_and_is_read(tmp_path: Path, read_file: Read) -> None:
    soundfile.write(tmp_path / "a.wav", noise(8000), 16000)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[4:8] = b"\xff" * 4
    (tmp_path / "a.wav").write_bytes(bytes(content))
    assert len(read_file("audio", "a.wav").samples) == 8000


@pytest.mark.parametrize("rate_hz", [8000, 44100, 44053])
def test_resampling_only_what_is_kept_changes_nothing(rate_hz: int) -> None:
    samples = noise(5 * rate_hz)[:, 0]
    long, short = (Waveform(part, rate_hz) for part in (samples, samples[: 2 * rate_hz]))
    assert np.array_equal(resampled(long, 16000, 1.0), resampled(short, 16000, 1.0))
    assert np.allclose(resampled(long, 16000, 1.0), resampled(long, 16000, 5.0)[:16000], atol=1e-6)
