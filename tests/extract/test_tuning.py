"""How encoders are trained, on every kind: last blocks, layer decay, adapters, checkpointing, precision."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cache.errors import UserError
from extract.config import LoraSettings, TuningSettings
from extract.encoders.base import Encoder
from extract.encoders.registry import save_encoder
from extract.precision import autocast
from extract.tuning import choose_trained, gradient_scaler, parameter_groups, tune

PLAIN = TuningSettings(
    blocks="all",
    lora=None,
    layer_decay=1.0,
    warmup_steps=0,
    precision="float32",
    micro_batches=1,
    checkpointing=False,
)
LORA = LoraSettings(rank=2, alpha=4, dropout=0.0)


def changed(**changes: Any) -> TuningSettings:
    return PLAIN.model_copy(update=changes)


def loss(encoder: Encoder, inputs: dict[str, Tensor]) -> Tensor:
    """A loss on masked inputs, so that the placeholder takes part."""
    embedded = encoder.embed(inputs)
    mask = (embedded.maskable & (torch.arange(embedded.valid.shape[1]) % 2 == 1)).float()
    tokens = encoder.encode_masked(embedded, mask) * embedded.valid[:, :, None]
    weights = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(0))
    return (tokens * weights).mean()


def gradients(encoder: Encoder, inputs: dict[str, Tensor], precision: str = "float32") -> dict[str, Tensor]:
    encoder.train().zero_grad(set_to_none=True)
    with autocast(precision, "cpu"):
        value = loss(encoder, inputs)
    value.backward()
    return {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}


def stir(encoder: Encoder) -> None:
    """Move adapters away from their start, at which they do nothing."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3, generator=generator)


@torch.no_grad()
def tokens(encoder: Encoder, inputs: dict[str, Tensor]) -> Tensor:
    values, embedded = encoder.eval()(inputs)
    return values * embedded.valid[:, :, None]


def test_training_the_last_blocks_leaves_the_rest_bit_identical(small: Any) -> None:
    encoder, inputs = small.encoder().train(), small.inputs()
    tune(encoder, changed(blocks=1), inputs)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    last = {id(p) for p in encoder.blocks()[-1].parameters()} | {id(encoder.placeholder)}
    allowed = {name for name, p in encoder.named_parameters() if id(p) in last}
    optimizer = torch.optim.AdamW(parameter_groups(encoder, 0.1, 1.0), weight_decay=0.1)
    loss(encoder, inputs).backward()
    optimizer.step()
    moved = {name for name, value in encoder.state_dict().items() if not torch.equal(value, before[name])}
    assert moved <= allowed
    assert "placeholder" in moved
    assert len(moved) > len(allowed) / 2


def test_the_blocks_to_train_may_be_all_none_or_more_than_there_are(small: Any) -> None:
    encoder = small.encoder()
    for wanted, expected in ((0, [False] * 3), (2, [False, True, True]), (9, [True] * 3), ("all", [True] * 3)):
        choose_trained(encoder, wanted)
        assert [all(p.requires_grad for p in block.parameters()) for block in encoder.blocks()] == expected
        assert encoder.placeholder.requires_grad
        outside = [p for name, p in encoder.named_parameters() if name != "placeholder"]
        assert all(p.requires_grad for p in outside) == (wanted == "all")


def test_layer_decay_gives_each_block_its_rate(small: Any) -> None:
    encoder = small.encoder()
    groups = parameter_groups(encoder, 0.1, 0.5)
    rate = {id(p): round(group["lr"], 9) for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(rate) == len(list(encoder.parameters()))
    for block, expected in zip(encoder.blocks(), (0.0125, 0.025, 0.05), strict=True):
        assert {rate[id(p)] for p in block.parameters()} == {expected}
    assert rate[id(encoder.placeholder)] == 0.1
    inside = {id(p) for block in encoder.blocks() for p in block.parameters()}
    first = next(p for p in encoder.parameters() if p is not encoder.placeholder)
    before_blocks = id(first) not in inside
    assert before_blocks == (small.kind != "manet")  # whose first block is the network that sees the frames
    assert rate[id(first)] == (0.00625 if before_blocks else 0.0125)
    assert {value for key, value in rate.items() if key not in inside} <= {0.00625, 0.1}
    choose_trained(encoder, 1)
    assert {round(group["lr"], 9) for group in parameter_groups(encoder, 0.1, 0.5)} == {0.05, 0.1}


def test_adapters_alone_are_trained_and_merge_into_a_plain_encoder(small: Any, tmp_path: Path) -> None:
    encoder, inputs = small.encoder(), small.inputs()
    plain = {name: value.clone() for name, value in encoder.state_dict().items()}
    start = tokens(encoder, inputs)
    finish = tune(encoder, changed(lora=LORA, blocks=2), inputs)
    trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trained - {"placeholder"})
    assert "placeholder" in trained
    assert torch.allclose(tokens(encoder, inputs), start, atol=1e-6)  # adapters start as nothing
    reached = gradients(encoder, inputs)
    assert reached.keys() == trained
    assert any(float(value.abs().sum()) > 0 for name, value in reached.items() if "lora_B" in name)
    first, *rest = ([name for name, _ in block.named_parameters()] for block in encoder.blocks())
    assert not any("lora_" in name for name in first)
    assert all(any("lora_" in name for name in block) for block in rest)
    stir(encoder)
    adapted = tokens(encoder, inputs)
    finish()
    assert not torch.allclose(adapted, start, atol=1e-3)
    assert torch.allclose(tokens(encoder, inputs), adapted, atol=1e-5)
    assert encoder.state_dict().keys() == plain.keys()
    moved = {name for name, value in encoder.state_dict().items() if not torch.equal(value, plain[name])}
    assert moved
    assert all(("attn" in name or "attention" in name) and "weight" in name for name in moved)
    save_encoder(encoder, tmp_path, {})
    assert not any("lora" in file.read_text() for file in tmp_path.glob("*.json"))


@pytest.mark.parametrize("lora", [None, LORA])
def test_checkpointing_gives_the_same_gradients(small: Any, lora: LoraSettings | None) -> None:
    found = []
    for enabled in (False, True):
        encoder, inputs = small.encoder(), small.inputs()
        tune(encoder, changed(lora=lora, checkpointing=enabled), inputs)
        stir(encoder)
        calls = [0]
        inner = next(m for m in encoder.blocks()[1].modules() if "LayerNorm" in type(m).__name__)
        inner.register_forward_pre_hook(lambda *_, calls=calls: calls.__setitem__(0, calls[0] + 1))
        found.append(gradients(encoder, inputs))
        assert calls == [2 if enabled else 1]
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][name], atol=1e-6), name


@pytest.mark.parametrize("lora", [None, LORA])
def test_bfloat16_gradients_point_the_same_way(small: Any, lora: LoraSettings | None) -> None:
    encoder, inputs = small.encoder(), small.inputs()
    tune(encoder, changed(lora=lora), inputs)
    stir(encoder)
    exact, mixed = gradients(encoder, inputs), gradients(encoder, inputs, "bfloat16")
    assert all(value.dtype == torch.float32 for value in mixed.values())
    one, two = (torch.cat([found[name].flatten() for name in exact]) for found in (exact, mixed))
    assert not torch.equal(one, two) or small.kind == "deberta"  # which runs in float32
    assert torch.nn.functional.cosine_similarity(one, two, dim=0) > 0.99


def test_networks_that_read_past_their_adapters_are_refused(past_adapters: Any) -> None:
    with pytest.raises(UserError, match=r"does not use an adapter in .*0\..* lora: null"):
        tune(past_adapters.encoder(), changed(lora=LORA), past_adapters.inputs())


def test_without_peft_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, small: Any) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"pip install 'selfmask\[lora\]'"):
        tune(small.encoder(), changed(lora=LORA), small.inputs())


def test_float16_needs_a_cuda_device() -> None:
    with pytest.raises(UserError, match=r"float16 needs a CUDA device.*bfloat16"):
        gradient_scaler("float16", "cpu")
    assert not gradient_scaler("bfloat16", "cpu").is_enabled()
