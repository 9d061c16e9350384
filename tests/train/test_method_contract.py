"""What every method must do: any subset, any task; nothing leaks, everything trains, everything is saved.

A method joins by being registered; its own settings are those of `params.yaml`, changed below only where a module
would else be idle.
"""

import math
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from cache.bank import TokenBatch
from extract.task import LabelKind, outputs
from train.checkpoint import load_checkpoint, save_checkpoint
from train.methods.base import Method
from train.methods.registry import METHODS
from train.missing import patterns


def incomplete() -> Tensor:
    return patterns(3)[:-1].repeat(2, 1)


def step(model: Method, batch: TokenBatch, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> float:
    losses = model(batch, generator).losses
    optimizer.zero_grad()
    losses["loss"].backward()
    optimizer.step()
    model.after_step()
    return float(losses.get("task", losses["loss"]).detach())


def trained(kit: Any, name: str, steps: int = 2) -> Method:
    """A few steps, so that what a method remembers is not empty."""
    model = kit.build(name).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for seed in range(steps):
        step(model, kit.batch(kit.mixed(), seed=seed), optimizer, torch.Generator().manual_seed(seed))
    return model.eval()


@pytest.mark.parametrize("kind", get_args(LabelKind))
@pytest.mark.parametrize("name", METHODS)
def test_every_subset_and_every_kind_of_task(kit: Any, name: str, kind: str) -> None:
    model = kit.build(name, kind).train()
    output = model(kit.batch(kit.mixed(), kind), torch.Generator().manual_seed(0))
    output.losses["loss"].backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
    with torch.no_grad():
        logits = model.eval()(kit.batch(patterns(3), kind)).logits
    assert logits.shape == (7, outputs(kit.labels[kind]))
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("rows", ["incomplete", "one modality", "one row", "complete"])
def test_a_training_batch_may_lack_complete_rows_or_hold_nothing_else(kit: Any, name: str, rows: str) -> None:
    observed = {
        "incomplete": incomplete(),
        "one modality": torch.eye(3).bool().repeat(3, 1),
        "one row": patterns(3)[[2]],
        "complete": torch.ones(5, 3).bool(),
    }[rows]
    model = kit.build(name).train()
    for seed in range(2):
        loss = model(kit.batch(observed, seed=seed), torch.Generator().manual_seed(seed)).losses["loss"]
        loss.backward()
        assert torch.isfinite(loss)
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_predictions_ignore_content_and_length_of_what_is_missing(kit: Any, name: str) -> None:
    model, observed = trained(kit, name), patterns(3)
    batch = kit.batch(observed)
    tokens, valid, maskable = {}, {}, {}
    for column, m in enumerate(kit.widths):
        absent = ~observed[:, column]
        tokens[m] = torch.cat([batch.tokens[m], torch.zeros(7, 5, kit.widths[m])], dim=1)
        valid[m] = torch.cat([batch.valid[m], torch.zeros(7, 5, dtype=torch.bool)], dim=1)
        tokens[m][absent] = 1e3
        valid[m][absent] = True
        maskable[m] = valid[m]
    changed = TokenBatch(tokens, valid, maskable, observed, batch.labels)
    with torch.no_grad():
        assert torch.allclose(model(batch).logits, model(changed).logits, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_training_ignores_the_content_of_what_is_missing(kit: Any, name: str) -> None:
    batch, observed = kit.batch(incomplete()), incomplete()
    other = {m: torch.where(observed[:, i, None, None], v, 1e3) for i, (m, v) in enumerate(batch.tokens.items())}
    losses = []
    for tokens in (batch.tokens, other):
        model = kit.build(name).train()
        torch.manual_seed(1)
        changed = TokenBatch(tokens, batch.valid, batch.maskable, observed, batch.labels)
        losses.append(float(model(changed, torch.Generator().manual_seed(1)).losses["loss"].detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_evaluation_does_not_depend_on_batch_mates_and_takes_one_sample(kit: Any, name: str) -> None:
    model, batch = trained(kit, name), kit.batch(patterns(3))
    alone = [
        TokenBatch(
            {m: v[[i]] for m, v in batch.tokens.items()},
            {m: v[[i]] for m, v in batch.valid.items()},
            {m: v[[i]] for m, v in batch.maskable.items()},
            batch.observed[[i]],
            None,
        )
        for i in range(7)
    ]
    with torch.no_grad():
        together = model(batch).logits
        assert torch.allclose(together, torch.cat([model(one).logits for one in alone]), atol=1e-5)


IDLE = {
    "selfmask": ("g_bar.", "fusion.summary"),
}
"""Parameters without a gradient by design; `summary` tokens are used under `pooling: cls` alone."""


@pytest.mark.parametrize("name", METHODS)
def test_gradients_reach_every_parameter(kit: Any, name: str) -> None:
    """Over a few batches; biases of keys have a gradient of zero by construction."""
    changes = {"complete_task": 1.0, "distill": 1.0} if name == "selfmask" else {}
    model = kit.build(name, **changes).train()
    reached: dict[str, float] = {}
    batches = [*(kit.mixed(28) for _ in range(3)), torch.eye(3).bool()]  # the last: nobody shares a modality
    for seed, observed in enumerate(batches):
        model.zero_grad()
        model(kit.batch(observed, seed=seed), torch.Generator().manual_seed(seed)).losses["loss"].backward()
        for key, p in model.named_parameters():
            reached[key] = reached.get(key, 0.0) + (0.0 if p.grad is None else float(p.grad.abs().sum()))
    for key, total in reached.items():
        if key.endswith("summary") or key.startswith(IDLE.get(name, ("nothing",))):
            assert total == 0, key
        else:
            assert total > 0, key


@pytest.mark.parametrize("name", METHODS)
def test_a_checkpoint_predicts_the_same(kit: Any, name: str, tmp_path: Path) -> None:
    model, batch = trained(kit, name), kit.batch(patterns(3))
    config = {
        "method": name,
        "spec": model.spec.model_dump(mode="json"),
        "model": kit.model.model_dump(mode="json"),
        "options": kit.options.get(name, {}),
    }
    save_checkpoint(tmp_path, model, config)
    loaded, _ = load_checkpoint(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(batch).logits, model(batch).logits)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_learns(kit: Any, name: str) -> None:
    model = kit.build(name).train()
    batch = kit.batch(torch.ones(16, 3, dtype=torch.bool))
    assert batch.labels is not None
    shifted = {m: v + 2 * batch.labels[:, None, None] for m, v in batch.tokens.items()}
    batch = TokenBatch(shifted, batch.valid, batch.maskable, batch.observed, batch.labels)
    optimizer, generator = torch.optim.Adam(model.parameters(), lr=1e-2), torch.Generator().manual_seed(0)
    task = [step(model, batch, optimizer, generator) for _ in range(20)]
    assert math.isfinite(task[-1])
    assert task[-1] < 0.5 * task[0]
