"""MedFuse against its LSTM written out gate by gate, and which rows it trains on."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cache.errors import UserError
from extract.task import task_loss
from train.methods.medfuse import MedFuse
from train.missing import patterns


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
    given = kit.vectors(observed)
    for first, order in (([], [0, 1, 2]), (["c"], [2, 0, 1])):
        model = kit.build("medfuse", first=first).eval()
        assert isinstance(model, MedFuse)
        assert model.order == order
        with torch.no_grad():
            logits = model.fuse(given, observed, model.order)
            for row in range(7):
                sequence = [given[row, m] for m in order if observed[row, m]]
                assert torch.allclose(logits[row], model.head(lstm(model, sequence)), atol=1e-6)


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
        losses["task"], task_loss(logits[complete], batch.labels[complete], model.spec.label), atol=1e-6
    )


def test_medfuse_unimodal_losses_see_only_the_rows_that_have_the_modality(kit: Any) -> None:
    model, batch = kit.build("medfuse").eval(), kit.batch(kit.mixed())
    assert isinstance(model, MedFuse)
    assert batch.labels is not None
    given, losses = kit.vectors(batch.observed), []
    for m, head in enumerate(model.unimodal_heads):
        own = [
            F.binary_cross_entropy_with_logits(head(given[row, m])[0], batch.labels[row])
            for row in range(14)
            if batch.observed[row, m]
        ]
        losses.append(sum(own) / len(own))
    expected = sum(losses) / 3
    assert torch.allclose(
        model.unimodal_loss(given, batch.labels, batch.observed), torch.as_tensor(expected), atol=1e-6
    )
