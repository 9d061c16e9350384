"""SimMLM: the gate over what is observed, its mixtures, and the loss of both sets."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from extract.task import task_loss
from train.methods.simmlm import SimMLM, mix
from train.missing import draw_nested, patterns
from train.more_vs_fewer import ranking_loss


@pytest.mark.parametrize("gate", ["class", "modality"])
def test_the_gate_is_a_softmax_over_what_is_observed(kit: Any, gate: str) -> None:
    model = kit.build("simmlm", "multiclass", gate=gate).eval()
    assert isinstance(model, SimMLM)
    batch = kit.batch(patterns(3), "multiclass")
    tokens = model.project(batch)
    weights, alone = model.log_weights(tokens, batch.observed).exp(), model.alone(tokens, batch.observed)
    assert torch.allclose(weights.sum(1), torch.ones(7, weights.shape[-1]))
    assert (weights[~batch.observed] == 0).all()
    logits = model(batch).logits
    for row in range(7):
        seen = batch.observed[row].nonzero().flatten().tolist()
        for c in range(3):
            expected = sum(weights[row, m, c if gate == "class" else 0] * alone[row, m, c] for m in seen)
            assert torch.allclose(logits[row, c], torch.as_tensor(expected), atol=1e-6)


def test_simmlm_s_loss_is_the_mean_of_both_sets_and_the_hinge(kit: Any) -> None:
    model, batch = kit.build("simmlm", more_vs_fewer=0.4), kit.batch(patterns(3))
    assert isinstance(model, SimMLM)
    assert batch.labels is not None
    loss = kit.learn(model, batch, seed=3)["loss"]
    larger, smaller, comparable = draw_nested(batch.observed, torch.Generator().manual_seed(3))
    more, fewer = (model(replace(batch, labels=None).with_observed(kept)).logits for kept in (larger, smaller))
    task = (task_loss(more, batch.labels, model.spec.label) + task_loss(fewer, batch.labels, model.spec.label)) / 2
    hinge = ranking_loss(more, fewer, batch.labels, model.spec.label, comparable)
    assert hinge > 0
    assert torch.allclose(loss, task + 0.4 * hinge, atol=1e-6)


def test_mixed_probabilities(kit: Any) -> None:
    weights = torch.rand(4, 3, 2).softmax(1)
    alone = 2 * torch.randn(4, 3, 2)
    mixed = mix(weights.log(), alone, "probabilities", kit.labels["multilabel"])
    assert torch.allclose(mixed.sigmoid(), (weights * alone.sigmoid()).sum(1), atol=1e-6)
    classes = mix(weights.log(), alone, "probabilities", kit.labels["multiclass"])
    assert torch.allclose(classes.exp(), (weights * alone.softmax(-1)).sum(1), atol=1e-6)
    values = mix(weights.log(), alone, "probabilities", kit.labels["regression"])
    assert torch.allclose(values, (weights * alone).sum(1))
