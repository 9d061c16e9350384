"""wav2vec of 2019: its equations, clips of any length side by side, masks, and files of fairseq's layout."""

import argparse
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cache.errors import UserError
from extract.config import ConvolutionalSpeechSettings
from extract.encoders.registry import build_encoder, load_encoder, save_encoder
from extract.encoders.wav2vec import AGGREGATOR, EXTRACTOR, Wav2VecEncoder, load_published
from extract.samples import ModalitySpec
from extract.values import Waveform

SPEC = ModalitySpec(name="speech", kind="audio", column="speech_path")


def settings(**changes: Any) -> ConvolutionalSpeechSettings:
    fields = {"type": "wav2vec", "weights": "scratch", "width": 8, "sample_rate_hz": 16000, "max_seconds": 0.5}
    return ConvolutionalSpeechSettings.model_validate({**fields, **changes})


def encoder(**changes: Any) -> Wav2VecEncoder:
    torch.manual_seed(0)
    model = Wav2VecEncoder(settings(**changes)).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms and biases that are not zero or one
            torch.nn.init.normal_(parameter, mean=0.5, std=0.2)
    return model


def noise(samples: int, seed: int = 0, rate_hz: int = 16000) -> Waveform:
    return Waveform(np.random.default_rng(seed).normal(size=samples).astype(np.float32) * 0.1, rate_hz)


def reference(model: Wav2VecEncoder, samples: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The paper's two networks by their equations, for one clip; [T, D] each."""
    state, x = model.state_dict(), samples[None, None]

    def norm_relu(x: torch.Tensor, name: str, place: int) -> torch.Tensor:
        whole = (x - x.mean((1, 2), keepdim=True)) / (x.var((1, 2), unbiased=False, keepdim=True) + 1e-5).sqrt()
        return (whole * state[f"{name}.{place}.weight"][:, None] + state[f"{name}.{place}.bias"][:, None]).relu()

    for layer, (_, stride) in enumerate(EXTRACTOR):
        name = f"feature_extractor.conv_layers.{layer}"
        x = norm_relu(F.conv1d(x, state[f"{name}.0.weight"], stride=stride), name, 2)
    features = x = (x.abs() + 1).log()
    for layer, kernel in enumerate(AGGREGATOR):
        name = f"feature_aggregator.conv_layers.{layer}"
        padded = torch.cat([x[:, :, :1].expand(-1, -1, kernel - 1), x], dim=2)
        new = F.conv1d(padded, state[f"{name}.1.weight"], state[f"{name}.1.bias"])
        x = (norm_relu(new, name, 3) + x) * 0.5**0.5
    return features[0].T, x[0].T


def test_clips_of_any_length_side_by_side_equal_the_equations() -> None:
    model = encoder()
    clips = [noise(4000), noise(800, 1), noise(10, 2), noise(20000, 3), noise(4000, 4)]
    items = [model.preprocess(clip) for clip in clips]
    with torch.no_grad():
        together, embedded = model(model.collate(items))
        assert embedded.valid.sum(1).tolist() == [model.length(item) for item in items]
        assert [len(model.token_spans(clip)) for clip in clips] == [model.length(item) for item in items]
        for row, item in enumerate(items):
            features, context = reference(model, torch.from_numpy(item["samples"]))
            assert torch.allclose(embedded.tokens[row, : len(features)], features, atol=1e-5)
            assert torch.allclose(together[row, : len(context)], context, atol=1e-5)


def test_a_second_has_a_hundred_tokens() -> None:
    model = encoder(max_seconds=2.0)
    assert model.hop == 160
    assert model.window == 465
    assert model.length(model.preprocess(noise(16000))) == 98
    assert model.length(model.preprocess(noise(44100, rate_hz=44100))) == 98


def test_a_masked_frame_has_no_effect_and_gradients_reach_everything() -> None:
    model = encoder().train()
    embedded = model.embed(model.collate([model.preprocess(noise(3000)), model.preprocess(noise(2000, 1))]))
    mask = torch.zeros(embedded.valid.shape)
    mask[:, 3] = 1
    mask.requires_grad_()
    changed = embedded.tokens.detach().clone()
    changed[:, 3] = 7.0
    hidden = model.encode_masked(embedded, mask)
    other = model.encode_masked(type(embedded)(changed, embedded.valid, embedded.maskable), mask)
    assert torch.allclose(hidden, other, atol=1e-5)
    assert not torch.allclose(hidden, model.encode(embedded), atol=1e-3)
    hidden.square().sum().backward()
    assert mask.grad is not None
    assert mask.grad[:, 3].abs().min() > 0
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_saved_encoder_gives_the_same_tokens(tmp_path: Path) -> None:
    model = encoder()
    save_encoder(model, tmp_path, {})
    batch = model.collate([model.preprocess(noise(3000))])
    with torch.no_grad():
        assert torch.equal(load_encoder(tmp_path)(batch)[0], model(batch)[0])


def recorded_meter(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An object of a class that only the training script's machine has."""

    class AverageMeter:
        def __init__(self) -> None:
            self.sum, self.count = 3.0, 2

    AverageMeter.__module__, AverageMeter.__qualname__ = "fairseq.meters", "AverageMeter"
    module = ModuleType("fairseq.meters")
    module.AverageMeter = AverageMeter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fairseq", ModuleType("fairseq"))
    monkeypatch.setitem(sys.modules, "fairseq.meters", module)
    return AverageMeter()


def test_a_file_of_fairseq_s_layout_is_loaded_strictly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    own = {k: v for k, v in Wav2VecEncoder(settings(width=512)).state_dict().items() if k != "placeholder"}
    others = {"wav2vec_predictions.project_to_steps.weight": torch.zeros(2)}
    extra = {"train_meters": {"train_loss": recorded_meter(monkeypatch)}, "epoch": 3}
    content = {"args": argparse.Namespace(arch="wav2vec"), "model": {**own, **others}, "extra_state": extra}
    torch.save(content, tmp_path / "large.pt")
    monkeypatch.undo()
    chosen = settings(width=512, weights=str(tmp_path / "large.pt"))
    built = build_encoder(chosen, SPEC, list)
    assert all(torch.equal(built.state_dict()[key], value) for key, value in own.items())
    assert built.assets()["origin"]["unused_keys"] == list(others)
    own.popitem()
    torch.save({"args": None, "model": own}, tmp_path / "large.pt")
    (tmp_path / "torn.pt").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(UserError, match="2 weights are absent"):
        build_encoder(chosen, SPEC, list)
    model = Wav2VecEncoder(settings(width=512))
    with pytest.raises(UserError, match="no checkpoint of wav2vec"):
        load_published(model, tmp_path / "torn.pt")
    with pytest.raises(UserError, match="There is no"):
        load_published(model, tmp_path / "absent.pt")
    with pytest.raises(UserError, match="width 512"):
        load_published(encoder(), tmp_path / "large.pt")
