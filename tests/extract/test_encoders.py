"""Encoders: equal to the stock forward; padding and masked content change nothing; gradients; round trips."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cache.errors import UserError
from extract.config import AudioSettings, ImageSettings, TextSettings, TimeSeriesSettings
from extract.encoders.audio import AudioEncoder, mel_filters
from extract.encoders.base import Embedded, Encoder
from extract.encoders.image import ImageEncoder
from extract.encoders.registry import build_encoder, load_encoder, save_encoder
from extract.encoders.text import TextEncoder
from extract.encoders.timeseries import TimeSeriesEncoder
from extract.encoders.tokenizer import train_tokenizer
from extract.samples import ModalitySpec
from extract.values import TimeSeries, UnreadableValue, Waveform

from timm.models.vision_transformer import VisionTransformer  # isort: skip  (after the shim)

SMALL = {"width": 16, "layers": 2, "heads": 2, "dropout": 0.0}
SERIES = TimeSeriesSettings(type="timeseries", bins_per_token=3, max_bins=12, drop_cells=0.0, **SMALL)
IMAGE = ImageSettings(type="vit", weights="scratch", image_size=16, patch_size=4, channels=1, augment=None, **SMALL)
AUDIO = AudioSettings(
    type="logmel", sample_rate_hz=8000, window_ms=32, hop_ms=10, mels=12, frames_per_token=4, max_seconds=1.0, **SMALL
)
TEXT = TextSettings(type="bert", weights="scratch", revision=None, max_tokens=12, vocabulary=60, **SMALL)
WORDS = ["no acute opacity", "large opacity in the left lung", "clear lungs", "no effusion, no pneumothorax here"]


def series(bins: int, seed: int = 0) -> TimeSeries:
    draw = np.random.default_rng(seed)
    values = draw.normal(size=(bins, 3)).astype(np.float32)
    values[draw.random((bins, 3)) < 0.4] = np.nan
    values[0, 0] = 1.0
    return TimeSeries(values)


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (20, 30), dtype=np.uint8))


def tone(seconds: float, rate_hz: int = 8000) -> Waveform:
    time = np.arange(int(seconds * rate_hz)) / rate_hz
    return Waveform(np.sin(2 * np.pi * 440 * time).astype(np.float32) + 0.01, rate_hz)


def make(kind: str) -> tuple[Encoder, list[Any]]:
    torch.manual_seed(0)
    if kind == "series":
        return TimeSeriesEncoder(SERIES, ("a", "b", "c")).eval(), [series(5), series(12, 1), series(1, 2)]
    if kind == "image":
        return ImageEncoder(IMAGE).eval(), [picture(0), picture(1), picture(2)]
    if kind == "audio":
        return AudioEncoder(AUDIO).eval(), [tone(0.3), tone(0.9), tone(0.05)]
    return TextEncoder(TEXT, train_tokenizer(WORDS, 60, 12)).eval(), WORDS[:3]


KINDS = ["series", "image", "audio", "text"]


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind: str) -> None:
    encoder, values = make(kind)
    items = [encoder.preprocess(value) for value in values]
    with torch.no_grad():
        together, embedded = encoder(encoder.collate(items))
        for row, item in enumerate(items):
            alone, single = encoder(encoder.collate([item]))
            assert torch.equal(embedded.valid[row, : single.valid.shape[1]], single.valid[0])
            assert not embedded.valid[row, single.valid.shape[1] :].any()
            length = int(single.valid.sum())
            assert torch.allclose(together[row, :length], alone[0, :length], atol=1e-5)
            assert len(encoder.token_spans(values[row])) == length


@pytest.mark.parametrize("kind", KINDS)
def test_content_under_the_mask_has_no_effect_and_an_empty_mask_is_the_stock_forward(kind: str) -> None:
    encoder, values = make(kind)
    with torch.no_grad():
        embedded = encoder.embed(encoder.collate([encoder.preprocess(v) for v in values]))
        mask = embedded.maskable & (torch.arange(embedded.valid.shape[1]) % 2 == 1)
        noise = torch.where(mask[:, :, None], torch.full_like(embedded.tokens, 50.0), embedded.tokens)
        changed = Embedded(noise, embedded.valid, embedded.maskable)
        assert torch.equal(encoder.encode_masked(embedded, mask), encoder.encode_masked(changed, mask))
        nothing = torch.zeros_like(mask)
        assert torch.equal(encoder.encode_masked(embedded, nothing), encoder.encode(embedded))
        if mask.any():
            assert not torch.allclose(encoder.encode_masked(embedded, mask), encoder.encode(embedded))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_placeholder_mask_and_weights(kind: str) -> None:
    encoder, values = make(kind)
    encoder.train()
    encoder.set_checkpointing(True)
    embedded = encoder.embed(encoder.collate([encoder.preprocess(v) for v in values]))
    mask = torch.full(embedded.valid.shape, 0.5, requires_grad=True)
    (encoder.encode_masked(embedded, mask) * embedded.valid[:, :, None]).square().sum().backward()
    assert encoder.placeholder.grad is not None
    assert encoder.placeholder.grad.abs().sum() > 0
    assert mask.grad is not None
    assert mask.grad.abs().sum() > 0
    assert all(any(p.grad is not None for p in block.parameters()) for block in encoder.blocks())


@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load_gives_identical_tokens(kind: str, tmp_path: Path) -> None:
    encoder, values = make(kind)
    save_encoder(encoder, tmp_path, {"stage": "test"})
    loaded = load_encoder(tmp_path)
    with torch.no_grad():
        inputs = encoder.collate([encoder.preprocess(v) for v in values])
        again = loaded.collate([loaded.preprocess(v) for v in values])
        assert torch.equal(encoder(inputs)[0], loaded(again)[0])
    assert loaded.spec() == encoder.spec()


def test_vit_split_equals_timm_forward_features() -> None:
    encoder, values = make("image")
    assert isinstance(encoder, ImageEncoder)
    inputs = encoder.collate([encoder.preprocess(v) for v in values])
    with torch.no_grad():
        assert torch.allclose(encoder(inputs)[0], encoder.vit.forward_features(inputs["pixels"]), atol=1e-5)


def test_bert_split_equals_the_stock_forward_and_loads_from_a_folder(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel, BertTokenizerFast

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "clear", "lungs", "opacity"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    config = BertConfig(vocab_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    stock = BertModel(config, add_pooling_layer=False).eval()
    stock.save_pretrained(tmp_path)
    settings = TEXT.model_copy(update={"weights": str(tmp_path)})
    spec = ModalitySpec(name="txt", kind="text", column="txt_text")
    encoder = build_encoder(settings, spec, lambda: []).eval()
    assert isinstance(encoder, TextEncoder)
    inputs = encoder.collate([encoder.preprocess("clear lungs"), encoder.preprocess("opacity")])
    with torch.no_grad():
        expected = stock(input_ids=inputs["ids"], attention_mask=inputs["valid"].long()).last_hidden_state
        tokens, embedded = encoder(inputs)
    assert torch.allclose(tokens, expected, atol=1e-5)
    assert torch.equal(encoder.placeholder, stock.get_input_embeddings().weight[4])
    save_encoder(encoder, tmp_path / "saved", {})
    with torch.no_grad():
        assert torch.equal(load_encoder(tmp_path / "saved").eval()(inputs)[0], tokens)
    assert embedded.maskable.tolist() == [[False, True, True, False], [False, True, False, False]]


def test_a_repository_with_a_model_type_of_its_own_gives_a_stock_bert(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "clear"]))
    config = BertConfig(vocab_size=6, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    declared = json.loads((tmp_path / "config.json").read_text())
    remote = {"model_type": "cxr-bert", "auto_map": {"AutoModel": "modeling_cxrbert.CXRBertModel"}}
    (tmp_path / "config.json").write_text(json.dumps({**declared, **remote}))
    spec = ModalitySpec(name="txt", kind="text", column="txt_text")
    settings = TEXT.model_copy(update={"weights": str(tmp_path)})
    assert build_encoder(settings, spec, lambda: []).preprocess("clear")["ids"].tolist() == [2, 5, 3]
    with pytest.raises(UserError, match="positions"):
        build_encoder(settings.model_copy(update={"max_tokens": 600}), spec, lambda: [])
    with pytest.raises(UserError, match="width 16"):
        build_encoder(settings.model_copy(update={"width": 32}), spec, lambda: [])


def test_a_local_timm_folder_loads_and_its_saved_encoder_does_not_need_it(tmp_path: Path) -> None:
    sizes = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
    stock = VisionTransformer(img_size=16, in_chans=1, num_classes=0, **sizes).eval()
    folder = tmp_path / "weights"
    folder.mkdir()
    save_file(stock.state_dict(), folder / "model.safetensors")
    pretrained = {"input_size": [1, 16, 16], "num_classes": 0, "first_conv": "patch_embed.proj", "classifier": "head"}
    config = {"architecture": "vit_tiny_patch16_224", "model_args": sizes, "pretrained_cfg": pretrained}
    (folder / "config.json").write_text(json.dumps(config))
    spec = ModalitySpec(name="cxr", kind="image", column="cxr_path")
    settings = IMAGE.model_copy(update={"weights": str(folder)})
    with pytest.raises(UserError, match="patch_size"):
        build_encoder(settings.model_copy(update={"patch_size": 8}), spec, lambda: [])
    encoder = build_encoder(settings, spec, lambda: []).eval()
    inputs = encoder.collate([encoder.preprocess(picture())])
    with torch.no_grad():
        tokens = encoder(inputs)[0]
        expected = stock.forward_features(inputs["pixels"])[:, 1:]  # this one has a class token
        assert torch.allclose(tokens, expected, atol=1e-5)
        save_encoder(encoder, tmp_path / "saved", {})
        shutil.rmtree(folder)
        assert torch.equal(load_encoder(tmp_path / "saved")(inputs)[0], tokens)


def test_torchvision_imports_beside_any_build_of_torch() -> None:
    code = (
        "from extract.encoders import torchvision_schema\n"
        "torchvision_schema.declare_missing_operators()\n"  # a second call does nothing
        "import torchvision\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_spans_of_a_long_series_count_from_its_start() -> None:
    encoder, _ = make("series")
    assert encoder.token_spans(series(15)) == [(3.0, 6.0), (6.0, 9.0), (9.0, 12.0), (12.0, 15.0)]


def test_series_statistics_ignore_unobserved_cells_and_filling_never_looks_ahead() -> None:
    encoder, _ = make("series")
    assert isinstance(encoder, TimeSeriesEncoder)
    nan = np.nan
    values = np.array([[nan, 2.0, nan], [4.0, nan, nan], [nan, 6.0, nan]], np.float32)
    encoder.fit_statistics([encoder.preprocess(TimeSeries(values))])
    assert encoder.mean.tolist() == [4.0, 4.0, 0.0]
    assert encoder.deviation[1] == 2.0
    filled = encoder._fill(torch.tensor(values)[None], torch.isfinite(torch.tensor(values))[None])[0]
    assert filled.tolist() == [[0.0, 2.0, 0.0], [4.0, 2.0, 0.0], [4.0, 6.0, 0.0]]


def test_series_token_without_an_observed_cell_is_valid_but_not_maskable() -> None:
    encoder, _ = make("series")
    values = np.full((9, 3), np.nan, np.float32)
    values[0, 0] = values[8, 1] = 1.0
    embedded = encoder.embed(encoder.collate([encoder.preprocess(TimeSeries(values))]))
    assert embedded.valid.tolist() == [[True, True, True]]
    assert embedded.maskable.tolist() == [[True, False, True]]


def test_series_augmentation_is_seeded_and_hides_the_asked_share_of_cells() -> None:
    encoder = TimeSeriesEncoder(SERIES.model_copy(update={"drop_cells": 0.25}), ("hr", "map"))
    inputs = {"values": torch.zeros(50, 12, 2), "valid": torch.ones(50, 12, dtype=torch.bool)}
    one = encoder.augment(inputs, torch.Generator().manual_seed(0))["values"]
    two = encoder.augment(inputs, torch.Generator().manual_seed(0))["values"]
    assert torch.equal(one.isnan(), two.isnan())
    assert abs(one.isnan().float().mean().item() - 0.25) < 0.05
    assert not inputs["values"].isnan().any()
    assert "drop_cells" not in encoder.spec()["options"]


def test_audio_resamples_and_mel_filters_cover_the_band() -> None:
    encoder, _ = make("audio")
    slow, fast = encoder.preprocess(tone(0.5))["frames"], encoder.preprocess(tone(0.5, 16000))["frames"]
    assert slow.shape == fast.shape
    assert np.corrcoef(slow.ravel(), fast.ravel())[0, 1] > 0.9
    assert (mel_filters(8000, 256, 12).sum(0)[1:-1] > 0).float().mean() > 0.9


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        ("series", lambda: TimeSeries(np.ones((4, 5), np.float32))),
        ("series", lambda: TimeSeries(np.full((4, 3), np.nan, np.float32))),
        ("audio", lambda: Waveform(np.zeros(800, np.float32), 8000)),
        ("text", lambda: "   "),
    ],
)
def test_unusable_values_have_a_reason(kind: str, bad: Callable[[], Any]) -> None:
    with pytest.raises(UnreadableValue):
        make(kind)[0].preprocess(bad())


def test_an_encoder_of_another_kind_and_an_absent_folder_are_refused(tmp_path: Path) -> None:
    spec = ModalitySpec(name="cxr", kind="image", column="cxr_path")
    with pytest.raises(UserError, match="reads timeseries"):
        build_encoder(SERIES, spec, lambda: [])
    with pytest.raises(UserError, match="selfmask fit"):
        load_encoder(tmp_path / "nothing")
