"""What all encoders of image patches share: pixels in, one token per patch, row by row.

Preprocessing is the same on every machine: PIL resize to a square (no crop, which would cut borders of an X-ray),
scaled with the model's own mean and deviation. A patch's embedding depends on that patch alone, so a masked one is
hidden. Positions come after the mask point. Where a network cannot be called from its patches on, its own forward runs
with the given tokens standing in for the output of its patch embedding.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from cache.errors import UserError
from extract.config import PatchSettings
from extract.encoders.base import Embedded, Encoder

MOST_PREFIX_TOKENS = 16


@dataclass(frozen=True)
class PixelScale:
    """How pixels in [0, 1] are normalised, per channel, and the interpolation of the resize."""

    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    interpolation: str = "bilinear"

    @classmethod
    def of(cls, values: dict[str, Any]) -> "PixelScale":
        """Rebuild from JSON."""
        return cls(tuple(values["mean"]), tuple(values["std"]), values["interpolation"])

    def json(self) -> dict[str, Any]:
        """Return the fields as JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def describe(self) -> dict[str, Any]:
        """Return what the cache key records."""
        resize = f"PIL {self.interpolation}, square"
        if set(self.mean) == {0.5} == set(self.std):
            return {"resize": resize, "scale": "[-1, 1]"}
        return {"resize": resize, "mean": list(self.mean), "std": list(self.std)}

    def per_channel(self, channels: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation, float32 [C]; one channel takes the average of three."""
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        if channels == 1:
            mean, std = mean.mean(keepdims=True), std.mean(keepdims=True)
        return np.broadcast_to(mean, channels), np.broadcast_to(std, channels)


class PatchEncoder(Encoder):
    """Preprocessing, augmentation and layout of patch tokens."""

    settings: PatchSettings
    scale: PixelScale

    def preprocess(self, value: Image.Image) -> dict[str, np.ndarray]:
        """Return normalised pixels [C, S, S]."""
        channels, side = self.settings.channels, self.settings.image_size
        mode = "L" if channels == 1 else "RGB"
        resized = value.convert(mode).resize((side, side), Image.Resampling[self.scale.interpolation.upper()])
        pixels = np.asarray(resized, np.float32).reshape(side, side, channels)
        mean, std = self.scale.per_channel(channels)
        return {"pixels": np.ascontiguousarray((pixels / (255 * std) - mean / std).transpose(2, 0, 1), np.float32)}

    def collate(self, items: Sequence[dict[str, np.ndarray]]) -> dict[str, Tensor]:
        """`pixels` [B, C, S, S]."""
        return {"pixels": torch.from_numpy(np.stack([item["pixels"] for item in items]))}

    def augment(self, inputs: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Random rotation, shift and scale, one per image; outside is the darkest value."""
        settings, pixels = self.settings.augment, inputs["pixels"]
        if settings is None:
            return inputs
        draw = torch.rand(len(pixels), 4, generator=generator) * 2 - 1
        angle = draw[:, 0] * math.radians(settings.rotate_degrees)
        scale = 1 + draw[:, 1] * settings.scale
        cos, sin = angle.cos() / scale, angle.sin() / scale
        shift = draw[:, 2:] * 2 * settings.translate
        rows = [torch.stack([cos, -sin, shift[:, 0]], -1), torch.stack([sin, cos, shift[:, 1]], -1)]
        grid = nn.functional.affine_grid(torch.stack(rows, 1).to(pixels), list(pixels.shape), align_corners=False)
        mean, std = self.scale.per_channel(pixels.shape[1])
        darkest = torch.from_numpy(-mean / std).to(pixels)[:, None, None]
        moved = nn.functional.grid_sample(pixels - darkest, grid, align_corners=False) + darkest
        return {**inputs, "pixels": moved}

    def spec(self) -> dict[str, Any]:
        """Name, options, preprocessing, layout."""
        side = self.settings.image_size // self.settings.patch_size
        return {
            "name": self.settings.type,
            "options": self.settings.model_dump(mode="json", exclude={"augment"}),
            "preprocessing": self.scale.describe(),
            "layout": {"kind": "grid", "rows": side, "columns": side},
        }

    def length(self, item: dict[str, np.ndarray]) -> int:
        """Return the number of patches."""
        side = self.settings.image_size // self.settings.patch_size
        return side * side

    def token_spans(self, value: Image.Image) -> list[tuple[float, ...]]:
        """Pixel boxes (x0, y0, x1, y1) in the preprocessed image."""
        size = float(self.settings.patch_size)
        count = self.settings.image_size // self.settings.patch_size
        return [(x * size, y * size, (x + 1) * size, (y + 1) * size) for y in range(count) for x in range(count)]

    def stand_in_pixels(self, tokens: Tensor) -> Tensor:
        """Return pixels that only tell a network the size of its input, [B, C, S, S]."""
        side = self.settings.image_size
        return tokens.new_zeros(1).expand(len(tokens), self.settings.channels, side, side)

    @torch.no_grad()
    def require_split(self, stock: Any) -> None:
        """Raise UserError unless `encode(embed(pixels))` is the network's own output after its first, extra tokens.

        Args:
            stock: pixels to the network's tokens [1, extra + T, D].
        """
        side, weights = self.settings.image_size, self.settings.weights
        pixels = torch.rand(1, self.settings.channels, side, side, generator=torch.Generator().manual_seed(0))
        training = self.training
        self.eval()
        try:
            embedded, own = self.embed({"pixels": pixels}), stock(pixels)
            split = self.encode(embedded)
        except (TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            raise UserError(
                f"{weights} cannot be called from its patches on ({type(error).__name__}: {error}). Choose a plain "
                "Vision Transformer, or see docs/adding-an-encoder.md."
            ) from error
        self.train(training)
        count = (side // self.settings.patch_size) ** 2
        extra = own.shape[1] - count if own.ndim == 3 else -1
        if not 0 <= extra <= MOST_PREFIX_TOKENS or split.shape[1] != count:
            raise UserError(f"{weights} does not give one token per patch. Choose a plain Vision Transformer.")
        if not torch.allclose(own[:, extra:], split, atol=1e-4):
            raise UserError(
                f"{weights} gives other tokens when called from its patches on. Choose a plain Vision Transformer."
            )


def every_patch_valid(tokens: Tensor) -> Embedded:
    """All patches are there and may be masked."""
    valid = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    return Embedded(tokens, valid, valid)


@contextmanager
def standing_in(module: nn.Module, output: Tensor) -> Iterator[None]:
    """Let a module return `output` without computing anything; one thread at a time."""
    module.forward = lambda *_, **__: output
    try:
        yield
    finally:
        del module.forward
