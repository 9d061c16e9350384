"""wav2vec (Schneider, Baevski, Collobert, Auli, Interspeech 2019): convolutions only, one token of 512 per 10 ms.

The mask point lies between the feature extractor, whose output is compressed by log(1 + |x|), and the aggregator of
causal convolutions. Both normalise over time, so that nothing may be padded: clips, and after masking frames, of one
exact length share a pass. `wav2vec_large.pt` of fairseq is the only published file; submodules carry its names. Neither
half sees the future, and the statistics of the norms let every frame carry a little of all others.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cache.errors import UserError
from cache.publish import file_sha256
from extract.config import ConvolutionalSpeechSettings
from extract.encoders.base import Embedded, Encoder, pad
from extract.encoders.published import DAMAGED, foreign, read_checkpoint
from extract.encoders.resampling import resampled
from extract.values import Waveform

EXTRACTOR = ((10, 5), (8, 4), (4, 2), (4, 2), (4, 2), (1, 1), (1, 1))
"""Kernel and stride of each convolution."""
AGGREGATOR = tuple(range(2, 14))
"""Kernels; each is padded on the left by its own length less one."""
RESIDUAL_SCALE = 0.5
PUBLISHED_WIDTH = 512
METERS = tuple(f"fairseq.meters.{name}" for name in ("AverageMeter", "TimeMeter", "StopwatchMeter"))
"""What fairseq of 2019 kept of a run beside its weights."""
PARTS = ("feature_extractor.", "feature_aggregator.")


class Convolutions(nn.Module):
    """A list of convolutions under the name that the published files use."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.conv_layers = nn.ModuleList(layers)


def extracting(inputs: int, width: int, kernel: int, stride: int) -> nn.Sequential:
    """Return a layer of the feature extractor; the second place is that of its dropout."""
    convolution = nn.Conv1d(inputs, width, kernel, stride, bias=False)
    return nn.Sequential(convolution, nn.Identity(), nn.GroupNorm(1, width), nn.ReLU())


def aggregating(width: int, kernel: int) -> nn.Sequential:
    """Return a causal layer of the aggregator."""
    pad_left, convolution = nn.ReplicationPad1d((kernel - 1, 0)), nn.Conv1d(width, width, kernel)
    return nn.Sequential(pad_left, convolution, nn.Identity(), nn.GroupNorm(1, width), nn.ReLU())


class Wav2VecEncoder(Encoder):
    """Feature extractor to the mask point, aggregator behind it."""

    def __init__(self, settings: ConvolutionalSpeechSettings, origin: dict[str, Any] | None = None) -> None:
        super().__init__(settings.width, settings.width)
        self.settings, self.origin = settings, origin or {}
        sizes = [1, *[settings.width] * (len(EXTRACTOR) - 1)]
        self.feature_extractor = Convolutions(
            [extracting(n, settings.width, *shape) for n, shape in zip(sizes, EXTRACTOR, strict=True)]
        )
        self.feature_aggregator = Convolutions([aggregating(settings.width, kernel) for kernel in AGGREGATOR])
        self.hop = int(np.prod([stride for _, stride in EXTRACTOR]))
        strides = np.cumprod([1, *(stride for _, stride in EXTRACTOR)])
        self.window = 1 + sum((kernel - 1) * int(s) for (kernel, _), s in zip(EXTRACTOR, strides, strict=False))

    @classmethod
    def assemble(
        cls, settings: ConvolutionalSpeechSettings, assets: dict[str, Any], *, load_weights: bool
    ) -> "Wav2VecEncoder":
        """Build from settings; the published weights are read when they are asked for."""
        encoder = cls(settings, assets.get("origin"))
        if load_weights and settings.weights != "scratch":
            encoder.origin = load_published(encoder, Path(settings.weights))
        return encoder

    def preprocess(self, value: Waveform) -> dict[str, np.ndarray]:
        """Return samples [n] of at most `max_seconds`, and at least one window, as they are."""
        samples = resampled(value, self.settings.sample_rate_hz, self.settings.max_seconds)
        samples = np.pad(samples, (0, max(0, self.window - len(samples))))
        return {"samples": np.ascontiguousarray(samples, np.float32)}

    def collate(self, items: Sequence[dict[str, np.ndarray]]) -> dict[str, Tensor]:
        """`samples` [B, n], `lengths` int64 [B] in samples."""
        samples, valid = pad([item["samples"] for item in items])
        return {"samples": samples, "lengths": valid.sum(1)}

    def embed(self, inputs: dict[str, Tensor]) -> Embedded:
        """Compressed features; clips of one length at a time."""
        lengths = inputs["lengths"].tolist()
        rows = by_length(inputs["samples"], lengths, lambda samples: self._features(samples[:, None]).transpose(1, 2))
        tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        frames = torch.tensor([len(row) for row in rows], device=tokens.device)
        valid = torch.arange(tokens.shape[1], device=tokens.device)[None] < frames[:, None]
        return Embedded(tokens, valid, valid)

    def encode(self, embedded: Embedded) -> Tensor:
        """Aggregator; frames of one number at a time."""
        lengths = embedded.valid.sum(1).tolist()
        rows = by_length(embedded.tokens, lengths, lambda tokens: self._context(tokens.transpose(1, 2)).transpose(1, 2))
        longest = embedded.tokens.shape[1]
        padded = [nn.functional.pad(row, (0, 0, 0, longest - len(row))) for row in rows]
        return torch.stack(padded).float()

    def spec(self) -> dict[str, Any]:
        """Name, options, preprocessing, layout."""
        return {
            "name": self.settings.type,
            "options": self.settings.model_dump(mode="json"),
            "preprocessing": {"normalised": False, "resampling": "polyphase"},
            "layout": {"kind": "seconds", "seconds_per_token": self.hop / self.settings.sample_rate_hz},
        }

    def blocks(self) -> list[nn.Module]:
        """Convolutions of the extractor, then of the aggregator."""
        return [*self.feature_extractor.conv_layers, *self.feature_aggregator.conv_layers]

    def length(self, item: dict[str, np.ndarray]) -> int:
        """Return the number of frames."""
        return 1 + (len(item["samples"]) - self.window) // self.hop

    def token_spans(self, value: Waveform) -> list[tuple[float, ...]]:
        """(start, end) in seconds of what each frame of the extractor sees."""
        rate = self.settings.sample_rate_hz
        frames = range(self.length(self.preprocess(value)))
        return [(frame * self.hop / rate, (frame * self.hop + self.window) / rate) for frame in frames]

    def assets(self) -> dict[str, Any]:
        """Return where the weights came from."""
        return {"origin": self.origin}

    def _features(self, samples: Tensor) -> Tensor:
        for layer in self.feature_extractor.conv_layers:
            samples = layer(samples)
        return torch.log1p(samples.abs())

    def _context(self, features: Tensor) -> Tensor:
        scale = RESIDUAL_SCALE**0.5
        for layer in self.feature_aggregator.conv_layers:
            features = (layer(features) + features) * scale
        return features


def by_length(values: Tensor, lengths: list[int], run: Any) -> list[Tensor]:
    """Return `run` of each row cut to its length, [n, D]; rows of one length go together.

    Args:
        values: [B, L, ...].
        lengths: of the rows; a row without length gives one of length zero, shaped as the others.
        run: maps [R, n, ...] to [R, m, D].
    """
    found: dict[int, Tensor] = {}
    for length in sorted({n for n in lengths if n}):
        chosen = [row for row, other in enumerate(lengths) if other == length]
        found |= dict(zip(chosen, run(values[chosen, :length]), strict=True))
    like = next(iter(found.values())) if found else values[0]
    return [found[row] if row in found else like[:0] for row in range(len(lengths))]


def load_published(encoder: Wav2VecEncoder, path: Path) -> dict[str, Any]:
    """Load fairseq's file strictly; returns what is recorded of its origin.

    Raises:
        UserError: it is absent, is no such file, or params.yaml has another width.
    """
    if encoder.width != PUBLISHED_WIDTH:
        raise UserError(f"{path} has width {PUBLISHED_WIDTH}; encoders.<name>.width is {encoder.width}.")
    content = read_checkpoint(path, "wav2vec", METERS)
    try:
        state = content["model"]
        own = {key: value for key, value in state.items() if key.startswith(PARTS)}
        absent, unexpected = encoder.load_state_dict(own, strict=False)
        if unexpected or set(absent) != {"placeholder"}:
            raise KeyError(f"{len(absent)} weights are absent, {len(unexpected)} are not known")
    except DAMAGED as error:
        raise foreign(path, "wav2vec", error) from error
    return {"weights": path.name, "sha256": file_sha256(path), "unused_keys": sorted(state.keys() - own.keys())}
