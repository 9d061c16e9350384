"""What every method must do: any subset, any task; nothing leaks, everything trains, everything is saved.

A method joins by being registered, with its own settings of `params.yaml`; `VARIANTS` are other settings of some, which
take other ways through their code.
"""

import math
from dataclasses import replace
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

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "selfmask with every loss": ("selfmask", {"complete_task": 1.0, "distill": 1.0}),
    "selfmask with experts": ("selfmask", {"experts": "observed"}),
    "smil with gaussian weights": ("smil", {"order": "first", "weights": "gaussian"}),
    "medfuse on complete rows": ("medfuse", {"draw": "natural", "first": ["c"], "incomplete_share": 0.0}),
    "shaspec by divergence": ("shaspec", {"alignment": "kl", "missing": "first"}),
    "m3care by products": ("m3care", {"similarity": "product", "normalise_rows": False}),
    "momke in two stages": ("momke", {"expert_epochs": 1, "expert_loss": 0.0, "router_level": "sample", "norm": "pre"}),
    "momke on a fixed pattern": ("momke", {"fixed_pattern": ["a", "c"]}),
    "drfuse as published": ("drfuse", {"jsd": "official", "keys": "low_rank", "drawn_share": 0.3}),
    "simmlm by probabilities": ("simmlm", {"gate": "modality", "mix": "probabilities", "expert_loss": 1.0}),
}
every_method = pytest.mark.parametrize("name", METHODS)
every_case = pytest.mark.parametrize(
    ("name", "changes"),
    [
        *(pytest.param(name, {}, id=name) for name in METHODS),
        *(pytest.param(*case, id=title) for title, case in VARIANTS.items()),
    ],
)
INCOMPLETE = patterns(3)[:-1].repeat(2, 1)


def step(model: Method, batch: TokenBatch, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> float:
    losses = model(batch, generator).losses
    optimizer.zero_grad()
    losses["loss"].backward()
    optimizer.step()
    model.after_step()
    return float(losses.get("task", losses["loss"]).detach())


def trained(kit: Any, name: str, changes: dict[str, Any]) -> Method:
    """A few steps, so that what a method remembers is not empty."""
    model = kit.build(name, **changes).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for seed in range(2):
        step(model, kit.batch(kit.mixed(), seed=seed), optimizer, torch.Generator().manual_seed(seed))
    return model.eval()


def assert_finite(model: Method, losses: dict[str, Tensor]) -> None:
    assert all(math.isfinite(float(value.detach())) for value in losses.values())
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("kind", get_args(LabelKind))
@every_case
def test_every_subset_and_every_kind_of_task(kit: Any, name: str, changes: Any, kind: str) -> None:
    model = kit.build(name, kind, **changes)
    for observed in (kit.mixed(), INCOMPLETE, patterns(3)[:1]):
        assert_finite(model, kit.learn(model, kit.batch(observed, kind)))
    with torch.no_grad():
        logits = model.eval()(kit.batch(patterns(3), kind)).logits
    assert logits.shape == (7, outputs(kit.labels[kind]))
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("rows", ["incomplete", "one modality", "one row", "complete"])
@every_case
def test_a_training_batch_may_lack_complete_rows_or_hold_nothing_else(
    kit: Any, name: str, changes: Any, rows: str
) -> None:
    observed = {
        "incomplete": INCOMPLETE,
        "one modality": torch.eye(3).bool().repeat(3, 1),
        "one row": patterns(3)[[2]],
        "complete": torch.ones(5, 3).bool(),
    }[rows]
    model = kit.build(name, **changes)
    for seed in range(2):
        assert_finite(model, kit.learn(model, kit.batch(observed, seed=seed), seed))


@every_case
def test_one_modality_is_enough(kit: Any, name: str, changes: Any) -> None:
    only = {key: ["a"] if key in ("first", "fixed_pattern") and value else value for key, value in changes.items()}
    model, batch = kit.build(name, modalities=1, **only), kit.batch(torch.ones(5, 1, dtype=torch.bool))
    assert_finite(model, kit.learn(model, batch))
    with torch.no_grad():
        assert torch.isfinite(model.eval()(batch).logits).all()


@every_case
def test_predictions_ignore_content_and_length_of_what_is_missing(kit: Any, name: str, changes: Any) -> None:
    model, batch = trained(kit, name, changes), kit.batch(patterns(3))
    with torch.no_grad():
        assert torch.allclose(model(batch).logits, model(kit.disguised(batch)).logits, atol=1e-5)


@every_case
def test_training_ignores_the_content_of_what_is_missing(kit: Any, name: str, changes: Any) -> None:
    batch = kit.batch(INCOMPLETE)
    other = {m: torch.where(INCOMPLETE[:, i, None, None], v, 1e3) for i, (m, v) in enumerate(batch.tokens.items())}
    losses = []
    for tokens in (batch.tokens, other):
        model = kit.build(name, **changes)
        torch.manual_seed(1)
        losses.append(float(kit.learn(model, replace(batch, tokens=tokens))["loss"].detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@every_case
def test_what_is_missing_in_training_gets_no_gradient(kit: Any, name: str, changes: Any) -> None:
    model = kit.build(name, **changes)
    kit.learn(model, kit.disguised(kit.batch(torch.tensor([[1, 0, 0], [0, 0, 1], [1, 0, 1]]).bool())))
    for parameter in model.project.maps["b"].parameters():
        assert parameter.grad is None or parameter.grad.abs().sum() == 0


@every_case
def test_evaluation_does_not_depend_on_batch_mates_and_takes_one_sample(kit: Any, name: str, changes: Any) -> None:
    model, batch = trained(kit, name, changes), kit.batch(patterns(3))
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


def idle(name: str, changes: dict[str, Any]) -> tuple[str, ...]:
    """Parameters without a gradient by design."""
    unused = [m for m in "abc" if changes.get("fixed_pattern") and m not in changes["fixed_pattern"]]
    own = ("g_bar.",) if name == "selfmask" else ()
    return (*own, *(f"routers.{m}." for m in unused))


@every_case
def test_gradients_reach_every_parameter(kit: Any, name: str, changes: Any) -> None:
    """Over a few epochs of a batch; `summary` tokens are used under `pooling: cls` alone."""
    model = kit.build(name, **changes)
    reached: dict[str, float] = {}
    batches = [*(kit.mixed(28) for _ in range(3)), torch.eye(3).bool()]  # the last: nobody shares a modality
    for epoch, observed in enumerate(batches):
        model.start_epoch(epoch)
        loss = kit.learn(model, kit.batch(observed, seed=epoch), epoch)["loss"]
        assert loss > 0 or not observed.all(-1).any()
        for key, p in model.named_parameters():
            reached[key] = reached.get(key, 0.0) + (0.0 if p.grad is None else float(p.grad.abs().sum()))
    for key, total in reached.items():
        if key.endswith("summary") or key.startswith(idle(name, changes)):
            assert total == 0, key
        else:
            assert total > 0, key


@every_case
def test_a_checkpoint_predicts_the_same(kit: Any, name: str, changes: Any, tmp_path: Path) -> None:
    model, batch = trained(kit, name, changes), kit.batch(patterns(3))
    config = {
        "method": name,
        "spec": model.spec.model_dump(mode="json"),
        "model": kit.model.model_dump(mode="json"),
        "options": {**kit.options.get(name, {}), **changes},
    }
    save_checkpoint(tmp_path, model, config)
    loaded, _ = load_checkpoint(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(batch).logits, model(batch).logits)


@every_method
def test_a_method_learns(kit: Any, name: str) -> None:
    model = kit.build(name).train()
    batch = kit.batch(torch.ones(16, 3, dtype=torch.bool))
    assert batch.labels is not None
    batch = replace(batch, tokens={m: v + 2 * batch.labels[:, None, None] for m, v in batch.tokens.items()})
    optimizer, generator = torch.optim.Adam(model.parameters(), lr=1e-2), torch.Generator().manual_seed(0)
    task = [step(model, batch, optimizer, generator) for _ in range(20)]
    assert math.isfinite(task[-1])
    assert task[-1] < 0.5 * task[0]
