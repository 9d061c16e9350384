"""One small random encoder of every kind, with inputs, for what must hold for all of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from extract.encoders.base import Encoder

SIZE = {"width": 16, "layers": 3, "heads": 2, "dropout": 0.0}
TRUNK = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
WORDS = ["no acute opacity", "large opacity in the left lung", "clear lungs", "no effusion, no pneumothorax here"]
SCALE = {"mean": [0.5], "std": [0.5], "interpolation": "bilinear"}


def series() -> Encoder:
    from extract.config import TimeSeriesSettings
    from extract.encoders.timeseries import TimeSeriesEncoder

    settings = TimeSeriesSettings(type="timeseries", bins_per_token=3, max_bins=12, drop_cells=0.0, **SIZE)
    return TimeSeriesEncoder(settings, ("a", "b", "c"))


def logmel() -> Encoder:
    from extract.config import AudioSettings
    from extract.encoders.audio import AudioEncoder

    sizes = {"window_ms": 32, "hop_ms": 10, "mels": 8, "frames_per_token": 4, "max_seconds": 0.5}
    return AudioEncoder(AudioSettings(type="logmel", sample_rate_hz=8000, **sizes, **SIZE))


def timm(architecture: dict[str, Any] | None = None) -> Encoder:
    from extract.config import ImageSettings
    from extract.encoders.image import ImageEncoder

    grid = {"image_size": 8, "patch_size": 4, "channels": 1, "augment": None}
    weights = "scratch" if architecture is None else "somewhere"
    return ImageEncoder(ImageSettings(type="vit", weights=weights, **grid, **SIZE), architecture)


def eva() -> Encoder:
    arguments = {"embed_dim": 16, "depth": 3, "num_heads": 2, "patch_size": 4}
    return timm({"name": "eva02_tiny_patch14_224", "arguments": arguments, "scale": SCALE})


def tower(config: dict[str, Any]) -> Encoder:
    from extract.config import HubImageSettings
    from extract.encoders.hf_image import HubImageEncoder

    grid = {"image_size": 8, "patch_size": 4, "channels": 1, "augment": None}
    settings = HubImageSettings(type="hf_image", weights="somewhere", revision=None, **grid, **SIZE)
    sizes = {**TRUNK, "image_size": 8, "patch_size": 4, "num_channels": 1, **config}
    return HubImageEncoder(settings, {"config": sizes, "scale": SCALE, "origin": {}})


def text(config: dict[str, Any]) -> Encoder:
    from extract.config import TextSettings
    from extract.encoders.text import TextEncoder
    from extract.encoders.tokenizer import train_tokenizer

    settings = TextSettings(type="hf_text", weights="somewhere", revision=None, max_tokens=8, vocabulary=60, **SIZE)
    tokenizer = train_tokenizer(WORDS, 60, 8)
    sizes = {**TRUNK, **STILL, "vocab_size": tokenizer.get_vocab_size(), **config}
    return TextEncoder(settings, tokenizer, {"config": sizes})


def speech(kind: str) -> Encoder:
    from extract.config import SpeechSettings
    from extract.encoders.wav2vec2 import Wav2Vec2Encoder

    settings = SpeechSettings(
        type="wav2vec2", weights="somewhere", revision=None, sample_rate_hz=16000, max_seconds=0.5, **SIZE
    )
    still = {f"{name}_dropout": 0.0 for name in ("hidden", "attention", "activation", "feat_proj")}
    convolutions = {"conv_dim": (8,) * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    config = {"model_type": kind, **TRUNK, **still, **convolutions}
    return Wav2Vec2Encoder(settings, {"config": config, "normalised": True, "origin": {}})


def video() -> Encoder:
    from extract.config import VideoSettings
    from extract.encoders.manet import VideoEncoder

    frames = {"frames": 6, "image_size": 32, "base_channels": 4, "reverse_second_chain": False}
    return VideoEncoder(VideoSettings(type="manet", weights="scratch", **frames, **{**SIZE, "layers": 2}))


RELATIVE = {
    "relative_attention": True,
    "position_biased_input": False,
    "type_vocab_size": 0,
    "pos_att_type": ["c2p", "p2c"],
}
V3 = {"position_buckets": 8, "share_att_key": True, "norm_rel_ebd": "layer_norm"}
KINDS: dict[str, Callable[[], Encoder]] = {
    "series": series,
    "logmel": logmel,
    "timm": timm,
    "siglip": lambda: tower({"model_type": "siglip_vision_model", "vision_use_head": False}),
    "clip": lambda: tower({"model_type": "clip_vision_model"}),
    "bert": lambda: text({"model_type": "bert"}),
    "deberta": lambda: text({"model_type": "deberta", **RELATIVE}),
    "deberta_v3": lambda: text({"model_type": "deberta-v2", **RELATIVE, **V3}),
    "wav2vec2": lambda: speech("wav2vec2"),
    "manet": video,
}
PAST_ADAPTERS = {"eva": eva, "wavlm": lambda: speech("wavlm")}
"""Networks that read the weights of their attention projections past the modules."""


@dataclass(frozen=True)
class Small:
    """A kind of encoder."""

    kind: str

    def encoder(self) -> Encoder:
        """Build it, with the same weights at each call."""
        torch.manual_seed(0)
        return {**KINDS, **PAST_ADAPTERS}[self.kind]()

    def items(self, rows: int) -> list[dict[str, np.ndarray]]:
        """Return preprocessed values of different lengths."""
        draw = np.random.default_rng(0)
        make: dict[str, Callable[[int], dict[str, np.ndarray]]] = {
            "series": lambda row: {"values": draw.normal(size=(5 + row % 7, 3))},
            "logmel": lambda row: {"frames": draw.normal(size=(9 + row % 5, 8))},
            "text": lambda row: {"ids": draw.integers(5, 20, 4 + row % 4), "special": np.arange(4 + row % 4) == 0},
            "speech": lambda row: {"samples": draw.normal(size=1600 + 400 * (row % 3))},
            "manet": lambda row: {"frames": draw.integers(0, 255, (2 + row % 3, 32, 32, 3), np.uint8)},
            "image": lambda row: {"pixels": draw.normal(size=(1, 8, 8))},
        }
        family = {"bert": "text", "wav2vec2": "speech", "wavlm": "speech", "eva": "image"}
        family |= dict.fromkeys(("deberta", "deberta_v3"), "text") | dict.fromkeys(("timm", "siglip", "clip"), "image")
        made = [make[family.get(self.kind, self.kind)](row) for row in range(rows)]
        return [{k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in i.items()} for i in made]

    def inputs(self, rows: int = 4) -> dict[str, Tensor]:
        """Return a collated batch."""
        return self.encoder().collate(self.items(rows))


@pytest.fixture(params=list(KINDS))
def small(request: pytest.FixtureRequest) -> Small:
    """Every kind of encoder in turn."""
    return Small(request.param)


@pytest.fixture(params=list(PAST_ADAPTERS))
def past_adapters(request: pytest.FixtureRequest) -> Small:
    """Encoders that cannot use adapters."""
    return Small(request.param)
