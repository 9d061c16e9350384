"""Vision Transformer through timm: patch tokens, no class token.

Preprocessing is the same on every machine: PIL resize to a square (no crop, which would cut borders of an X-ray),
scaled to [-1, 1]. Positions are added in `encode`, after the mask point; a patch's embedding depends on that patch
alone, so a masked patch is really hidden.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from cache.errors import UserError
from extract.config import ImageSettings
from extract.encoders import torchvision_schema  # noqa: F401  (before timm)
from extract.encoders.base import Embedded, Encoder

import timm  # isort: skip
from timm.models.vision_transformer import VisionTransformer  # isort: skip


class ImageEncoder(Encoder):
    """Patch tokens of a timm Vision Transformer."""

    def __init__(self, settings: ImageSettings, *, load_weights: bool = True) -> None:
        vit = _build(settings, load_weights)
        super().__init__(vit.embed_dim, vit.embed_dim)
        self.settings, self.vit = settings, vit

    def preprocess(self, value: Image.Image) -> dict[str, np.ndarray]:
        """Return pixels [C, S, S] in [-1, 1]."""
        mode = "L" if self.settings.channels == 1 else "RGB"
        side = self.settings.image_size
        resized = value.convert(mode).resize((side, side), Image.Resampling.BILINEAR)
        pixels = np.asarray(resized, np.float32).reshape(side, side, self.settings.channels)
        return {"pixels": np.ascontiguousarray(pixels.transpose(2, 0, 1) / 127.5 - 1)}

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
        moved = nn.functional.grid_sample(pixels + 1, grid, align_corners=False) - 1
        return {**inputs, "pixels": moved}

    def embed(self, inputs: dict[str, Tensor]) -> Embedded:
        """One token per patch, row by row."""
        tokens = self.vit.patch_embed(inputs["pixels"])
        valid = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return Embedded(tokens, valid, valid)

    def encode(self, embedded: Embedded) -> Tensor:
        """Positions, blocks and final norm: timm's `forward_features` after the patch embedding."""
        hidden = self.vit.norm_pre(self.vit.patch_drop(self.vit._pos_embed(embedded.tokens)))
        if self.vit.grad_checkpointing and self.training:
            hidden = timm.models.checkpoint_seq(self.vit.blocks, hidden)
        else:
            hidden = self.vit.blocks(hidden)
        result: Tensor = self.vit.norm(hidden)[:, self.vit.num_prefix_tokens :].float()
        return result

    def spec(self) -> dict[str, Any]:
        """Name, options, preprocessing, layout."""
        side = self.settings.image_size // self.settings.patch_size
        options = self.settings.model_dump(mode="json", exclude={"augment"})
        return {
            "name": "vit",
            "options": options,
            "preprocessing": {"resize": "PIL bilinear, square", "scale": "[-1, 1]"},
            "layout": {"kind": "grid", "rows": side, "columns": side},
        }

    def blocks(self) -> list[nn.Module]:
        """Transformer blocks."""
        return list(self.vit.blocks)

    def set_checkpointing(self, enabled: bool) -> None:
        """Recompute blocks in the backward pass."""
        self.vit.set_grad_checkpointing(enabled)

    def token_spans(self, value: Image.Image) -> list[tuple[float, ...]]:
        """Pixel boxes (x0, y0, x1, y1) in the preprocessed image."""
        size = float(self.settings.patch_size)
        count = self.settings.image_size // self.settings.patch_size
        return [(x * size, y * size, (x + 1) * size, (y + 1) * size) for y in range(count) for x in range(count)]


def _build(settings: ImageSettings, load_weights: bool) -> VisionTransformer:
    if settings.image_size % settings.patch_size:
        raise UserError(f"image_size {settings.image_size} must be a multiple of patch_size {settings.patch_size}.")
    if settings.weights == "scratch":
        return VisionTransformer(
            img_size=settings.image_size,
            patch_size=settings.patch_size,
            in_chans=settings.channels,
            embed_dim=settings.width,
            depth=settings.layers,
            num_heads=settings.heads,
            num_classes=0,
            class_token=False,
            global_pool="",
            pos_drop_rate=settings.dropout,
            proj_drop_rate=settings.dropout,
        )
    vit = _pretrained(settings, load_weights)
    if not isinstance(vit, VisionTransformer) or vit.embed_dim != settings.width or len(vit.blocks) != settings.layers:
        raise UserError(
            f"{settings.weights} is no Vision Transformer of width {settings.width}, {settings.layers} layers."
        )
    return vit


def _pretrained(settings: ImageSettings, load_weights: bool) -> nn.Module:
    options: dict[str, Any] = {
        "num_classes": 0,
        "global_pool": "",
        "img_size": settings.image_size,
        "in_chans": settings.channels,
    }
    kind, _, name = settings.weights.partition(":")
    try:
        if kind == "timm":
            model: nn.Module = timm.create_model(name, pretrained=load_weights, **options)
        else:
            folder = Path(settings.weights)
            if not folder.is_dir():
                raise UserError(f"weights '{settings.weights}' must be scratch, timm:<model> or a folder.")
            model = timm.create_model(f"local-dir:{folder}", pretrained=load_weights, **options)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"Cannot load {settings.weights}: {error}. Check the name, or the connection to the hub."
        ) from error
    return model
