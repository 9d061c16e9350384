"""The loop: killed at any instant and started again, it gives the same weights bit for bit."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from cache.errors import UserError
from extract.training import STATE, History, LoopSettings, run_epochs

ROWS = torch.randn(24, 3, generator=torch.Generator().manual_seed(7))
TARGET = ROWS.sum(-1, keepdim=True)
Hook = Callable[[int, int], None]


def nothing(epoch: int, batch: int) -> None:
    pass


def train(
    folder: Path,
    hook: Hook = nothing,
    *,
    fingerprint: str = "a",
    max_epochs: int = 4,
    patience: int = 10,
    monitor: Callable[[nn.Module, int], float] | None = None,
    loss_scale: float = 1.0,
    schedule: Literal["constant", "cosine"] = "constant",
) -> tuple[nn.Module, History]:
    """A small network with dropout, so that the random state matters; `hook(epoch, batch)` may interrupt."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.3), nn.Linear(8, 1))
    validations = [0]

    def batches(epoch: int, generator: torch.Generator) -> Iterator[Tensor]:
        for number, rows in enumerate(torch.randperm(len(ROWS), generator=generator).split(6)):
            hook(epoch, number)
            yield rows

    def step(rows: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        noise = torch.randn(len(rows), 3, generator=generator) * 0.01
        loss = (module(ROWS[rows] + noise) - TARGET[rows]).square().mean() * loss_scale
        return {"loss": loss, "double": loss * 2}

    def validate() -> dict[str, float]:
        assert not module.training
        validations[0] += 1
        if monitor is not None:
            return {"monitor": monitor(module, validations[0])}
        with torch.no_grad():
            return {"monitor": -float((module(ROWS) - TARGET).square().mean())}

    history = run_epochs(
        module,
        torch.optim.AdamW(module.parameters(), lr=0.01),
        batches=batches,
        step=step,
        validate=validate,
        settings=LoopSettings(max_epochs, patience, 1.0, 3, schedule),
        folder=folder,
        fingerprint=fingerprint,
    )
    return module, history


def assert_same(one: tuple[nn.Module, History], two: tuple[nn.Module, History]) -> None:
    for name, value in one[0].state_dict().items():
        assert torch.equal(value, two[0].state_dict()[name]), name
    assert one[1] == two[1]


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize(("epoch", "batch"), [(0, 2), (2, 0), (3, 3)])
def test_an_interrupted_run_ends_with_the_same_weights(
    tmp_path: Path, epoch: int, batch: int, schedule: Literal["constant", "cosine"]
) -> None:
    def interrupt(at_epoch: int, at_batch: int) -> None:
        if (at_epoch, at_batch) == (epoch, batch):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", interrupt, schedule=schedule)
    torch.rand(5)  # other use of the global random state must not matter
    assert_same(train(tmp_path / "cut", schedule=schedule), train(tmp_path / "whole", schedule=schedule))


def test_the_cosine_schedule_starts_at_the_whole_rate_and_falls_towards_zero() -> None:
    rates = [LoopSettings(4, 4, 1.0, 0, "cosine").rate(epoch) for epoch in range(5)]
    assert rates == pytest.approx([1.0, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5, 0.0])
    assert LoopSettings(4, 4, 1.0, 0).rate(3) == 1.0


KILLED = """
import importlib.util, os, signal, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("loop_under_test", sys.argv[1])
loop = importlib.util.module_from_spec(spec)
spec.loader.exec_module(loop)
def kill(epoch, batch):
    if (epoch, batch) == (2, 1):
        os.kill(os.getpid(), signal.SIGKILL)
loop.train(Path(sys.argv[2]), kill)
"""


def test_a_killed_process_resumes_to_the_same_weights(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", KILLED, __file__, str(tmp_path / "cut")],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    state = torch.load(tmp_path / "cut" / STATE, weights_only=True)
    assert len(state["history"]) == 2
    seen: list[int] = []
    resumed = train(tmp_path / "cut", lambda epoch, batch: seen.append(epoch))
    for clock, before in state["seconds"].items():
        assert resumed[1].seconds[clock] > before > 0
    assert min(seen) == 2
    assert_same(resumed, train(tmp_path / "whole"))


def test_a_finished_run_returns_at_once_and_another_fingerprint_starts_anew(tmp_path: Path) -> None:
    first = train(tmp_path)
    assert_same(first, train(tmp_path, lambda epoch, batch: pytest.fail("trained again")))
    seen: list[int] = []
    train(tmp_path, lambda epoch, batch: seen.append(epoch), fingerprint="b")
    assert seen[0] == 0


def test_it_stops_after_patience_and_keeps_the_best_epoch(tmp_path: Path) -> None:
    scores = [0.1, 0.5, 0.4, 0.3, 0.9]
    kept: dict[int, Tensor] = {}

    def monitor(module: nn.Module, count: int) -> float:
        kept[count - 1] = module.state_dict()["0.weight"].clone()
        return scores[count - 1]

    module, history = train(tmp_path, max_epochs=5, patience=2, monitor=monitor)
    assert (len(history.epochs), history.best_epoch) == (4, 1)
    assert torch.equal(module.state_dict()["0.weight"], kept[1])
    assert not module.training


def test_other_losses_are_logged_and_training_learns(tmp_path: Path) -> None:
    _, history = train(tmp_path, max_epochs=12)
    assert history.epochs[0]["double"] == pytest.approx(2 * history.epochs[0]["loss"])
    assert history.epochs[-1]["loss"] < 0.7 * history.epochs[0]["loss"]


def test_a_loss_or_a_monitor_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"epoch 0.*learning rate"):
        train(tmp_path / "loss", loss_scale=float("nan"))
    with pytest.raises(UserError, match=r"metric is not finite in epoch 1"):
        train(tmp_path / "monitor", monitor=lambda module, count: [0.5, float("nan")][count - 1])
    assert len(torch.load(tmp_path / "monitor" / STATE, weights_only=True)["history"]) == 1
