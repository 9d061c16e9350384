"""Video: MA-Net on every frame, one token a frame, and a Transformer over the frames (`manet`).

MA-Net itself never looks at another frame, so that a token hidden at its input would be a constant and nobody would
notice. Tokens are therefore hidden after it, and the Transformer, which starts from scratch, sees them in time:
`embed` is MA-Net and a projection, `encode` the rest. Frames are scaled to [0, 1] and squashed to the size that the
quadrants are cut for. Batch norms keep their statistics in training: with a batch's own, one clip's tokens would
depend on another's.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn

from cache.errors import UserError
from cache.publish import file_sha256
from extract.config import VideoSettings
from extract.encoders.base import Embedded, Encoder, pad
from extract.encoders.manet_network import HEADS, STRIDE_BEFORE_QUADRANTS, MultiAttentionNetwork
from extract.encoders.published import DAMAGED, foreign, read_checkpoint
from extract.encoders.transformer import SequenceTransformer
from extract.values import Video

PUBLISHED_SIDE, PUBLISHED_CHANNELS = 224, 64
WRAPPER = "module."
"""Before every key of the published files, from data-parallel training."""


class VideoEncoder(Encoder):
    """One token for each of the sampled frames."""

    def __init__(self, settings: VideoSettings, origin: dict[str, Any] | None = None) -> None:
        if settings.image_size % (2 * STRIDE_BEFORE_QUADRANTS):
            raise UserError(
                f"manet.image_size is {settings.image_size}; it must be a multiple of {2 * STRIDE_BEFORE_QUADRANTS}."
            )
        super().__init__(settings.width, settings.width)
        self.settings, self.origin = settings, origin or {}
        self.network = MultiAttentionNetwork(settings.base_channels, settings.reverse_second_chain)
        self.project = nn.Linear(16 * settings.base_channels, settings.width)
        self.transformer = SequenceTransformer(settings)

    @classmethod
    def assemble(cls, settings: VideoSettings, assets: dict[str, Any], *, load_weights: bool) -> "VideoEncoder":
        """Build from settings; published weights are read when they are asked for."""
        encoder = cls(settings, assets.get("origin"))
        if load_weights and settings.weights != "scratch":
            encoder.origin = load_published(encoder.network, settings)
        return encoder

    def train(self, mode: bool = True) -> "VideoEncoder":
        """Train everything but the batch norms' statistics."""
        super().train(mode)
        self.network.eval()
        return self

    def preprocess(self, value: Video) -> dict[str, np.ndarray]:
        """Return frames uint8 [T, S, S, 3]."""
        side = self.settings.image_size
        frames = [f.resize((side, side), Image.Resampling.BILINEAR) for f in value.frames(self.settings.frames)]
        return {"frames": np.stack([np.asarray(frame, np.uint8) for frame in frames])}

    def collate(self, items: Sequence[dict[str, np.ndarray]]) -> dict[str, Tensor]:
        """`frames` uint8 [B, T, S, S, 3], `valid` bool [B, T]."""
        frames, valid = pad([item["frames"] for item in items])
        return {"frames": frames, "valid": valid}

    def embed(self, inputs: dict[str, Tensor]) -> Embedded:
        """MA-Net's features of each valid frame, projected."""
        valid = inputs["valid"]
        pixels = inputs["frames"][valid].movedim(-1, 1).to(self.placeholder.dtype) / 255
        tokens = pixels.new_zeros(*valid.shape, self.width)
        projected = self.project(self.network(pixels))
        return Embedded(tokens.to(projected.dtype).index_put((valid,), projected), valid, valid)

    def encode(self, embedded: Embedded) -> Tensor:
        """Transformer over the frames."""
        result: Tensor = self.transformer(embedded.tokens, embedded.valid)
        return result.float()

    def spec(self) -> dict[str, Any]:
        """Name, options, preprocessing, layout."""
        return {
            "name": self.settings.type,
            "options": self.settings.model_dump(mode="json"),
            "preprocessing": {"scale": [0.0, 1.0], "resize": "squash, bilinear", "sampling": "evenly spaced frames"},
            "layout": {"kind": "frames", "frames": self.settings.frames},
        }

    def blocks(self) -> list[nn.Module]:
        """MA-Net's features as one block, then the Transformer's blocks."""
        return [self.network, *self.transformer.blocks]

    def token_spans(self, value: Video) -> list[tuple[float, ...]]:
        """(start, end) of the part of the clip that each frame stands for, as shares of its length."""
        count = len(value.frames(self.settings.frames))
        return [(frame / count, (frame + 1) / count) for frame in range(count)]

    def assets(self) -> dict[str, Any]:
        """Return where the weights came from."""
        return {"origin": self.origin}


def load_published(network: MultiAttentionNetwork, settings: VideoSettings) -> dict[str, Any]:
    """Load a checkpoint of the official code, strictly; returns what is recorded of its origin.

    Raises:
        UserError: it is absent, cannot be read as tensors, or is of another size.
    """
    path = Path(settings.weights)
    if (settings.image_size, settings.base_channels) != (PUBLISHED_SIDE, PUBLISHED_CHANNELS):
        raise UserError(
            f"{path} needs image_size {PUBLISHED_SIDE} and base_channels {PUBLISHED_CHANNELS}; encoders.<name> has "
            f"{settings.image_size} and {settings.base_channels}."
        )
    content = read_checkpoint(path, "MA-Net", ["__main__.RecorderMeter"])
    try:
        state = {key.removeprefix(WRAPPER): value for key, value in content["state_dict"].items()}
        heads = sorted(key for key in state if key.startswith(HEADS))
        network.load_state_dict({key: value for key, value in state.items() if key not in heads})
    except DAMAGED as error:
        raise foreign(path, "MA-Net", error) from error
    return {"weights": path.name, "sha256": file_sha256(path), "unused_keys": heads}
