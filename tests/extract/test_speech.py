"""wav2vec 2.0 and relatives on small random models saved by the test: stock forward, padding, masks, bad clips."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from cache.errors import UserError
from extract.config import SpeechSettings
from extract.encoders.base import Embedded
from extract.encoders.registry import build_encoder, load_encoder, save_encoder
from extract.encoders.wav2vec2 import Wav2Vec2Encoder
from extract.samples import ModalitySpec
from extract.values import UnreadableValue, Waveform

import transformers  # isort: skip  (after the shim)

SPEC = ModalitySpec(name="speech", kind="audio", column="speech_path")
SMALL = {
    **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
    **{"conv_dim": (8,) * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "vocab_size": 8},
    **{"hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "feat_proj_dropout": 0.0},
}
FAMILIES = {"base": "Wav2Vec2", "layer": "Wav2Vec2", "hubert": "Hubert", "wavlm": "WavLM"}


def saved(folder: Path, family: str = "base", **changes: Any) -> Any:
    torch.manual_seed(0)
    name = FAMILIES[family]
    norm = "layer" if family == "layer" else "group"
    config = getattr(transformers, f"{name}Config")(**{**SMALL, "feat_extract_norm": norm, **changes})
    stock = getattr(transformers, f"{name}Model")(config).eval()
    stock.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return stock


def settings(folder: Path, **changes: Any) -> SpeechSettings:
    sizes = {"width": 16, "layers": 2, "heads": 2, "dropout": 0.0, "sample_rate_hz": 16000, "max_seconds": 0.5}
    return SpeechSettings(**{"type": "wav2vec2", "weights": f"hf:{folder}", "revision": None, **sizes, **changes})


def build(folder: Path, **changes: Any) -> Wav2Vec2Encoder:
    encoder = build_encoder(settings(folder, **changes), SPEC, lambda: []).eval()
    assert isinstance(encoder, Wav2Vec2Encoder)
    return encoder


def noise(samples: int, seed: int = 0, rate_hz: int = 16000) -> Waveform:
    draw = np.random.default_rng(seed)
    return Waveform((draw.normal(size=samples) * 0.1 + 0.05).astype(np.float32), rate_hz)


CLIPS = [
    noise(4000),
    noise(800, 1),
    noise(10, 2),
    noise(20000, 3),
    noise(4000, 4),
]  # also shorter and longer than may be


@pytest.mark.parametrize("family", FAMILIES)
def test_split_equals_the_stock_forward_alone_and_padded(family: str, tmp_path: Path) -> None:
    stock = saved(tmp_path, family)
    encoder = build(tmp_path)
    own = transformers.Wav2Vec2FeatureExtractor.from_pretrained(tmp_path)
    items = [encoder.preprocess(clip) for clip in CLIPS]
    assert np.allclose(items[0]["samples"], own(CLIPS[0].samples, sampling_rate=16000).input_values[0], atol=1e-5)
    with torch.no_grad():
        together, embedded = encoder(encoder.collate(items))
        assert embedded.valid.sum(1).tolist() == [12, 2, 1, 24, 12]
        for row, item in enumerate(items):
            alone = stock(torch.from_numpy(item["samples"])[None]).last_hidden_state[0]
            assert torch.allclose(together[row, : len(alone)], alone, atol=1e-5)
            assert torch.allclose(encoder(encoder.collate([item]))[0][0], alone, atol=1e-5)
            assert len(encoder.token_spans(CLIPS[row])) == len(alone)
    assert encoder.token_spans(CLIPS[1]) == [(0.0, 0.025), (0.02, 0.045)]


@pytest.mark.parametrize("family", ["base", "hubert"])
def test_masked_frames_follow_the_placeholder_and_gradients_flow(family: str, tmp_path: Path) -> None:
    stock = saved(tmp_path, family)
    encoder = build(tmp_path)
    assert torch.equal(encoder.placeholder, stock.masked_spec_embed)
    inputs = encoder.collate([encoder.preprocess(clip) for clip in CLIPS])
    with torch.no_grad():
        embedded = encoder.embed(inputs)
        kept = embedded.tokens.clone()
        mask = embedded.maskable & (torch.arange(embedded.valid.shape[1]) % 4 < 2)
        hidden = Embedded(torch.where(mask[:, :, None], 9.0, embedded.tokens), embedded.valid, embedded.maskable)
        masked = encoder.encode_masked(embedded, mask)
        assert torch.equal(masked, encoder.encode_masked(hidden, mask))
        everything = encoder.encode_masked(embedded, embedded.maskable)[0]
        assert not torch.allclose(everything[0], everything[5], atol=1e-4)  # the positions are not masked
        assert torch.equal(embedded.tokens, kept)
        encoder.placeholder.neg_()
        assert not torch.allclose(masked, encoder.encode_masked(embedded, mask), atol=1e-4)
    encoder.train().set_checkpointing(True)
    embedded = encoder.embed(inputs)
    chance = torch.full(mask.shape, 0.5, requires_grad=True)
    tokens = encoder.encode_masked(embedded, mask + (chance - chance.detach()))
    (tokens * embedded.valid[:, :, None]).square().sum().backward()
    assert chance.grad is not None
    assert chance.grad[embedded.valid].abs().min() > 0
    assert encoder.placeholder.grad is not None
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []


def test_a_saved_encoder_needs_no_repository_and_can_be_started_from(tmp_path: Path) -> None:
    saved(tmp_path / "hub")
    encoder = build(tmp_path / "hub")
    save_encoder(encoder, tmp_path / "fitted", {"fitted": True})
    (tmp_path / "hub" / "config.json").unlink()
    inputs = encoder.collate([encoder.preprocess(clip) for clip in CLIPS])
    with torch.no_grad():
        expected = encoder(inputs)[0]
        assert torch.equal(load_encoder(tmp_path / "fitted")(inputs)[0], expected)
        assert torch.equal(build(tmp_path, weights=str(tmp_path / "fitted"))(inputs)[0], expected)


def test_weights_of_pretraining_load_without_its_heads(tmp_path: Path) -> None:
    saved(tmp_path)
    sizes = {"num_codevectors_per_group": 4, "codevector_dim": 4, "proj_codevector_dim": 4}
    stock = transformers.Wav2Vec2ForPreTraining(transformers.Wav2Vec2Config(**SMALL, **sizes)).eval()
    stock.save_pretrained(tmp_path)
    encoder = build(tmp_path)
    assert torch.equal(encoder.placeholder, stock.wav2vec2.masked_spec_embed)
    assert len(encoder.assets()["origin"]["unknown_keys"]) == 7


def test_models_of_another_kind_are_refused(tmp_path: Path) -> None:
    saved(tmp_path, add_adapter=True)
    with pytest.raises(UserError, match="adapter"):
        build(tmp_path)
    saved(tmp_path)
    with pytest.raises(UserError, match="16000 Hz"):
        build(tmp_path, sample_rate_hz=8000)
    with pytest.raises(UserError, match="width 16"):
        build(tmp_path, width=32)
    config = transformers.BertConfig(hidden_size=16, num_attention_heads=2, intermediate_size=16, vocab_size=8)
    transformers.BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"not of wav2vec 2\.0's kind"):
        build(tmp_path)


def test_stereo_44_khz_and_very_short_files_are_resampled_and_silence_has_a_reason(tmp_path: Path) -> None:
    saved(tmp_path / "hub")
    encoder = build(tmp_path / "hub")
    stereo = np.stack([noise(2205).samples, noise(2205, 1).samples], 1)  # 0.05 s
    soundfile.write(tmp_path / "stereo.wav", stereo, 44100)
    read, rate = soundfile.read(tmp_path / "stereo.wav", dtype="float32")
    item = encoder.preprocess(Waveform(read.mean(1), rate))
    assert item["samples"].shape == (800,)
    assert abs(item["samples"].mean()) < 1e-4
    assert abs(item["samples"].std() - 1) < 1e-3
    with pytest.raises(UnreadableValue, match="silent"):
        encoder.preprocess(Waveform(np.zeros(16000, np.float32), 16000))


@pytest.mark.slow
def test_a_real_size_forward() -> None:
    full = settings(Path(), weights="scratch", width=768, layers=12, heads=12, max_seconds=7.0)
    encoder = Wav2Vec2Encoder(full).eval()
    inputs = encoder.collate([encoder.preprocess(noise(16000 * 8))])
    with torch.no_grad():
        tokens, embedded = encoder(inputs)
        assert tokens.shape == (1, 349, 768)
        assert torch.allclose(tokens, encoder.trunk(inputs["samples"]).last_hidden_state, atol=1e-5)
    assert bool(embedded.maskable.all())
