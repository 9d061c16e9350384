"""Learned token, SMIL, MedFuse, ShaSpec and M3Care against loop-written references of what they claim."""

from itertools import combinations
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cache.errors import UserError
from extract.task import task_loss
from train.methods.m3care import M3Care, Nodes, kernel
from train.methods.medfuse import MedFuse
from train.methods.shaspec import ShaSpec
from train.methods.smil import Smil, meta_sets, moved
from train.missing import patterns

CLOSE = {"atol": 1e-6, "rtol": 1e-5}


def vectors(observed: Tensor, width: int = 16, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*observed.shape, width, generator=generator) * observed[:, :, None]


def test_a_learned_token_of_zeros_is_zero_fill(kit: Any) -> None:
    learned, zero, batch = kit.build("learned_token").eval(), kit.build("zero_fill").eval(), kit.batch(kit.mixed())
    state = {name: value for name, value in learned.state_dict().items() if "missing_token" not in name}
    zero.load_state_dict(state)
    with torch.no_grad():
        before = learned(batch).logits
        for token in learned.missing_token.values():  # type: ignore[union-attr,operator]
            token.zero_()
        assert torch.allclose(learned(batch).logits, zero(batch).logits, **CLOSE)
        assert not torch.allclose(before, zero(batch).logits, **CLOSE)


def lstm(model: MedFuse, sequence: list[Tensor]) -> Tensor:
    """The LSTM's equations, gate by gate; last hidden state [2 D]."""
    p = dict(model.lstm.named_parameters())
    h = c = torch.zeros(model.lstm.hidden_size)
    for x in sequence:
        gates = p["weight_ih_l0"] @ x + p["bias_ih_l0"] + p["weight_hh_l0"] @ h + p["bias_hh_l0"]
        i, f, g, o = gates.chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
    return h


def test_medfuse_is_an_lstm_over_what_is_there_and_one_modality_is_one_step(kit: Any) -> None:
    observed = patterns(3)
    given = vectors(observed)
    for first, order in (([], [0, 1, 2]), (["c"], [2, 0, 1])):
        model = kit.build("medfuse", first=first).eval()
        assert isinstance(model, MedFuse)
        assert model.order == order
        with torch.no_grad():
            logits = model.fuse(given, observed, model.order)
            for row in range(7):
                sequence = [given[row, m] for m in order if observed[row, m]]
                assert torch.allclose(logits[row], model.head(lstm(model, sequence)), **CLOSE)


def test_medfuse_refuses_an_unknown_first_modality(kit: Any) -> None:
    with pytest.raises(UserError, match=r"\['d'\]"):
        kit.build("medfuse", first=["d"])


def test_medfuse_trains_on_the_asked_share_of_incomplete_rows(kit: Any) -> None:
    batch = kit.batch(kit.mixed())
    assert batch.labels is not None
    model = kit.build("medfuse", incomplete_share=0.0, draw="natural").train()
    losses = model(batch, torch.Generator().manual_seed(0)).losses
    complete = batch.observed.all(-1)
    logits = model.eval()(batch).logits
    assert torch.allclose(
        losses["task"], task_loss(logits[complete], batch.labels[complete], model.spec.label), **CLOSE
    )


def test_medfuse_unimodal_losses_see_only_the_rows_that_have_the_modality(kit: Any) -> None:
    model, batch = kit.build("medfuse").eval(), kit.batch(kit.mixed())
    assert isinstance(model, MedFuse)
    assert batch.labels is not None
    given, losses = vectors(batch.observed), []
    for m, head in enumerate(model.unimodal_heads):
        own = [
            F.binary_cross_entropy_with_logits(head(given[row, m])[0], batch.labels[row])
            for row in range(14)
            if batch.observed[row, m]
        ]
        losses.append(sum(own) / len(own))
    expected = sum(losses) / 3
    assert torch.allclose(model.unimodal_loss(given, batch.labels, batch.observed), torch.as_tensor(expected), **CLOSE)


@pytest.mark.parametrize("missing", ["mean", "first"])
def test_shaspec_features(kit: Any, missing: str) -> None:
    model, observed = kit.build("shaspec", missing=missing).eval(), patterns(3)
    assert isinstance(model, ShaSpec)
    r, s = vectors(observed, seed=1), vectors(observed, seed=2)
    features = model.features(r, s, observed)
    for row in range(7):
        available = [m for m in range(3) if observed[row, m]]
        made = sum(r[row, m] for m in available) / len(available) if missing == "mean" else r[row, available[0]]
        for m in range(3):
            own = r[row, m] + model.join(torch.cat([r[row, m], s[row, m]]))
            assert torch.allclose(features[row, m], own if m in available else made, **CLOSE)


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
    r = vectors(observed)
    entries = [(row, m) for row in range(7) for m in range(3) if observed[row, m]]
    if kind == "ce":
        terms = [-sum(model.classify_shared(r[row, m]).softmax(-1).log()) / 3 for row, m in entries]
    else:
        both = [(row, i, j) for row in range(7) for i, j in combinations(range(3), 2) if observed[row, [i, j]].all()]
        terms = [pair_distance(model, kind, r[row, i], r[row, j]) for row, i, j in both]
    assert torch.allclose(model.alignment_loss(r, observed), torch.stack(terms).mean(), **CLOSE)
    named = [-model.classify_specific(r[row, m]).softmax(-1)[m].log() for row, m in entries]
    assert torch.allclose(model.objective_loss(r, observed), torch.stack(named).mean(), **CLOSE)
    if kind != "ce":
        assert model.alignment_loss(r[:3], torch.eye(3).bool()) == 0


def smil(kit: Any, **changes: object) -> Smil:
    model = kit.build("smil", **changes).train()
    assert isinstance(model, Smil)
    model.network.update_dictionary(vectors(torch.ones(12, 3).bool(), seed=5), torch.ones(12, 3).bool())
    return model


def test_smil_reconstructs_by_a_convex_mix_of_the_priors(kit: Any) -> None:
    network, observed = smil(kit).network, patterns(3)
    h = vectors(observed)
    made = network.reconstruct(h, observed, noisy=False, generator=None)
    for row in range(7):
        available = [j for j in range(3) if observed[row, j]]
        for m in range(3):
            context = sum(network.weigh[j](h[row, j]).view(3, 10)[m] for j in available) / len(available)
            weight = (1 + context.exp()).log()
            mix = sum(weight[k] * network.dictionary[m, k] for k in range(10)) / weight.sum()
            assert torch.allclose(made[row, m], mix, **CLOSE)
    paper = smil(kit, weights="gaussian").network
    mean = paper.dictionary.mean(1).expand(7, -1, -1)  # omega is one without noise
    assert torch.allclose(paper.reconstruct(h, observed, noisy=False, generator=None), mean, **CLOSE)


def test_smil_leaves_complete_rows_alone_and_regularises_the_others(kit: Any) -> None:
    model = smil(kit).eval()
    assert isinstance(model, Smil)
    network, batch = model.network, kit.batch(patterns(3)[[6, 1]])
    tokens = model.project(batch)
    h, _ = network.encode(tokens, batch.observed)
    given = network(tokens, batch.observed, False, None)
    assert torch.allclose(given.logits[0], network.head(F.relu(network.hidden(h[0].flatten()))), **CLOSE)
    made = network.reconstruct(h, batch.observed, False, None)[1]
    u = torch.cat([made[0], h[1, 1], made[2]]) + F.softplus(network.regularise_u(h[1, 1]))
    v = F.relu(network.hidden(u)) + F.softplus(network.regularise_v(u))
    assert torch.allclose(given.logits[1], network.head(v), **CLOSE)


def test_smil_meta_sets_fall_back_when_a_kind_of_row_is_absent() -> None:
    full, two, one = [True] * 3, [True, True, False], [False, False, True]
    for rows, inner, outer in (
        ([full, two, one], [1, 2], [0]),
        ([full, full], [0, 1], [0, 1]),
        ([two, one], [0, 1], [0]),
        ([one, one], [0, 1], []),
    ):
        found = meta_sets(torch.tensor(rows))
        assert [part.tolist() for part in found] == [inner, outer]


def test_smil_second_order_gradient_is_the_derivative_of_the_whole_step(kit: Any) -> None:
    """Central differences along a random direction of a weight of theta; the first-order gradient differs."""
    batch = kit.batch(kit.mixed())
    assert batch.labels is not None
    direction = torch.randn(16, 48, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def slopes(order: str) -> tuple[float, float]:
        model = smil(kit, order=order, inner_rate=0.5).double()
        stored = {name: value.clone() for name, value in model.state_dict().items()}
        tokens = {m: value.double() for m, value in batch.tokens.items()}
        doubled = type(batch)(tokens, batch.valid, batch.maskable, batch.observed, batch.labels.double())

        def loss(shift: float) -> Tensor:
            model.load_state_dict(stored)
            with torch.no_grad():
                model.network.hidden.weight.add_(shift * direction)
            return model(doubled, torch.Generator().manual_seed(0)).losses["loss"]

        model.zero_grad()
        loss(0.0).backward()
        gradient = model.network.hidden.weight.grad
        assert gradient is not None
        numeric = (float(loss(1e-6).detach()) - float(loss(-1e-6).detach())) / 2e-6
        return float((gradient * direction).sum()), numeric

    analytic, numeric = slopes("second")
    assert analytic == pytest.approx(numeric, rel=1e-6)
    analytic, numeric = slopes("first")
    assert analytic != pytest.approx(numeric, rel=1e-3)


def test_moving_k_means() -> None:
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [99.0, 99.0]])
    rows = torch.tensor([[1.0, 0.0], [3.0, 0.0], [9.0, 2.0]])
    expected = torch.tensor([[0.2, 0.0], [9.9, 0.2], [99.0, 99.0]])
    assert torch.allclose(moved(centres, rows, 0.9), expected, **CLOSE)


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
    assert torch.allclose(kernel(u, reference), expected, **CLOSE)
    assert torch.isfinite(kernel(u[:1], reference[:1])).all()


@pytest.mark.parametrize("similarity", ["sum", "product"])
def test_m3care_graph_averages_shared_modalities_and_cuts_weak_edges(kit: Any, similarity: str) -> None:
    model, observed = m3care(kit, similarity=similarity, threshold=0.6), patterns(3)
    nodes = whole_batch(vectors(observed), observed)
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
    h, graph = vectors(observed), torch.rand(14, 14) * (torch.rand(14, 14) > 0.5)
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
            assert torch.allclose(completed[i, m], expected, **CLOSE)
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
    h = vectors(alone)
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
