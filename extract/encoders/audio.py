"""A small Transformer on log-mel frames.

Spectra by torch.stft, triangular mel filters; frames are standardised per clip, so loudness does
not matter. A token is `frames_per_token` consecutive frames. Windows longer than the hop overlap, so a little of a
masked token shows in its neighbours.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from extract.config import AudioSettings
from extract.encoders.base import Embedded, Encoder, pad
from extract.encoders.resampling import resampled
from extract.encoders.transformer import SequenceTransformer
from extract.values import Waveform


class AudioEncoder(Encoder):
    """Tokens of log-mel frames from a waveform."""

    def __init__(self, settings: AudioSettings) -> None:
        super().__init__(settings.width, settings.width)
        self.settings = settings
        self.window = settings.sample_rate_hz * settings.window_ms // 1000
        self.hop = settings.sample_rate_hz * settings.hop_ms // 1000
        self.filters = mel_filters(settings.sample_rate_hz, self.window, settings.mels)
        self.embedding = nn.Linear(settings.mels * settings.frames_per_token, settings.width)
        self.transformer = SequenceTransformer(settings)

    @classmethod
    def assemble(cls, settings: AudioSettings, assets: dict[str, Any], *, load_weights: bool) -> "AudioEncoder":
        """Build from settings alone."""
        return cls(settings)

    def preprocess(self, value: Waveform) -> dict[str, np.ndarray]:
        """Return standardised log-mel frames [F, mels] of at most `max_seconds`."""
        samples = resampled(value, self.settings.sample_rate_hz, self.settings.max_seconds)
        samples = np.pad(samples, (0, max(0, self.window - len(samples))))
        return {"frames": self._log_mel(torch.from_numpy(np.ascontiguousarray(samples)))}

    def _log_mel(self, samples: Tensor) -> np.ndarray:
        spectrum = torch.stft(
            samples, self.window, self.hop, window=torch.hann_window(self.window), center=False, return_complex=True
        )
        power = torch.log(self.filters @ spectrum.abs().square() + 1e-8).T
        standard = (power - power.mean()) / power.std().clamp(min=1e-4)
        return np.ascontiguousarray(standard.numpy(), np.float32)

    def collate(self, items: Sequence[dict[str, np.ndarray]]) -> dict[str, Tensor]:
        """`frames` [B, F, mels], `valid` [B, F]."""
        frames, valid = pad([item["frames"] for item in items])
        return {"frames": frames, "valid": valid}

    def embed(self, inputs: dict[str, Tensor]) -> Embedded:
        """One token per `frames_per_token` frames."""
        frames, valid, size = inputs["frames"], inputs["valid"], self.settings.frames_per_token
        short = -frames.shape[1] % size
        frames = nn.functional.pad(frames, (0, 0, 0, short)).unflatten(1, (-1, size)).flatten(2)
        valid = nn.functional.pad(valid, (0, short)).unflatten(1, (-1, size)).any(-1)
        return Embedded(self.embedding(frames), valid, valid)

    def encode(self, embedded: Embedded) -> Tensor:
        """Transformer with temporal positions."""
        result: Tensor = self.transformer(embedded.tokens, embedded.valid)
        return result

    def spec(self) -> dict[str, Any]:
        """Name, options, preprocessing, layout."""
        seconds = self.settings.hop_ms * self.settings.frames_per_token / 1000
        return {
            "name": "logmel",
            "options": self.settings.model_dump(mode="json"),
            "preprocessing": {"features": "log-mel, standardised per clip"},
            "layout": {"kind": "seconds", "seconds_per_token": seconds},
        }

    def blocks(self) -> list[nn.Module]:
        """Transformer blocks."""
        return list(self.transformer.blocks)

    def length(self, item: dict[str, np.ndarray]) -> int:
        """Return the number of groups of frames."""
        return -(-len(item["frames"]) // self.settings.frames_per_token)

    def token_spans(self, value: Waveform) -> list[tuple[float, ...]]:
        """(start, end) in seconds."""
        frames = len(self.preprocess(value)["frames"])
        step, size = self.settings.hop_ms / 1000, self.settings.frames_per_token
        return [(start * step, min(start + size, frames) * step) for start in range(0, frames, size)]


def mel_filters(rate_hz: int, window: int, mels: int) -> Tensor:
    """Triangular filters on the mel scale (2595 log10(1 + f/700)), [mels, window // 2 + 1]."""
    top = 2595 * math.log10(1 + rate_hz / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, mels + 2) / 2595) - 1)
    bins = torch.linspace(0, rate_hz / 2, window // 2 + 1)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp(min=0)
