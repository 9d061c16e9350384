"""ShaSpec against loop-written features and losses."""

from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from train.methods.shaspec import ShaSpec
from train.missing import patterns


@pytest.mark.parametrize("missing", ["mean", "first"])
def test_shaspec_features(kit: Any, missing: str) -> None:
    model, observed = kit.build("shaspec", missing=missing).eval(), patterns(3)
    assert isinstance(model, ShaSpec)
    r, s = kit.vectors(observed, seed=1), kit.vectors(observed, seed=2)
    features = model.features(r, s, observed)
    for row in range(7):
        available = [m for m in range(3) if observed[row, m]]
        made = sum(r[row, m] for m in available) / len(available) if missing == "mean" else r[row, available[0]]
        for m in range(3):
            own = r[row, m] + model.join(torch.cat([r[row, m], s[row, m]]))
            assert torch.allclose(features[row, m], own if m in available else made, atol=1e-6)


def pair_distance(model: ShaSpec, kind: str, one: Tensor, other: Tensor) -> Tensor:
    if kind == "l1":
        return (one - other).abs().sum() / len(one)
    if kind == "mse":
        return ((one - other) ** 2).sum() / len(one)
    p, q = model.distribution(one).softmax(-1), model.distribution(other).softmax(-1)
    return ((p * (p / q).log()).sum() + (q * (q / p).log()).sum()) / 2


@pytest.mark.parametrize("kind", ["l1", "mse", "kl", "ce"])
def test_shaspec_losses_are_means_over_what_is_available(kit: Any, kind: str) -> None:
    model, observed = kit.build("shaspec", alignment=kind).eval(), patterns(3)
    assert isinstance(model, ShaSpec)
    r = kit.vectors(observed)
    entries = [(row, m) for row in range(7) for m in range(3) if observed[row, m]]
    if kind == "ce":
        terms = [-sum(model.classify_shared(r[row, m]).softmax(-1).log()) / 3 for row, m in entries]
    else:
        both = [(row, i, j) for row in range(7) for i, j in combinations(range(3), 2) if observed[row, [i, j]].all()]
        terms = [pair_distance(model, kind, r[row, i], r[row, j]) for row, i, j in both]
    assert torch.allclose(model.alignment_loss(r, observed), torch.stack(terms).mean(), atol=1e-6)
    named = [-model.classify_specific(r[row, m]).softmax(-1)[m].log() for row, m in entries]
    assert torch.allclose(model.objective_loss(r, observed), torch.stack(named).mean(), atol=1e-6)
    if kind != "ce":
        assert model.alignment_loss(r[:3], torch.eye(3).bool()) == 0
