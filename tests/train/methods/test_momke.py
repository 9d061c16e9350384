"""MoMKE against its blocks and its mixture written out, and its two stages."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from cache.errors import UserError
from train.methods.momke import ExpertBlock, MoMKE
from train.stage import train_method


def test_an_expert_block_equals_a_loop_written_one(kit: Any) -> None:
    torch.manual_seed(0)
    block, tokens = ExpertBlock(kit.model, "none"), torch.randn(2, 4, 16)
    valid = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0]]).bool()
    result = block(tokens, valid)
    for row in range(2):
        for place in range(4):
            heads = []
            for h in range(2):
                part = slice(8 * h, 8 * h + 8)
                query = block.query(tokens[row, place])[part]
                seen = [t for t in range(4) if valid[row, t]]
                scores = torch.stack([query @ block.key(tokens[row, t])[part] / math.sqrt(8) for t in seen]).softmax(0)
                heads.append(sum(s * block.value(tokens[row, t])[part] for s, t in zip(scores, seen, strict=True)))
            attended = torch.cat(heads)  # type: ignore[arg-type]
            hidden = F.gelu(block.mlp[0](attended))
            expected = tokens[row, place] + attended + block.mlp[3](hidden)
            assert torch.allclose(result[row, place], expected, atol=1e-6)


@pytest.mark.parametrize("level", ["token", "sample"])
def test_momke_mixes_all_experts_and_zeroes_what_is_missing(kit: Any, level: str) -> None:
    model = kit.build("momke", router_level=level).eval()
    assert isinstance(model, MoMKE)
    batch = kit.disguised(kit.batch(torch.tensor([[1, 0, 1], [1, 1, 1], [0, 1, 0]]).bool()))
    tokens = model.project(batch)
    for row in range(3):
        parts, own = [], []
        for column, m in enumerate(kit.widths):
            length = int(batch.valid[m][row].sum())
            z = tokens.values[m][row, :length]
            alone = torch.ones(1, length, dtype=torch.bool)
            router = model.routers[m](z if level == "token" else z.mean(0, keepdim=True)).softmax(-1)
            encoded = [model.experts[k](z[None], alone)[0] for k in kit.widths]
            mixture = sum(router[:, [k]] * encoded[k] for k in range(3))
            parts.append(mixture.mean(0) * batch.observed[row, column])  # type: ignore[union-attr]
            own.append(model.expert_heads[m](encoded[column].mean(0)))
        joined = torch.cat(parts)
        expected = model.head(joined + F.relu(model.joint[0](joined)))
        assert torch.allclose(model(batch).logits[row], expected, atol=1e-6)
        for column in batch.observed[row].nonzero().flatten():
            assert torch.allclose(model.mix(tokens, batch.observed)[1][row, column], own[column], atol=1e-6)
            assert torch.allclose(model.alone(tokens, batch.observed)[row, column], own[column], atol=1e-6)


def test_momke_s_first_stage_is_the_sum_of_the_experts_losses_on_everything_that_is_there(kit: Any) -> None:
    model, observed = kit.build("momke"), torch.tensor([[1, 0, 1], [1, 1, 1], [0, 1, 0]]).bool()
    assert isinstance(model, MoMKE)
    batch = kit.disguised(kit.batch(observed))
    assert batch.labels is not None
    model.start_epoch(0)
    assert not model.warming_up
    model.warmup_epochs = 1
    model.start_epoch(0)
    loss = float(kit.learn(model, batch)["loss"].detach())
    logits = model.alone(model.project(batch), observed)[..., 0]
    total = 0.0
    for column in range(3):
        rows = observed[:, column]
        total += float(F.binary_cross_entropy_with_logits(logits[rows, column], batch.labels[rows]).detach())
    assert loss == pytest.approx(total, rel=1e-5)
    touched = {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None}
    assert touched == {"project", "experts", "expert_heads"}
    model.start_epoch(1)
    assert not model.warming_up


def test_momke_trains_on_a_fixed_pattern_and_knows_its_names(kit: Any) -> None:
    model = kit.build("momke", fixed_pattern=["b"])
    assert isinstance(model, MoMKE)
    natural = torch.tensor([[1, 0, 1], [1, 1, 1]]).bool()
    kept, known = model.simulate(natural, None)
    assert kept.tolist() == [[True, False, True], [False, True, False]]
    assert known.tolist() == [False, True]
    with pytest.raises(UserError, match="fixed_pattern"):
        kit.build("momke", fixed_pattern=["nothing"])


def test_no_epoch_of_a_first_stage_is_selected_and_it_resumes(
    make_bank, settings, binary, tmp_path, interrupted
) -> None:
    banks = {"train": make_bank(24, 1), "valid": make_bank(24, 2)}
    options = settings.compared.momke.model_copy(update={"expert_epochs": 2})
    train = settings.train_settings.model_copy(update={"max_epochs": 3, "patience_epochs": 1})
    given = ("momke", 0, banks, binary, settings.model_settings, options)
    config = train_method(*given, train, tmp_path / "a", {})
    assert config["epochs"] == {"best": 2, "run": 3}

    with interrupted(2):  # in the second epoch, with nothing selected
        train_method(*given, train, tmp_path / "cut", {})
    assert (tmp_path / "cut" / "state.pt").exists()
    resumed = train_method(*given, train, tmp_path / "cut", {})
    assert resumed["weights_sha256"] == config["weights_sha256"]
    with pytest.raises(UserError, match="first stage"):
        train_method(*given, train.model_copy(update={"max_epochs": 2}), tmp_path / "b", {})
