"""Vision towers of transformers and timm on small random models saved by the test: stock forward, masks, bad images."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cache.errors import UserError
from extract.config import HubImageSettings, ImageSettings
from extract.encoders.hf_image import HubImageEncoder
from extract.encoders.image import ImageEncoder
from extract.encoders.patches import PatchEncoder
from extract.encoders.registry import build_encoder, load_encoder, save_encoder
from extract.samples import ModalitySpec
from extract.values import UnreadableValue, read_value

import timm  # isort: skip  (after the shim)
import transformers  # isort: skip

SPEC = ModalitySpec(name="cxr", kind="image", column="cxr_path")
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
GRID = {"image_size": 16, "patch_size": 4}
MEAN = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25]}


def stock_tower(family: str) -> tuple[Any, Any]:
    """Return a model to save and the tower whose forward is the reference."""
    torch.manual_seed(0)
    if family == "siglip":  # images and texts, as google/siglip2-base-patch16-224
        text = {**SMALL, "vocab_size": 8, "max_position_embeddings": 8}
        config = transformers.SiglipConfig(text_config=text, vision_config={**SMALL, **GRID})
        both = transformers.SiglipModel(config)
        return both, both.vision_model
    if family == "clip":
        text = {**SMALL, "vocab_size": 8, "max_position_embeddings": 8}
        config = transformers.CLIPConfig(text_config=text, vision_config={**SMALL, **GRID}, projection_dim=8)
        both = transformers.CLIPModel(config)
        return both, both.vision_model
    name = {"vit": "ViT", "dinov2": "Dinov2", "siglip_vision": "SiglipVision"}[family]
    tower = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**SMALL, **GRID))
    return tower, tower


def saved(folder: Path, family: str) -> Any:
    both, tower = stock_tower(family)
    both.eval().save_pretrained(folder)
    processor = transformers.SiglipImageProcessorPil(size={"height": 16, "width": 16}, resample=2, **MEAN)
    processor.save_pretrained(folder)
    return tower.eval()


def settings(folder: Path, **changes: Any) -> HubImageSettings:
    sizes = {"width": 16, "layers": 2, "heads": 2, "dropout": 0.0, "channels": 3, "augment": None, **GRID}
    return HubImageSettings(**{"type": "hf_image", "weights": f"hf:{folder}", "revision": None, **sizes, **changes})


def build(folder: Path, **changes: Any) -> PatchEncoder:
    encoder = build_encoder(settings(folder, **changes), SPEC, lambda: []).eval()
    assert isinstance(encoder, HubImageEncoder)
    return encoder


def timm_folder(folder: Path, architecture: str, arguments: dict[str, Any], side: int = 16) -> Any:
    """Write a small random timm model as its own folder; return the model."""
    torch.manual_seed(0)
    stock = timm.create_model(architecture, img_size=side, num_classes=0, global_pool="", **arguments).eval()
    folder.mkdir()
    save_file({k: v.contiguous() for k, v in stock.state_dict().items()}, folder / "model.safetensors")
    own = {"input_size": [3, side, side], "num_classes": 0, "first_conv": "patch_embed.proj", "classifier": "head"}
    own = {**own, "mean": MEAN["image_mean"], "std": MEAN["image_std"], "interpolation": "bicubic"}
    config = {"architecture": architecture, "model_args": arguments, "pretrained_cfg": own}
    (folder / "config.json").write_text(json.dumps(config))
    return stock


def from_timm(folder: Path, **changes: Any) -> ImageEncoder:
    sizes = {"width": 16, "layers": 2, "heads": 2, "dropout": 0.0, "channels": 3, "augment": None, **GRID}
    own = ImageSettings(**{"type": "vit", "weights": str(folder), **sizes, **changes})
    encoder = build_encoder(own, SPEC, lambda: []).eval()
    assert isinstance(encoder, ImageEncoder)
    return encoder


def pictures() -> list[Image.Image]:
    draw = np.random.default_rng(0)
    shapes = [(20, 30, 3), (1, 1), (64, 16)]
    return [Image.fromarray(draw.integers(0, 255, shape, dtype=np.uint8)) for shape in shapes]


TIMM = {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 4}
FAMILIES = ["siglip", "siglip_vision", "clip", "vit", "dinov2", "timm_eva", "timm_beit", "timm_deit"]


def member(family: str, folder: Path) -> tuple[PatchEncoder, Any]:
    """Return an encoder and its network's own forward, tokens of patches only."""
    if family.startswith("timm"):
        name = {
            "eva": "eva02_tiny_patch14_224",
            "beit": "beit_base_patch16_224",
            "deit": "deit3_small_patch16_224",
        }
        stock = timm_folder(folder / "timm", name[family.removeprefix("timm_")], TIMM)
        return from_timm(folder / "timm"), lambda pixels: stock.forward_features(pixels)[:, -16:]
    tower = saved(folder, family)
    return build(folder), lambda pixels: tower(pixel_values=pixels).last_hidden_state[:, -16:]


@pytest.mark.parametrize("family", FAMILIES)
def test_split_equals_the_stock_forward_and_masks_hide(family: str, tmp_path: Path) -> None:
    encoder, stock = member(family, tmp_path)
    items = [encoder.preprocess(picture) for picture in pictures()]
    inputs = encoder.collate(items)
    with torch.no_grad():
        tokens, embedded = encoder(inputs)
        assert torch.allclose(tokens, stock(inputs["pixels"]), atol=1e-5)
        assert torch.allclose(encoder(encoder.collate(items[:1]))[0][0], tokens[0], atol=1e-5)
        assert embedded.maskable.shape == (3, 16)
        assert embedded.maskable.all()
        assert len(encoder.token_spans(pictures()[0])) == 16
        mask = torch.zeros_like(embedded.maskable)
        mask[:, [2, 9]] = True
        inputs["pixels"][:, :, 0:4, 8:12] += 5  # under the mask: the third patch of the first row
        assert torch.allclose(encoder.encode_masked(embedded, mask), encoder.encode_masked(encoder.embed(inputs), mask))
        assert not torch.allclose(encoder(inputs)[0], tokens, atol=1e-4)
        encoder.placeholder.normal_()
        masked = encoder.encode_masked(embedded, mask)
        encoder.placeholder.neg_()
        assert not torch.allclose(encoder.encode_masked(embedded, mask), masked, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_placeholder_mask_and_weights_and_a_saved_encoder_stands_alone(
    family: str, tmp_path: Path
) -> None:
    (tmp_path / "weights").mkdir()
    encoder, _ = member(family, tmp_path / "weights")
    inputs = encoder.collate([encoder.preprocess(picture) for picture in pictures()])
    save_encoder(encoder, tmp_path / "fitted", {"fitted": True})
    shutil.rmtree(tmp_path / "weights")
    with torch.no_grad():
        expected = encoder(inputs)[0]
        assert torch.equal(load_encoder(tmp_path / "fitted")(inputs)[0], expected)
    encoder.train().set_checkpointing(True)
    embedded = encoder.embed(inputs)
    chance = torch.full(embedded.valid.shape, 0.5, requires_grad=True)
    hard = (torch.arange(16) % 2).float() + (chance - chance.detach())
    (encoder.encode_masked(embedded, hard) * torch.randn(16)).sum().backward()
    assert chance.grad is not None
    assert chance.grad.abs().sum() > 0
    assert encoder.placeholder.grad is not None
    assert len(encoder.blocks()) == 2
    assert all(any(p.grad is not None for p in block.parameters()) for block in encoder.blocks())


def test_preprocessing_is_that_of_the_model(tmp_path: Path) -> None:
    saved(tmp_path / "hf", "siglip")
    own = transformers.SiglipImageProcessorPil.from_pretrained(tmp_path / "hf")
    picture = pictures()[0]
    expected = np.asarray(own(picture, return_tensors="np").pixel_values[0])
    assert np.allclose(build(tmp_path / "hf").preprocess(picture)["pixels"], expected, atol=1e-5)
    timm_folder(tmp_path / "timm", "vit_tiny_patch16_224", TIMM)
    encoder = from_timm(tmp_path / "timm")
    assert encoder.spec()["preprocessing"] == {
        "resize": "PIL bicubic, square",
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.3, 0.25],
    }
    assert from_timm(tmp_path / "timm", channels=1).preprocess(picture)["pixels"].shape == (1, 16, 16)


def test_a_whole_text_tower_is_summarised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path, "siglip")
    encoder = build(tmp_path)
    assert "text_model (" in capsys.readouterr().err
    assert any(key.startswith("text_model.") for key in encoder.assets()["origin"]["unknown_keys"])
    assert not any("text" in name or "head" in name for name, _ in encoder.named_parameters())


def test_timm_weights_are_pinned_and_work_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--timm--test_vit.r160_in1k" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    stock = timm.create_model("test_vit").eval()
    save_file(stock.state_dict(), snapshot / "model.safetensors")
    sizes = {"width": 64, "layers": len(stock.blocks), "image_size": 160, "patch_size": 16}
    encoder = from_timm(Path(f"timm:test_vit.r160_in1k@{commit}"), **sizes)
    assert torch.equal(encoder.vit.patch_embed.proj.weight, stock.patch_embed.proj.weight)
    assert encoder.assets()["origin"]["revision"] == commit
    with pytest.raises(UserError, match="Cannot load"):
        from_timm(Path("timm:test_vit2.r160_in1k"), **sizes)


@pytest.mark.parametrize(
    "name", ["convnext_atto", "swin_tiny_patch4_window7_224", "vit_tiny_r_s16_p8_224", "no_such_model"]
)
def test_other_timm_models_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architecture": name}))
    with pytest.raises(UserError, match=r"no plain Vision Transformer|Cannot load"):
        from_timm(tmp_path, image_size=32, patch_size=4)


def test_other_towers_are_refused(tmp_path: Path) -> None:
    saved(tmp_path, "vit")
    with pytest.raises(UserError, match="image_size"):
        build(tmp_path, image_size=32)
    with pytest.raises(UserError, match="width 16"):
        build(tmp_path, width=32)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match="preprocessor_config"):
        build(tmp_path)
    transformers.Siglip2VisionConfig(**SMALL).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="NaFlex"):
        build(tmp_path)
    saved(tmp_path, "vit")
    transformers.ViTMAEModel(transformers.ViTMAEConfig(**SMALL, **GRID)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="one token per patch"):
        build(tmp_path)


def test_damaged_cmyk_and_sixteen_bit_files(tmp_path: Path) -> None:
    saved(tmp_path / "hf", "siglip_vision")
    encoder = build(tmp_path / "hf")
    grey = np.linspace(0, 40000, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "sixteen.png")
    Image.fromarray(np.full((8, 8, 4), 30, np.uint8), "CMYK").save(tmp_path / "cmyk.jpg")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes((tmp_path / "sixteen.png").read_bytes()[:200])

    def pixels(name: str) -> np.ndarray:
        table: Any = SimpleNamespace(root=tmp_path, modality=lambda _: SPEC)
        values: np.ndarray = encoder.preprocess(read_value(table, {"cxr_path": name}, "cxr"))["pixels"]
        return values

    assert len(np.unique(pixels("sixteen.png"))) > 100  # not saturated
    assert pixels("cmyk.jpg").shape == (3, 16, 16)
    for name in ("empty.png", "cut.png"):
        with pytest.raises(UnreadableValue, match="cannot be decoded"):
            pixels(name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vit", "hf_image"])
def test_a_real_size_forward(kind: str) -> None:
    sizes = {"width": 768, "layers": 12, "heads": 12, "image_size": 224, "patch_size": 16, "weights": "scratch"}
    full = settings(Path(), **sizes)
    plain = ImageSettings(**{**full.model_dump(exclude={"revision"}), "type": "vit"})
    encoder = (HubImageEncoder(full) if kind == "hf_image" else ImageEncoder(plain)).eval()
    inputs = encoder.collate([encoder.preprocess(pictures()[0])])
    with torch.no_grad():
        assert encoder(inputs)[0].shape == (1, 196, 768)
