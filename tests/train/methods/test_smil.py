"""SMIL against loop-written reconstructions and the derivative of its whole meta-step."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from train.methods.smil import Smil, meta_sets, moved
from train.missing import patterns


def smil(kit: Any, **changes: object) -> Smil:
    model = kit.build("smil", **changes).train()
    assert isinstance(model, Smil)
    model.network.update_dictionary(kit.vectors(torch.ones(12, 3).bool(), seed=5), torch.ones(12, 3).bool())
    return model


def test_smil_reconstructs_by_a_convex_mix_of_the_priors(kit: Any) -> None:
    network, observed = smil(kit).network, patterns(3)
    h = kit.vectors(observed)
    made = network.reconstruct(h, observed, noisy=False, generator=None)
    for row in range(7):
        available = [j for j in range(3) if observed[row, j]]
        for m in range(3):
            context = sum(network.weigh[j](h[row, j]).view(3, 10)[m] for j in available) / len(available)
            weight = (1 + context.exp()).log()
            mix = sum(weight[k] * network.dictionary[m, k] for k in range(10)) / weight.sum()
            assert torch.allclose(made[row, m], mix, atol=1e-6)
    paper = smil(kit, weights="gaussian").network
    mean = paper.dictionary.mean(1).expand(7, -1, -1)  # omega is one without noise
    assert torch.allclose(paper.reconstruct(h, observed, noisy=False, generator=None), mean, atol=1e-6)


def test_smil_leaves_complete_rows_alone_and_regularises_the_others(kit: Any) -> None:
    model = smil(kit).eval()
    assert isinstance(model, Smil)
    network, batch = model.network, kit.batch(patterns(3)[[6, 1]])
    tokens = model.project(batch)
    h, _ = network.encode(tokens, batch.observed)
    given = network(tokens, batch.observed, False, None)
    assert torch.allclose(given.logits[0], network.head(F.relu(network.hidden(h[0].flatten()))), atol=1e-6)
    made = network.reconstruct(h, batch.observed, False, None)[1]
    u = torch.cat([made[0], h[1, 1], made[2]]) + F.softplus(network.regularise_u(h[1, 1]))
    v = F.relu(network.hidden(u)) + F.softplus(network.regularise_v(u))
    assert torch.allclose(given.logits[1], network.head(v), atol=1e-6)


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
    assert torch.allclose(moved(centres, rows, 0.9), expected, atol=1e-6)
