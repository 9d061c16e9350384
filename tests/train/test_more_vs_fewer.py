"""More versus fewer: the hinge against its formula, for any method, on the method's own predictions."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from train.methods.registry import METHODS
from train.missing import draw_nested, patterns
from train.more_vs_fewer import add_ranking, ranking_loss
from train.stage import train_method


def test_the_hinge_is_active_only_where_more_did_worse(kit: Any) -> None:
    label, labels = kit.labels["multilabel"], torch.tensor([[1.0, 0.0], [1.0, math.nan], [0.0, 0.0]])
    more = torch.tensor([[2.0, 1.0], [-1.0, 0.0], [3.0, 3.0]], requires_grad=True)
    fewer = torch.tensor([[1.0, -1.0], [1.0, 5.0], [0.0, 0.0]], requires_grad=True)
    value = ranking_loss(more, fewer, labels, label, torch.tensor([True, True, False]))
    bce = F.binary_cross_entropy_with_logits
    better = bce(more[0, 1], labels[0, 1]) - bce(fewer[0, 1], labels[0, 1])
    expected = (better + bce(more[1, 0], labels[1, 0]) - bce(fewer[1, 0], labels[1, 0])) / 3
    assert torch.allclose(value, expected, atol=1e-6)
    value.backward()
    assert more.grad is not None
    assert fewer.grad is not None
    active = torch.tensor([[0, 1], [1, 0], [0, 0]]).bool()
    assert torch.equal(more.grad != 0, active)
    assert torch.equal(fewer.grad != 0, active)


@pytest.mark.parametrize("name", METHODS)
def test_the_ranking_loss_is_added_to_any_method_and_compares_its_own_predictions(kit: Any, name: str) -> None:
    model, label = kit.build(name).train(), kit.labels["binary"]
    batch, nothing = kit.batch(patterns(3).repeat(4, 1)), {"loss": torch.zeros(())}
    assert batch.labels is not None
    added = add_ranking(nothing, model, batch, 0.5, torch.Generator().manual_seed(2))
    larger, smaller, comparable = draw_nested(batch.observed, torch.Generator().manual_seed(2))
    if name != "random_fill":  # its noise is drawn anew
        more, fewer = (model(replace(batch, labels=None).with_observed(kept)).logits for kept in (larger, smaller))
        expected = ranking_loss(more, fewer, batch.labels, label, comparable)
        assert expected > 0
        assert torch.allclose(added["more_vs_fewer"], expected, atol=1e-6)
    assert torch.allclose(added["loss"], added["more_vs_fewer"] / 2)
    added["loss"].backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    generator = torch.Generator().manual_seed(2)
    before = generator.get_state()
    assert add_ranking(nothing, model, batch, 0.0, generator) is nothing
    assert torch.equal(generator.get_state(), before)


def test_both_predictions_of_the_ranking_loss_use_the_same_dropout(kit: Any) -> None:
    """A sample with one modality is its own comparison; with other dropout it would differ from itself."""
    model, batch = kit.build("flexmoe", dropout=0.5).train(), kit.batch(patterns(3))
    seen: list[Tensor] = []
    model.register_forward_hook(lambda module, given, output: seen.append(output.logits))
    add_ranking({"loss": torch.zeros(())}, model, batch, 1.0, torch.Generator().manual_seed(0))
    single = batch.observed.sum(-1) == 1
    assert torch.equal(seen[0][single], seen[1][single])
    model(replace(batch, labels=None))
    assert not torch.equal(seen[0][single], seen[2][single])


def test_training_adds_the_ranking_loss_when_asked(make_bank, settings, binary, tmp_path) -> None:
    banks = {"train": make_bank(24, 1), "valid": make_bank(24, 2)}
    train = settings.train_settings.model_copy(update={"max_epochs": 1, "more_vs_fewer": 0.1})
    train_method("zero_fill", 0, banks, binary, settings.model_settings, None, train, tmp_path, {})
    assert "more_vs_fewer" in (tmp_path / "history.json").read_text()
