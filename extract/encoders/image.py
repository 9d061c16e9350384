"""Vision Transformer through timm: patch tokens, no class token.

Preprocessing is the same on every machine: PIL resize to a square (no crop, which would cut borders of an X-ray),
scaled to [-1, 1]. Positions are added in `encode`, after the mask point; a patch's embedding depends on that patch
alone, so a masked patch is really hidden.
"""

import json
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

    def __init__(self, settings: ImageSettings, saved: dict[str, Any] | None = None) -> None:
        """Build from scratch or pretrained weights; with `saved` (a saved encoder's assets) none are read."""
        architecture = _architecture(settings) if saved is None else saved
        vit = _build(settings, architecture, load_weights=saved is None)
        super().__init__(vit.embed_dim, vit.embed_dim)
        self.settings, self.vit, self.architecture = settings, vit, architecture

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

    def assets(self) -> dict[str, Any]:
        """Name and arguments of a pretrained timm architecture; empty from scratch."""
        return self.architecture

    def token_spans(self, value: Image.Image) -> list[tuple[float, ...]]:
        """Pixel boxes (x0, y0, x1, y1) in the preprocessed image."""
        size = float(self.settings.patch_size)
        count = self.settings.image_size // self.settings.patch_size
        return [(x * size, y * size, (x + 1) * size, (y + 1) * size) for y in range(count) for x in range(count)]


def _architecture(settings: ImageSettings) -> dict[str, Any]:
    """What rebuilds a pretrained network without its hub or folder: timm's name and arguments of the model."""
    kind, _, name = settings.weights.partition(":")
    if settings.weights == "scratch":
        return {}
    if kind == "timm":
        return {"name": name, "arguments": {}}
    path = Path(settings.weights) / "config.json"
    if not path.is_file():
        raise UserError(
            f"weights '{settings.weights}' must be scratch, timm:<model> or a folder with timm's config.json."
        )
    try:
        config = json.loads(path.read_text())
        return {"name": config["architecture"], "arguments": config.get("model_args") or {}}
    except (ValueError, KeyError) as error:
        raise UserError(f"{path} is no timm configuration: it must name an 'architecture'.") from error


def _build(settings: ImageSettings, architecture: dict[str, Any], *, load_weights: bool) -> VisionTransformer:
    if settings.image_size % settings.patch_size:
        raise UserError(f"image_size {settings.image_size} must be a multiple of patch_size {settings.patch_size}.")
    if settings.weights == "scratch":
        return _scratch(settings)
    vit = _pretrained(settings, architecture, load_weights)
    wanted = (settings.width, settings.layers, settings.patch_size)
    if not isinstance(vit, VisionTransformer):
        raise UserError(f"{settings.weights} is no plain Vision Transformer. Choose a timm vit_* model.")
    found = (vit.embed_dim, len(vit.blocks), int(vit.patch_embed.patch_size[0]))
    if found != wanted:
        raise UserError(
            f"{settings.weights} has (width, layers, patch_size) {found}; params.yaml says {wanted}. Use the model's."
        )
    return vit


def _scratch(settings: ImageSettings) -> VisionTransformer:
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


def _pretrained(settings: ImageSettings, architecture: dict[str, Any], load_weights: bool) -> nn.Module:
    options: dict[str, Any] = {
        **architecture["arguments"],
        "num_classes": 0,
        "global_pool": "",
        "img_size": settings.image_size,
        "in_chans": settings.channels,
    }
    from_folder = load_weights and not settings.weights.startswith("timm:")
    name = f"local-dir:{settings.weights}" if from_folder else architecture["name"]
    try:
        model: nn.Module = timm.create_model(name, pretrained=load_weights, **options)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"Cannot load {settings.weights}: {error}. Check the name, or the connection to the hub."
        ) from error
    return model
