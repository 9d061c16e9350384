"""A step of the loop: parts of a batch, warm-up, and the scaled loss of float16 (on the CPU, where it runs as well)."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cache.errors import UserError
from extract.training import LoopSettings, run_epochs

ROWS = torch.randn(22, 3, generator=torch.Generator().manual_seed(7))
TARGET = ROWS.sum(-1, keepdim=True)


def train(
    folder: Path,
    *,
    count: int = 1,
    warmup_steps: int = 0,
    scaler: torch.amp.GradScaler | None = None,
    overflow_at: tuple[int, ...] = (),
    stop_at: int | None = None,
) -> tuple[nn.Module, list[float]]:
    """Return a trained module and the learning rate of each step."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    rates: list[float] = []
    steps = [0]

    def batches(epoch: int, generator: torch.Generator) -> Iterator[Tensor]:
        for rows in torch.randperm(len(ROWS), generator=generator).split(8):
            if steps[0] == stop_at:
                raise KeyboardInterrupt
            steps[0] += 1
            yield rows

    def step(rows: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        noise = torch.rand((), generator=generator)  # of the batch: the same for each of its parts
        size = 8 if len(ROWS) - 8 * ((steps[0] - 1) % 3) >= 8 else len(ROWS) % 8
        loss = ((module(ROWS[rows]) - TARGET[rows] * noise).square()).sum() / size
        if steps[0] in overflow_at:
            loss = loss + (loss.detach() - loss).sqrt()  # finite, but not its gradient
        return {"loss": loss}

    run_epochs(
        module,
        optimizer,
        batches=batches,
        step=step,
        validate=lambda: {"monitor": -float((module(ROWS) - TARGET).square().mean().detach())},
        settings=LoopSettings(3, 3, 1.0, 3, warmup_steps=warmup_steps),
        folder=folder,
        fingerprint="a",
        parts=lambda rows: rows.tensor_split(min(count, len(rows))),
        after_step=lambda: rates.append(optimizer.param_groups[0]["lr"]),
        scaler=scaler,
    )
    return module, rates


def difference(one: nn.Module, two: nn.Module) -> float:
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


@pytest.mark.parametrize("count", [2, 3, 50])
def test_the_parts_of_a_batch_train_as_the_batch(tmp_path: Path, count: int) -> None:
    whole, _ = train(tmp_path / "whole")
    parts, rates = train(tmp_path / "parts", count=count)
    assert difference(whole, parts) < 1e-6
    assert len(rates) == 9  # one step a batch


def test_warm_up_rises_over_steps_also_in_a_resumed_run(tmp_path: Path) -> None:
    whole, rates = train(tmp_path / "whole", warmup_steps=5)
    assert rates == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1, 0.1, 0.1, 0.1, 0.1])
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", warmup_steps=5, stop_at=4)
    resumed, late = train(tmp_path / "cut", warmup_steps=5)
    assert late == pytest.approx(rates[3:])
    assert difference(whole, resumed) == 0


def scaler() -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=4)


def test_a_scaled_loss_trains_as_an_unscaled_one_and_resumes_with_its_scale(tmp_path: Path) -> None:
    plain, _ = train(tmp_path / "plain")
    scaled, _ = train(tmp_path / "scaled", scaler=scaler())
    assert difference(plain, scaled) < 1e-6
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", scaler=scaler(), stop_at=7)
    later = scaler()
    resumed, _ = train(tmp_path / "cut", scaler=later)
    assert difference(scaled, resumed) == 0
    assert later.get_scale() == 2.0**12  # grown twice in nine steps, three of them after the interruption


def test_an_overflow_leaves_out_the_step_and_scales_less(tmp_path: Path) -> None:
    own = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=100)
    module, _ = train(tmp_path / "some", scaler=own, overflow_at=(2, 3))
    assert own.get_scale() == 2.0**8
    assert all(bool(torch.isfinite(p).all()) for p in module.parameters())
    with pytest.raises(UserError, match=r"not finite in epoch 1, batch 0"):
        train(tmp_path / "all", scaler=torch.amp.GradScaler("cpu", init_scale=8.0), overflow_at=tuple(range(1, 10)))
