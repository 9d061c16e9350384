"""Text encoders of transformers on small random models saved by the test: stock forward, masks, weights, bad inputs."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from torch import nn

from cache.errors import UserError
from extract.config import TextSettings
from extract.encoders.base import Embedded
from extract.encoders.registry import build_encoder, load_encoder, save_encoder
from extract.encoders.text import TextEncoder
from extract.encoders.tokenizer import train_tokenizer
from extract.samples import ModalitySpec
from extract.values import UnreadableValue

import transformers  # isort: skip  (after the shim)

SPEC = ModalitySpec(name="txt", kind="text", column="txt_text")
WORDS = ["no acute opacity", "large opacity in the left lung", "clear", "no effusion, no pneumothorax here"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
RELATIVE = {"relative_attention": True, "position_biased_input": False, "type_vocab_size": 0, "initializer_range": 0.5}
V3 = {"pos_att_type": ["p2c", "c2p"], "position_buckets": 16, "share_att_key": True, "norm_rel_ebd": "layer_norm"}
FAMILIES = ["bert", "deberta", "deberta-v2", "roberta", "distilbert"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(WORDS, 200, 12)


def stock_model(family: str, vocabulary: int) -> Any:
    torch.manual_seed(0)
    if family == "bert":
        return transformers.BertModel(transformers.BertConfig(vocab_size=vocabulary, **SIZES), add_pooling_layer=False)
    if family == "deberta":
        sizes = {**SIZES, **RELATIVE, "pos_att_type": ["c2p", "p2c"]}
        return transformers.DebertaModel(transformers.DebertaConfig(vocab_size=vocabulary, **sizes))
    if family == "deberta-v2":
        return transformers.DebertaV2Model(
            transformers.DebertaV2Config(vocab_size=vocabulary, **SIZES, **RELATIVE, **V3)
        )
    if family == "roberta":
        config = transformers.RobertaConfig(vocab_size=vocabulary, max_position_embeddings=40, **SIZES)
        return transformers.RobertaForMaskedLM(config)  # has no pooler: the encoder must not miss it
    config = transformers.DistilBertConfig(vocab_size=vocabulary, dim=16, n_layers=2, n_heads=2, hidden_dim=32)
    return transformers.DistilBertModel(config)


def saved(folder: Path, family: str, tokenizer: Tokenizer) -> Any:
    """Write a small random model and its tokenizer; return the model."""
    stock = stock_model(family, tokenizer.get_vocab_size()).eval()
    stock.save_pretrained(folder)
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    (folder / "vocab.txt").write_text("\n".join(word for word, _ in vocabulary))
    return stock


def settings(folder: Path, family: str, **changes: Any) -> TextSettings:
    kind = {"bert": "bert", "deberta": "deberta", "deberta-v2": "deberta"}.get(family, "hf_text")
    sizes = {"width": 16, "layers": 2, "heads": 2, "dropout": 0.0, "max_tokens": 12, "vocabulary": 60}
    return TextSettings(**{"type": kind, "weights": f"hf:{folder}", "revision": None, **sizes, **changes})


def build(folder: Path, family: str, **changes: Any) -> TextEncoder:
    encoder = build_encoder(settings(folder, family, **changes), SPEC, lambda: []).eval()
    assert isinstance(encoder, TextEncoder)
    return encoder


@pytest.mark.parametrize("family", FAMILIES)
def test_split_equals_the_stock_forward_alone_and_padded(family: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    stock = saved(tmp_path, family, tokenizer)
    stock = getattr(stock, "roberta", stock)
    encoder = build(tmp_path, family)
    items = [encoder.preprocess(text) for text in [*WORDS, "opacity " * 50]]
    with torch.no_grad():
        inputs = encoder.collate(items)
        together, embedded = encoder(inputs)
        for row, item in enumerate(items):
            length = len(item["ids"])
            alone = stock(input_ids=inputs["ids"][row : row + 1, :length]).last_hidden_state[0]
            assert torch.allclose(together[row, :length], alone, atol=1e-5)
            assert not embedded.maskable[row][[0, length - 1]].any()
            assert embedded.maskable[row, 1 : length - 1].all()
        assert len(items[-1]["ids"]) == 12
    assert torch.equal(encoder.placeholder, stock.get_input_embeddings().weight[4])
    assert encoder.token_spans(WORDS[0])[:3] == [(0, 0), (0, 2), (3, 8)]


@pytest.mark.parametrize("family", FAMILIES)
def test_masked_positions_follow_the_placeholder_and_gradients_flow(
    family: str, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    saved(tmp_path, family, tokenizer)
    encoder = build(tmp_path, family)
    embedded = encoder.embed(encoder.collate([encoder.preprocess(text) for text in WORDS]))
    mask = (embedded.maskable & (torch.arange(embedded.valid.shape[1]) % 2 == 1)).float()
    noise = Embedded(embedded.tokens + 9 * mask[:, :, None], embedded.valid, embedded.maskable)
    with torch.no_grad():
        masked = encoder.encode_masked(embedded, mask)
        assert torch.allclose(masked, encoder.encode_masked(noise, mask), atol=1e-6)
        # a placeholder knows where it is, also through distances alone
        assert not torch.allclose(masked[3, 1], masked[3, 3], atol=1e-4)
        encoder.placeholder.mul_(-1)
        assert not torch.allclose(masked, encoder.encode_masked(embedded, mask), atol=1e-4)
    encoder.train().set_checkpointing(True)
    chance = torch.full_like(mask, 0.5).requires_grad_()
    hard = mask + (chance - chance.detach())  # straight through
    encoder.encode_masked(
        encoder.embed(encoder.collate([encoder.preprocess(t) for t in WORDS])), hard
    ).square().sum().backward()
    assert chance.grad is not None
    assert chance.grad[embedded.valid].abs().min() > 0
    assert encoder.placeholder.grad is not None
    assert all(p.grad is not None for block in encoder.blocks() for p in block.parameters())
    assert len(encoder.blocks()) == 2


@pytest.mark.parametrize("family", ["deberta-v2", "roberta"])
def test_a_saved_encoder_needs_no_repository_and_can_be_started_from(
    family: str, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    repository, folder = tmp_path / "repository", tmp_path / "fitted"
    saved(repository, family, tokenizer)
    encoder = build(repository, family)
    save_encoder(encoder, folder, {"fitted": True})
    for path in repository.iterdir():
        path.unlink()
    again, started = load_encoder(folder), build(folder, family, weights=str(folder))
    inputs = encoder.collate([encoder.preprocess(text) for text in WORDS])
    with torch.no_grad():
        expected = encoder(inputs)[0]
        assert torch.equal(again(inputs)[0], expected)
        assert torch.equal(started(inputs)[0], expected)
    assert json.loads((folder / "config.json").read_text())["assets"]["origin"]["sha256"]
    with pytest.raises(UserError, match="max_tokens 12"):
        build(folder, family, weights=str(folder), max_tokens=6)


def test_cxr_bert_is_a_stock_trunk_and_its_own_keys_are_listed(
    tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path, "bert", tokenizer)
    stock = transformers.BertForPreTraining(
        transformers.BertConfig(vocab_size=tokenizer.get_vocab_size(), **SIZES)
    ).eval()
    stock.cls_projection_head = nn.Linear(16, 8)
    stock.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    remote = {
        "model_type": "cxr-bert",
        "auto_map": {"AutoModel": "modeling_cxrbert.CXRBertModel"},
        "projection_size": 8,
    }
    (tmp_path / "config.json").write_text(json.dumps({**config, **remote}))
    encoder = build(tmp_path, "bert")
    inputs = encoder.collate([encoder.preprocess(WORDS[0])])
    with torch.no_grad():
        assert torch.allclose(encoder(inputs)[0], stock.bert(inputs["ids"]).last_hidden_state, atol=1e-5)
    unknown = encoder.assets()["origin"]["unknown_keys"]
    assert {key.split(".")[0] for key in unknown} >= {"cls", "cls_projection_head"}
    assert "cls_projection_head.weight" in capsys.readouterr().err


def test_bin_files_are_read_as_tensors_only(tmp_path: Path, tokenizer: Tokenizer) -> None:
    stock = saved(tmp_path, "bert", tokenizer)
    (tmp_path / "model.safetensors").unlink()
    torch.save(stock.half().state_dict(), tmp_path / "pytorch_model.bin")
    encoder = build(tmp_path, "bert")
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    assert list(encoder.assets()["origin"]["sha256"]) == ["pytorch_model.bin"]

    class Harmful:
        def __reduce__(self) -> Any:
            return (Path(tmp_path / "harm").touch, ())

    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Harmful()}))
    with pytest.raises(UserError, match="Cannot load"):
        build(tmp_path, "bert")
    assert not (tmp_path / "harm").exists()


def test_weights_that_do_not_fit_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    saved(tmp_path, "bert", tokenizer)
    with pytest.raises(UserError, match="no DeBERTa"):
        build(tmp_path, "deberta")
    with pytest.raises(UserError, match="width 16 and 2 layers"):
        build(tmp_path, "bert", width=32)
    with pytest.raises(UserError, match="positions"):
        build(tmp_path, "bert", max_tokens=600)
    with pytest.raises(UserError, match="no from-scratch form"):
        build_encoder(settings(tmp_path, "hf_text", weights="scratch"), SPEC, lambda: WORDS)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="Cannot load"):
        build(tmp_path, "bert")
    saved(tmp_path, "bert", tokenizer)
    state = stock_model("bert", tokenizer.get_vocab_size()).state_dict()
    transformers.BertModel(transformers.BertConfig(vocab_size=tokenizer.get_vocab_size(), **SIZES)).save_pretrained(
        tmp_path, state_dict={key: value for key, value in state.items() if "layer.1.output" not in key}
    )
    with pytest.raises(UserError, match="would stay random"):
        build(tmp_path, "bert")


def test_other_text_models_are_refused_with_a_reason(tmp_path: Path, tokenizer: Tokenizer) -> None:
    saved(tmp_path, "roberta", tokenizer)
    with pytest.raises(UserError, match="40 positions"):
        build(tmp_path, "roberta", max_tokens=60)
    with pytest.raises(UserError, match="does not run on 40"):  # two of its positions are not for tokens
        build(tmp_path, "roberta", max_tokens=40)
    sizes = {"vocab_size": 60, "d_model": 16, "d_ff": 16, "d_kv": 8, "num_layers": 1, "num_heads": 2}
    transformers.T5Config(**sizes).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="decoder"):
        build(tmp_path, "t5")


def test_the_hub_cache_works_offline_and_the_commit_is_recorded(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub.constants as constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--bert"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    saved(repository / "snapshots" / commit, "bert", tokenizer)
    encoder = build(tmp_path, "bert", weights="hf:someone/bert")
    assert encoder.assets()["origin"]["revision"] == commit
    assert f"Set revision: {commit}" in capsys.readouterr().err
    build(tmp_path, "bert", weights="hf:someone/bert", revision=commit)
    assert "not pinned" not in capsys.readouterr().err
    with pytest.raises(UserError, match=r"Cannot load .*hf:someone/other"):
        build(tmp_path, "bert", weights="hf:someone/other")


@pytest.mark.parametrize("text", ["", "   \n\t"])
def test_text_without_a_token_has_a_reason(text: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    saved(tmp_path, "deberta-v2", tokenizer)
    with pytest.raises(UnreadableValue, match="no token"):
        build(tmp_path, "deberta-v2").preprocess(text)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_deberta_v1_runs_under_autocast(precision: torch.dtype, tmp_path: Path, tokenizer: Tokenizer) -> None:
    saved(tmp_path, "deberta", tokenizer)
    encoder = build(tmp_path, "deberta")
    inputs = encoder.collate([encoder.preprocess(WORDS[0])])
    with torch.no_grad():
        expected = encoder(inputs)[0]
        with torch.autocast("cpu", precision):
            assert torch.allclose(encoder(inputs)[0], expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "deberta"])
def test_a_real_size_forward(kind: str, tokenizer: Tokenizer) -> None:
    sizes = {"width": 768, "layers": 12, "heads": 12, "max_tokens": 512}
    full = settings(Path(), kind, type=kind, weights="scratch", **sizes)
    encoder = TextEncoder(full, train_tokenizer(WORDS, 60, 512)).eval()
    inputs = encoder.collate([encoder.preprocess("opacity " * 600)])
    with torch.no_grad():
        tokens, embedded = encoder(inputs)
        assert tokens.shape == (1, 512, 768)
        assert torch.allclose(tokens, encoder.bert(inputs["ids"]).last_hidden_state, atol=1e-5)
    assert int(embedded.maskable.sum()) == 510
