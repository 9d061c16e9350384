"""wav2vec 2.0 and its relatives (HuBERT, WavLM, UniSpeech) through transformers: one token per 20 ms of speech.

The mask point is the projected frame of the convolutions; the positional convolution and the Transformer come after it,
as in pretraining, whose own mask vector is where the placeholder starts. A clip is resampled, standardised and
convolved by itself, without padding, since the group norm of the base model takes its statistics over time; only frames
are padded, which is exact. Clips of the same length share a pass. A frame sees 25 ms, and those statistics: neighbours
of a masked frame still carry a little of it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cache.errors import UserError
from extract.config import SpeechSettings
from extract.encoders import pretrained
from extract.encoders.base import Embedded, Encoder, pad
from extract.encoders.resampling import resampled
from extract.values import Waveform

from transformers import AutoModel, FeatureExtractionMixin, Wav2Vec2Config, Wav2Vec2Model  # isort: skip

PARTS = ("feature_extractor", "feature_projection", "encoder")
MASK_VECTOR = "masked_spec_embed"


class Wav2Vec2Encoder(Encoder):
    """Frames of a waveform through a convolutional front end and a Transformer."""

    def __init__(self, settings: SpeechSettings, saved: dict[str, Any] | None = None) -> None:
        """Build from scratch or pretrained weights; with `saved` (a saved encoder's assets) none are looked for."""
        if saved is None:
            trunk, self.normalised, origin = _build(settings)
        else:
            trunk, self.normalised = pretrained.rebuild(saved["config"]), bool(saved["normalised"])
            origin = saved["origin"]
        super().__init__(trunk.config.hidden_size, trunk.config.hidden_size)
        self.settings, self.origin = settings, origin
        mask_vector = getattr(trunk, MASK_VECTOR, None)
        if mask_vector is not None:
            self.placeholder.data.copy_(mask_vector.detach())
        self.trunk = _without_augmentation(trunk)
        kernels, strides = trunk.config.conv_kernel, trunk.config.conv_stride
        self.hop = int(np.prod(strides))
        self.window = 1 + sum((k - 1) * int(np.prod(strides[:layer])) for layer, k in enumerate(kernels))

    def preprocess(self, value: Waveform) -> dict[str, np.ndarray]:
        """Return samples [n] of at most `max_seconds`, with zero mean and unit variance if the model expects that."""
        samples = resampled(value, self.settings.sample_rate_hz, self.settings.max_seconds)
        if self.normalised:
            samples = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
        samples = np.pad(samples, (0, max(0, self.window - len(samples))))
        return {"samples": np.ascontiguousarray(samples, np.float32)}

    def collate(self, items: Sequence[dict[str, np.ndarray]]) -> dict[str, Tensor]:
        """`samples` [B, n], `lengths` int64 [B] in samples."""
        samples, valid = pad([item["samples"] for item in items])
        return {"samples": samples, "lengths": valid.sum(1)}

    def embed(self, inputs: dict[str, Tensor]) -> Embedded:
        """Projected frames; clips of one length at a time, so that nothing is padded before the convolutions."""
        lengths = inputs["lengths"].tolist()
        frames = torch.tensor([self._frames(length) for length in lengths], device=inputs["samples"].device)
        rows: list[Tensor] = [inputs["samples"]] * len(lengths)
        for length in set(lengths):
            chosen = [row for row, other in enumerate(lengths) if other == length]
            for row, tokens in zip(chosen, self._project(inputs["samples"][chosen, :length]), strict=True):
                rows[row] = tokens
        tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        valid = torch.arange(tokens.shape[1], device=frames.device)[None] < frames[:, None]
        return Embedded(tokens, valid, valid)

    def encode(self, embedded: Embedded) -> Tensor:
        """Positional convolution and Transformer; the copy is because it overwrites padded frames in place."""
        output = self.trunk.encoder(embedded.tokens.clone(), attention_mask=embedded.valid)
        result: Tensor = output.last_hidden_state.float()
        return result

    def spec(self) -> dict[str, Any]:
        """Name, options, preprocessing, layout."""
        return {
            "name": self.settings.type,
            "options": self.settings.model_dump(mode="json"),
            "preprocessing": {"normalised": self.normalised, "resampling": "polyphase"},
            "layout": {"kind": "seconds", "seconds_per_token": self.hop / self.settings.sample_rate_hz},
        }

    def blocks(self) -> list[nn.Module]:
        """Transformer blocks."""
        return list(self.trunk.encoder.layers)

    def length(self, item: dict[str, np.ndarray]) -> int:
        """Return the number of frames."""
        return self._frames(len(item["samples"]))

    def token_spans(self, value: Waveform) -> list[tuple[float, ...]]:
        """(start, end) in seconds of what each frame sees; neighbours overlap."""
        count, rate = self._frames(len(self.preprocess(value)["samples"])), self.settings.sample_rate_hz
        return [(frame * self.hop / rate, (frame * self.hop + self.window) / rate) for frame in range(count)]

    def assets(self) -> dict[str, Any]:
        """The network's sizes, whether it wants standardised samples, and where its weights came from."""
        config = pretrained.saved_config(self.trunk)
        return {"config": config, "normalised": self.normalised, "origin": self.origin}

    def _frames(self, samples: int) -> int:
        return int(self.trunk._get_feat_extract_output_lengths(samples))

    def _project(self, samples: Tensor) -> Tensor:
        projected = self.trunk.feature_projection(self.trunk.feature_extractor(samples).transpose(1, 2))
        result: Tensor = projected[0] if isinstance(projected, tuple) else projected
        return result


def _without_augmentation(trunk: Any) -> Any:
    """Switch off SpecAugment and the dropping of whole layers; masking is ours, and its vector has been copied."""
    trunk.config.apply_spec_augment, trunk.config.layerdrop = False, 0.0
    trunk.config.mask_time_prob = trunk.config.mask_feature_prob = 0.0
    if hasattr(trunk, MASK_VECTOR):
        delattr(trunk, MASK_VECTOR)
    return trunk


def _build(settings: SpeechSettings) -> tuple[Any, bool, dict[str, Any]]:
    if settings.weights == "scratch":
        return _scratch(settings), True, {}
    declared = pretrained.declared(settings.weights, settings.revision)
    if declared.get("add_adapter"):
        raise UserError(f"{settings.weights} has an adapter that shortens its sequence. Choose a model without one.")
    trunk, origin = pretrained.load_trunk(AutoModel, settings.weights, settings.revision, may_lack=(MASK_VECTOR,))
    lacking = [part for part in PARTS if not hasattr(trunk, part)]
    if lacking:
        raise UserError(
            f"{settings.weights} ({type(trunk).__name__}) has no {lacking[0]}: it is not of wav2vec 2.0's kind. Choose "
            "a wav2vec2, hubert, wavlm or unispeech model, or see docs/adding-an-encoder.md."
        )
    pretrained.require_sizes(trunk, settings.weights, settings.width, settings.layers)
    return trunk, _wants_normalised(settings), origin


def _wants_normalised(settings: SpeechSettings) -> bool:
    """Read the model's own preprocessing, which also says for which sampling rate it was made."""
    with pretrained.loading(f"preprocessor_config.json of {settings.weights}"):
        own = FeatureExtractionMixin.get_feature_extractor_dict(
            settings.weights.removeprefix(pretrained.HUB), revision=settings.revision
        )[0]
    rate = own.get("sampling_rate", settings.sample_rate_hz)
    if rate != settings.sample_rate_hz:
        raise UserError(
            f"{settings.weights} is for {rate} Hz; params.yaml has sample_rate_hz {settings.sample_rate_hz}. Set it so."
        )
    return bool(own.get("do_normalize", True))


def _scratch(settings: SpeechSettings) -> Any:
    config = Wav2Vec2Config(
        **pretrained.sizes(settings),
        hidden_dropout=settings.dropout,
        attention_dropout=settings.dropout,
        activation_dropout=settings.dropout,
        feat_proj_dropout=settings.dropout,
        mask_time_prob=0.0,
    )
    return Wav2Vec2Model(config)
