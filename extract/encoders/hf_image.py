"""Vision towers of transformers: SigLIP and SigLIP2 (fixed resolution), CLIP, ViT, DINOv2 and others of that kind.

The mask point is the output of the patch convolution, before positions and extra tokens; the latter take part in
attention and are dropped at the end. Of a model of images and texts only the vision tower is loaded, without its head.
SigLIP2's NaFlex variant, whose grid follows the shape of the picture, is refused.
"""

from typing import Any

from PIL import Image
from torch import Tensor, nn

from cache.errors import UserError
from extract.config import HubImageSettings
from extract.encoders import pretrained
from extract.encoders.base import Embedded
from extract.encoders.patches import PatchEncoder, PixelScale, every_patch_valid, standing_in

from transformers import AutoModel, CLIPVisionModel, ImageProcessingMixin  # isort: skip
from transformers import SiglipVisionConfig, SiglipVisionModel  # isort: skip

SIGLIP = ("siglip", "siglip_vision_model")
NAFLEX = ("siglip2", "siglip2_vision_model")


class HubImageEncoder(PatchEncoder):
    """Patch tokens of a vision tower of transformers."""

    settings: HubImageSettings

    def __init__(self, settings: HubImageSettings, saved: dict[str, Any] | None = None) -> None:
        """Build from scratch or pretrained weights; with `saved` (a saved encoder's assets) none are looked for."""
        if saved is None:
            trunk, scale, origin = _build(settings)
        else:
            trunk = pretrained.rebuild(saved["config"])
            scale, origin = PixelScale.of(saved["scale"]), saved["origin"]
        super().__init__(trunk.config.hidden_size, trunk.config.hidden_size)
        self.settings, self.scale, self.origin, self.trunk = settings, scale, origin, trunk
        if saved is None:
            self.require_split(lambda pixels: trunk(pixel_values=pixels).last_hidden_state)

    def embed(self, inputs: dict[str, Tensor]) -> Embedded:
        """One token per patch, row by row."""
        return every_patch_valid(_patches(self.trunk)(inputs["pixels"]).flatten(2).transpose(1, 2))

    def encode(self, embedded: Embedded) -> Tensor:
        """Positions, extra tokens, blocks and final norm: the tower's own forward after the patch embedding."""
        tokens = embedded.tokens
        side = self.settings.image_size // self.settings.patch_size
        with standing_in(_patches(self.trunk), tokens.transpose(1, 2).unflatten(2, (side, side))):
            output = self.trunk(pixel_values=self.stand_in_pixels(tokens)).last_hidden_state
        result: Tensor = output[:, output.shape[1] - tokens.shape[1] :].float()
        return result

    def blocks(self) -> list[nn.Module]:
        """Transformer blocks."""
        return pretrained.transformer_blocks(self.trunk)

    def assets(self) -> dict[str, Any]:
        """The tower's sizes, its preprocessing, and where its weights came from."""
        return {"config": pretrained.saved_config(self.trunk), "scale": self.scale.json(), "origin": self.origin}


def _patches(trunk: nn.Module) -> nn.Conv2d:
    """Return the convolution that cuts an image into patches."""
    convolutions = (m for m in trunk.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == m.stride)
    found = next(convolutions, None)
    if found is None:
        raise UserError(f"{type(trunk).__name__} does not cut images into patches. Choose a plain Vision Transformer.")
    return found


def _build(settings: HubImageSettings) -> tuple[Any, PixelScale, dict[str, Any]]:
    if settings.weights == "scratch":
        return _scratch(settings), PixelScale(), {}
    kind = pretrained.declared(settings.weights, settings.revision).get("model_type")
    if kind in NAFLEX:
        raise UserError(f"{settings.weights} is a NaFlex model. Choose a SigLIP2 of fixed resolution (patch16-224).")
    classes = {"clip": CLIPVisionModel, **dict.fromkeys(SIGLIP, SiglipVisionModel)}
    options = {"vision_use_head": False} if kind in SIGLIP else {}
    trunk, origin = pretrained.load_trunk(
        classes.get(str(kind), AutoModel), settings.weights, settings.revision, may_lack=("mask_token",), **options
    )
    trunk = pretrained.without_pooler(trunk)
    pretrained.require_sizes(trunk, settings.weights, settings.width, settings.layers)
    _require_grid(trunk, settings)
    return trunk, _scale(settings), origin


def _require_grid(trunk: Any, settings: HubImageSettings) -> None:
    config, conv = trunk.config, _patches(trunk)
    side = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
    found = (side, conv.kernel_size[0], conv.in_channels)
    if found != (settings.image_size, settings.patch_size, settings.channels):
        raise UserError(
            f"{settings.weights} has (image_size, patch_size, channels) {found}; params.yaml says "
            f"{(settings.image_size, settings.patch_size, settings.channels)}. Use the model's."
        )


def _scale(settings: HubImageSettings) -> PixelScale:
    name = settings.weights.removeprefix(pretrained.HUB)
    with pretrained.loading(f"preprocessor_config.json of {settings.weights}"):
        own = ImageProcessingMixin.get_image_processor_dict(name, revision=settings.revision)[0]
        interpolation = Image.Resampling(own["resample"]).name.lower()
        if not own.get("do_normalize", True):
            return PixelScale((0.0,), (1.0,), interpolation)
        return PixelScale(tuple(own["image_mean"]), tuple(own["image_std"]), interpolation)


def _scratch(settings: HubImageSettings) -> Any:
    config = SiglipVisionConfig(
        **pretrained.sizes(settings),
        image_size=settings.image_size,
        patch_size=settings.patch_size,
        num_channels=settings.channels,
        attention_dropout=settings.dropout,
        vision_use_head=False,
    )
    return SiglipVisionModel(config)
