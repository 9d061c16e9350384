"""Vision Transformers of timm: patch tokens; class and register tokens take part in attention and are dropped.

Positions are added in `encode`, after the mask point. timm's own Vision Transformer is called from its patches on; any
other model of timm that cuts an image into patches (EVA, BEiT) runs its own forward with the tokens standing in. Mean,
deviation and interpolation are those that timm records for the weights.
"""

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cache.errors import UserError
from extract.config import ImageSettings
from extract.encoders import torchvision_schema  # noqa: F401  (before timm)
from extract.encoders.base import Embedded
from extract.encoders.patches import PatchEncoder, PixelScale, every_patch_valid, standing_in

import timm  # isort: skip
from huggingface_hub import try_to_load_from_cache  # isort: skip
from timm.layers.patch_embed import PatchEmbed  # isort: skip
from timm.models.vision_transformer import VisionTransformer  # isort: skip


class ImageEncoder(PatchEncoder):
    """Patch tokens of a timm Vision Transformer."""

    settings: ImageSettings

    def __init__(self, settings: ImageSettings, saved: dict[str, Any] | None = None) -> None:
        """Build from scratch or pretrained weights; with `saved` (a saved encoder's assets) none are read."""
        architecture = _architecture(settings) if saved is None else saved
        vit = _build(settings, architecture, load_weights=saved is None)
        super().__init__(vit.embed_dim, vit.embed_dim)
        self.settings, self.vit, self.architecture = settings, vit, architecture
        self.scale = PixelScale.of(architecture["scale"]) if "scale" in architecture else PixelScale()
        if saved is None and settings.weights != "scratch":
            self.require_split(vit.forward_features)

    def embed(self, inputs: dict[str, Tensor]) -> Embedded:
        """One token per patch, row by row."""
        tokens = self.vit.patch_embed(inputs["pixels"])
        return every_patch_valid(tokens.flatten(1, 2) if self._keeps_grid else tokens)

    def encode(self, embedded: Embedded) -> Tensor:
        """Positions, blocks and final norm: timm's `forward_features` after the patch embedding."""
        tokens, side = embedded.tokens, self.settings.image_size // self.settings.patch_size
        grid = tokens.unflatten(1, (side, side)) if self._keeps_grid else tokens
        hidden = self._own(grid) if isinstance(self.vit, VisionTransformer) else self._any(grid)
        result: Tensor = hidden[:, hidden.shape[1] - tokens.shape[1] :].float()
        return result

    def blocks(self) -> list[nn.Module]:
        """Transformer blocks."""
        return list(self.vit.blocks)

    def assets(self) -> dict[str, Any]:
        """Name, arguments, preprocessing and origin of a pretrained timm architecture; empty from scratch."""
        return self.architecture

    @property
    def _keeps_grid(self) -> bool:
        """Whether the patch embedding gives [B, rows, columns, D], as models for any image size do."""
        return not self.vit.patch_embed.flatten

    def _own(self, tokens: Tensor) -> Tensor:
        hidden = self.vit.norm_pre(self.vit.patch_drop(self.vit._pos_embed(tokens)))
        result: Tensor = self.vit.norm(self.vit.blocks(hidden))
        return result

    def _any(self, tokens: Tensor) -> Tensor:
        with standing_in(self.vit.patch_embed, tokens):
            result: Tensor = self.vit.forward_features(self.stand_in_pixels(tokens))
        return result


def _architecture(settings: ImageSettings) -> dict[str, Any]:
    """What rebuilds a pretrained network without its hub or folder, and how its pixels are scaled."""
    if settings.weights == "scratch":
        return {}
    if settings.weights.startswith("timm:"):
        name, _, revision = settings.weights.removeprefix("timm:").partition("@")
        config = timm.models.get_pretrained_cfg(name)
        scale = _scale(vars(config)) if config is not None else PixelScale()
        return {"name": name, "arguments": {}, "scale": scale.json(), "origin": {"revision": revision or None}}
    path = Path(settings.weights) / "config.json"
    if not path.is_file():
        raise UserError(
            f"weights '{settings.weights}' must be scratch, timm:<model>, timm:<model>@<commit>, a folder with timm's "
            "config.json, or the folder of a fitted encoder."
        )
    try:
        own = json.loads(path.read_text())
        scale = _scale(own.get("pretrained_cfg") or {})
        return {"name": own["architecture"], "arguments": own.get("model_args") or {}, "scale": scale.json()}
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is no timm configuration: it must name an 'architecture'.") from error


def _scale(config: dict[str, Any]) -> PixelScale:
    plain = PixelScale()
    interpolation = config.get("interpolation") or plain.interpolation
    return PixelScale(tuple(config.get("mean") or plain.mean), tuple(config.get("std") or plain.std), interpolation)


def _build(settings: ImageSettings, architecture: dict[str, Any], *, load_weights: bool) -> Any:
    if settings.image_size % settings.patch_size:
        raise UserError(f"image_size {settings.image_size} must be a multiple of patch_size {settings.patch_size}.")
    if settings.weights == "scratch":
        return _scratch(settings)
    vit: Any = _pretrained(settings, architecture, load_weights)
    if not isinstance(getattr(vit, "patch_embed", None), PatchEmbed) or not hasattr(vit, "blocks"):
        raise UserError(f"{settings.weights} is no plain Vision Transformer. Choose a model such as timm:vit_*.")
    wanted = (settings.width, settings.layers, settings.patch_size)
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
    from_hub = settings.weights.startswith("timm:")
    name = f"local-dir:{settings.weights}" if load_weights and not from_hub else architecture["name"]
    pinned = _pinned(architecture) if load_weights and from_hub else None
    try:
        model: nn.Module = timm.create_model(
            name, pretrained=load_weights, pretrained_cfg_overlay={"hf_hub_id": pinned} if pinned else None, **options
        )
    except (OSError, RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise UserError(
            f"Cannot load {settings.weights}: {error}. Check the name, or the connection to the hub."
        ) from error
    if load_weights and from_hub:
        architecture["origin"] = {"revision": _commit(architecture)}
    return model


def _pinned(architecture: dict[str, Any]) -> str | None:
    """Return the hub repository with the commit that was asked for, None if none was."""
    revision, config = architecture["origin"]["revision"], timm.models.get_pretrained_cfg(architecture["name"])
    return f"{config.hf_hub_id}@{revision}" if revision and config is not None else None


def _commit(architecture: dict[str, Any]) -> str | None:
    """Return the commit of the weights that were loaded, as the hub's local cache has them."""
    config = timm.models.get_pretrained_cfg(architecture["name"])
    if config is None or not config.hf_hub_id:
        return None
    revision = architecture["origin"]["revision"] or "main"
    path = try_to_load_from_cache(config.hf_hub_id, "model.safetensors", revision=revision)
    parts = Path(path).parts if isinstance(path, str) else ()
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else architecture["origin"]["revision"]
