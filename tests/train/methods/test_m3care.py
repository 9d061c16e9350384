"""M3Care against loop-written kernels, graphs and completions, and what it remembers."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from train.methods.m3care import M3Care, Nodes, kernel
from train.missing import patterns


def m3care(kit: Any, **changes: object) -> M3Care:
    model = kit.build("m3care", **changes).eval()
    assert isinstance(model, M3Care)
    return model


def whole_batch(h: Tensor, observed: Tensor) -> Nodes:
    everyone = torch.ones(len(h), dtype=torch.bool)
    return Nodes(h, observed, everyone.expand(len(h), len(h)), everyone)


def test_m3care_kernel() -> None:
    u, reference = torch.randn(6, 4), torch.tensor([1, 1, 0, 1, 1, 0]).bool()
    chosen = [i for i in range(6) if reference[i]]
    b = sum(float((u[i] - u[j]).square().sum()) for i in chosen for j in chosen) / (len(chosen) ** 2 - len(chosen))
    expected = torch.empty(6, 6)
    for i in range(6):
        for j in range(6):
            d = (u[i] - u[j]).square().sum()
            expected[i, j] = sum(torch.exp(-d / (q * b)) for q in (0.5, 1.0, 2.0)) / 3
    assert torch.allclose(kernel(u, reference), expected, atol=1e-6)
    assert torch.isfinite(kernel(u[:1], reference[:1])).all()


@pytest.mark.parametrize("similarity", ["sum", "product"])
def test_m3care_graph_averages_shared_modalities_and_cuts_weak_edges(kit: Any, similarity: str) -> None:
    model, observed = m3care(kit, similarity=similarity, threshold=0.6), patterns(3)
    nodes = whole_batch(kit.vectors(observed), observed)
    graph = model.graph(nodes)
    single = [model.graph.similarity(nodes, m).detach() for m in range(3)]
    for i in range(7):
        for j in range(7):
            shared = [m for m in range(3) if observed[i, m] and observed[j, m]]
            mean = sum(float(single[m][i, j]) for m in shared) / max(1, len(shared))
            assert float(graph[i, j].detach()) == pytest.approx(mean if mean > 0.6 else 0.0, abs=1e-6)
    assert (graph.diagonal() > 0.99).all()
    (gradient,) = torch.autograd.grad(graph.sum(), model.graph.cut)
    assert float(gradient) == pytest.approx(-float((graph > 0).sum()) * 0.6 * 0.4, rel=1e-5)


@pytest.mark.parametrize("normalise", [True, False])
def test_m3care_masks_columns_so_that_who_lacks_a_modality_is_informed(kit: Any, normalise: bool) -> None:
    model, observed = m3care(kit, normalise_rows=normalise), kit.mixed()
    h, graph = kit.vectors(observed), torch.rand(14, 14) * (torch.rand(14, 14) > 0.5)
    graph.fill_diagonal_(1.0)
    completed = model.complete(whole_batch(h, observed), graph)
    for m in range(3):
        edges = torch.stack([graph[:, j] * float(observed[j, m]) for j in range(14)], dim=1)
        if normalise:
            edges = torch.stack([row / row.sum() if row.sum() else row for row in edges])

        def layer(linear: torch.nn.Module, x: Tensor, edges: Tensor = edges) -> Tensor:
            return torch.stack([F.relu(linear(sum(edges[i, j] * x[j] for j in range(14)))) for i in range(14)])

        gathered = layer(model.second[m], layer(model.first[m], h[:, m]))
        for i in range(14):
            a, c = model.gate_graph[m](gathered[i]).sigmoid(), model.gate_own[m](h[i, m]).sigmoid()
            mixed_vector = (a * gathered[i] + c * h[i, m]) / (a + c)
            expected = mixed_vector if observed[i, m] else gathered[i] if edges[i].sum() else model.missing_token[m]
            assert torch.allclose(completed[i, m], expected, atol=1e-6)
        absent = completed[~observed[:, m], m]
        assert len(absent.unique(dim=0)) > 1  # the official row mask would give one constant


def test_m3care_remembers_the_last_rows_and_a_missing_neighbour_falls_back(kit: Any) -> None:
    model = m3care(kit, memory=5)
    rows, has = torch.arange(8.0).view(8, 1, 1).expand(8, 3, 16), torch.ones(8, 3).bool()
    model.remember(rows[:3], has[:3])
    model.remember(rows[3:6], has[3:6])
    assert model.memory[:, 0, 0].tolist() == [5.0, 1.0, 2.0, 3.0, 4.0]
    model.remember(rows[[0, 0, 3, 4, 5, 6, 7]], has[:7])
    assert sorted(model.memory[:, 0, 0].tolist()) == [3.0, 4.0, 5.0, 6.0, 7.0]
    alone = torch.eye(3).bool()
    h = kit.vectors(alone)
    completed = model.complete(whole_batch(h, alone), model.graph(whole_batch(h, alone)))
    assert torch.equal(completed[0, 1:], model.missing_token[1:])


def test_m3care_in_the_official_mode_depends_on_the_batch(kit: Any) -> None:
    model, batch = m3care(kit, neighbours="batch", threshold=0.1), kit.batch(patterns(3))
    other = kit.batch(patterns(3), seed=1)
    tokens = {m: torch.cat([v[:1], other.tokens[m][1:]]) for m, v in batch.tokens.items()}
    valid = {m: torch.cat([v[:1], other.valid[m][1:]]) for m, v in batch.valid.items()}
    changed = type(batch)(tokens, valid, batch.maskable, batch.observed, batch.labels)
    with torch.no_grad():
        assert not torch.allclose(model(batch).logits[0], model(changed).logits[0], atol=1e-5)
