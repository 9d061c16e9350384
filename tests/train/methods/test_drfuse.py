"""DrFuse: pooled logits, divergences, orthogonality and attention against their formulas."""

import math
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from extract.task import LabelKind, loss_entries
from train.methods.drfuse import (
    ClassAttention,
    attention_ranking,
    divergence,
    official_divergence,
    orthogonality,
    pool_logits,
)

SUBSETS = [[0], [2], [0, 1], [1, 2], [0, 1, 2]]


def observed_of(subsets: list[list[int]]) -> Tensor:
    return torch.tensor([[m in subset for m in range(3)] for subset in subsets])


def test_pooled_logits_are_the_logit_of_the_mean_probability() -> None:
    shared = 3 * torch.randn(5, 3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pooled = pool_logits(shared, observed_of(SUBSETS))
    for row, subset in enumerate(SUBSETS):
        assert torch.allclose(pooled[row], shared[row, subset].sigmoid().mean(0).logit(), atol=1e-6)
    one, two = shared[:, 0], shared[:, 1]
    zero = torch.zeros_like(one)
    official = torch.stack([one + two, one + two, one, two]).logsumexp(0)
    official = official - torch.stack([zero, zero, one, two]).logsumexp(0)
    assert torch.allclose(pool_logits(shared, observed_of([[0, 1]] * 5)), official, atol=1e-6)


def test_divergence_equals_the_direct_formula_and_is_between_zero_and_log_m() -> None:
    shared = 3 * torch.randn(5, 3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    observed, direct, one_side = observed_of(SUBSETS), [], []
    for row, subset in enumerate(SUBSETS):
        p = shared[row, subset].sigmoid()
        mid = p.mean(0)
        left = (p * (p / mid).log()).mean(0)
        right = ((1 - p) * ((1 - p) / (1 - mid)).log()).mean(0)
        assert torch.allclose(divergence(shared[[row]], observed[[row]]), (left + right).mean(), atol=1e-6)
        assert torch.allclose(official_divergence(shared[[row]], observed[[row]]), left.sum(), atol=1e-6)
        direct.append((left + right).mean())
        one_side.append(left.sum())
    assert torch.allclose(divergence(shared, observed), torch.stack(direct[2:]).mean(), atol=1e-6)
    assert torch.allclose(official_divergence(shared, observed), torch.stack(one_side[2:]).mean(), atol=1e-6)


@pytest.mark.parametrize("of", [divergence, official_divergence])
def test_divergence_of_saturated_logits_is_finite_and_ignores_what_is_missing(of: Any) -> None:
    shared = torch.tensor([[[200.0], [-200.0], [7.0]], [[-200.0], [-200.0], [7.0]]], requires_grad=True)
    observed = observed_of([[0, 1], [0, 1]])
    value = of(shared, observed)
    value.backward()
    assert shared.grad is not None
    assert shared.grad.isfinite().all()
    assert (shared.grad[:, 2] == 0).all()
    expected = {divergence: math.log(2), official_divergence: math.log(2) / 2}[of]
    assert float(value.detach()) == pytest.approx(expected / 2, abs=1e-6)  # the second sample agrees with itself
    assert float(of(shared.detach(), observed_of([[0], [1]]))) == 0


def test_orthogonality_and_attention_equal_loop_written_ones() -> None:
    torch.manual_seed(0)
    shared, distinct, observed = torch.randn(5, 3, 8), torch.randn(5, 3, 8), observed_of(SUBSETS)
    total = 0.0
    for m in range(3):
        cosines = [abs(F.cosine_similarity(shared[b, m], distinct[b, m], dim=0)) for b in range(5) if observed[b, m]]
        total += float(sum(cosines)) / len(cosines)
    assert float(orthogonality(shared, distinct, observed)) == pytest.approx(total, abs=1e-6)
    for keys in ("full", "low_rank"):
        attention = ClassAttention(8, 3, keys)  # type: ignore[arg-type]
        logits, alpha = attention(shared, observed)
        for b, subset in enumerate(SUBSETS):
            query = torch.stack([attention.query(shared[b, n]) for n in subset]).mean(0)
            for c in range(3):
                key = [attention.key(shared[b, n]) for n in subset]
                key = [k * attention.class_key[c] if keys == "low_rank" else k[8 * c : 8 * c + 8] for k in key]
                share = torch.stack([query @ k / math.sqrt(8) for k in key]).softmax(0)
                mixed = sum(s * attention.value(shared[b, n]) for s, n in zip(share, subset, strict=True))
                assert torch.allclose(alpha[b, subset, c], share, atol=1e-6)
                assert torch.allclose(logits[b, c], attention.out(mixed)[c], atol=1e-6)


@pytest.mark.parametrize("kind", get_args(LabelKind))
def test_attention_ranking_equals_a_loop_written_one(kit: Any, kind: str) -> None:
    generator, label = torch.Generator().manual_seed(0), kit.labels[kind]
    results = {"multiclass": 3, "multilabel": 2}.get(kind, 1)
    observed, labels = observed_of(SUBSETS), kit.labels_for(kind, 5, generator)
    alpha = torch.rand(5, 4, results, generator=generator, requires_grad=True)
    alone = torch.randn(5, 4, results, generator=generator, requires_grad=True)
    labels[4] = math.nan
    value = attention_ranking(alpha, alone, observed, labels, label)
    terms = []
    for i in range(4):
        for j in range(i + 1, 4):
            positive = []
            for b in range(4):  # the last has no label
                if observed[b].sum() < 2 or not all(n == 3 or observed[b, n] for n in (i, j)):
                    continue
                l_i, l_j = (loss_entries(alone[b : b + 1, n], labels[b : b + 1], label).flatten() for n in (i, j))
                for k in range(len(l_i)):
                    shares = alpha[b].mean(-1) if kind == "multiclass" else alpha[b, :, k]
                    y = 1 if l_i[k] < l_j[k] else -1
                    positive += [h for h in [float((-y * (shares[i] - shares[j])).detach())] if h > 0]
            terms.append(sum(positive) / max(1, len(positive)))
    assert float(value.detach()) == pytest.approx(sum(terms) / 6, abs=1e-6)
    value.backward()
    assert alone.grad is None
