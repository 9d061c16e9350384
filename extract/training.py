"""The one training loop of fit, train and joint: early stopping, exact resume, nothing hidden.

Every epoch seeds the global random state and its own generator from (seed, epoch), and the whole state is published by
rename at its end. So a run that is killed at any instant and started again gives bit-identical weights to one that
was not; what is lost is at most the epoch in progress. A finished run returns at once. Several ranks (`extract.ranks`)
step together on shares of the same batches; the first of them validates, writes and reports.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor, nn

from cache.errors import UserError
from cache.publish import fingerprint as digest
from cache.publish import replacing
from extract.ranks import Ranks, SharedGenerator, alone

STATE = "state.pt"
CLOCKS = {"wall": time.monotonic, "cpu": time.process_time}


@dataclass(frozen=True)
class LoopSettings:
    """Limits of a run."""

    max_epochs: int
    patience_epochs: int
    """Epochs without a better monitor before the run stops."""
    clip_norm: float
    seed: int
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate over the epochs; `cosine` falls to zero at `max_epochs`."""

    def rate(self, epoch: int) -> float:
        """Return the learning rate of an epoch as a share of the first one."""
        return 1.0 if self.schedule == "constant" else (1 + math.cos(math.pi * epoch / self.max_epochs)) / 2

    warmup_epochs: int = 0
    """First epochs, in which parts are trained alone: none of them can be the best, and patience starts after them."""


@dataclass(frozen=True)
class History:
    """Mean losses and validation metrics of each epoch, and which was best."""

    epochs: list[dict[str, float]]
    best_epoch: int
    seconds: dict[str, float] = field(compare=False)
    """What the epochs took, validation included: `wall`, and `cpu` of this process; those of a resumed run add up."""


class Clock:
    """Seconds of this run on top of those before it."""

    def __init__(self, before: dict[str, float]) -> None:
        self._start = {name: now() - before[name] for name, now in CLOCKS.items()}

    def read(self) -> dict[str, float]:
        """Return the sums, by clock."""
        return {name: now() - self._start[name] for name, now in CLOCKS.items()}


def run_epochs(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    batches: Callable[[int, SharedGenerator], Iterable[Any]],
    step: Callable[[Any, SharedGenerator], dict[str, Tensor]],
    validate: Callable[[], dict[str, float]],
    settings: LoopSettings,
    folder: Path,
    fingerprint: str,
    after_step: Callable[[], None] | None = None,
    describe: str = "train",
    ranks: Ranks | None = None,
) -> History:
    """Train until the monitor stops improving; `module` ends with the best epoch's weights.

    Args:
        module: what is trained and checkpointed.
        optimizer: over its parameters.
        batches: batches of an epoch, drawn from the generator.
        step: losses of a batch; "loss" is minimised, the others are logged.
        validate: metrics with the module in evaluation mode; "monitor" is larger-is-better.
        settings: limits and seed.
        folder: holds the resumable state.
        fingerprint: of everything the result depends on; another one starts anew.
        after_step: runs after each optimiser step.
        describe: name in the progress lines.
        ranks: processes that train together; the losses of `step` add up over them.

    Raises:
        UserError: a loss, a gradient or the monitor is not finite, or another rank is lost.
    """
    ranks = ranks or alone()
    if settings.max_epochs <= settings.warmup_epochs:
        raise UserError(
            f"{describe}: max_epochs={settings.max_epochs} leaves no epoch after the {settings.warmup_epochs} of "
            "the first stage. Raise max_epochs, or lower the method's own setting of the first stage's epochs."
        )
    state = _load(folder / STATE, fingerprint)
    history: list[dict[str, float]] = state["history"] if state else []
    best: dict[str, Any] = state["best"] if state else {"epoch": -1, "monitor": float("-inf"), "module": None}
    if state:
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
    ranks.require_same(int(digest([fingerprint, history[-1:]])[:12], 16), "what they go on from")
    started, first = time.monotonic(), len(history)
    clock = Clock(state["seconds"] if state else {"wall": 0.0, "cpu": 0.0})
    while not _finished(len(history), best["epoch"], settings):
        epoch = len(history)
        losses = _epoch(module, optimizer, batches, step, after_step, settings, epoch, ranks)
        module.eval()
        metrics = validate() if ranks.first else {}
        metrics["monitor"] = ranks.from_first(metrics.get("monitor", 0.0))
        history.append({**losses, **metrics})
        if not math.isfinite(metrics["monitor"]):  # no later epoch would ever compare as better
            raise UserError(
                f"The validation metric is not finite in epoch {epoch}. "
                "Check the validation labels with `selfmask check`, or lower the learning rate."
            )
        if epoch >= settings.warmup_epochs and metrics["monitor"] > best["monitor"]:
            weights = {name: value.detach().clone() for name, value in module.state_dict().items()}
            best = {"epoch": epoch, "monitor": metrics["monitor"], "module": weights}
        if ranks.first:
            _save(folder / STATE, fingerprint, module, optimizer, history, best, clock.read())
            _report(describe, history, best["epoch"], settings, (time.monotonic() - started) / (epoch + 1 - first))
    module.load_state_dict(best["module"])
    module.eval()
    return History(history, best["epoch"], clock.read())


def _finished(epochs: int, best_epoch: int, settings: LoopSettings) -> bool:
    if epochs <= settings.warmup_epochs:
        return False
    return epochs >= settings.max_epochs or epochs - 1 - best_epoch >= settings.patience_epochs


def _epoch(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Callable[[int, SharedGenerator], Iterable[Any]],
    step: Callable[[Any, SharedGenerator], dict[str, Tensor]],
    after_step: Callable[[], None] | None,
    settings: LoopSettings,
    epoch: int,
    ranks: Ranks,
) -> dict[str, float]:
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * settings.rate(epoch)
    seed = int(digest([settings.seed, epoch])[:15], 16)
    torch.manual_seed(seed + ranks.rank)  # dropout: not the same on every rank's rows
    generator = SharedGenerator()
    generator.manual_seed(seed)
    module.train()
    sums: dict[str, Tensor] = {}
    count = 0
    for batch in batches(epoch, generator):
        losses = step(batch, generator)
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        total = ranks.add_gradients(losses["loss"], trained)
        norm = nn.utils.clip_grad_norm_(trained, settings.clip_norm)
        if not bool(torch.isfinite(total)) or not bool(torch.isfinite(norm)):
            raise UserError(
                f"The loss or its gradient is not finite in epoch {epoch}, batch {count}. "
                "Lower the learning rate, or check the data with `selfmask check`."
            )
        optimizer.step()
        if after_step is not None:
            after_step()
        for name, value in losses.items():
            sums[name] = sums.get(name, torch.zeros(())) + value.detach().float().cpu()
        count += 1
    totals = ranks.add([float(value) for value in sums.values()])
    return {name: total / max(count, 1) for name, total in zip(sums, totals, strict=True)}


def _load(path: Path, fingerprint: str) -> dict[str, Any] | None:
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    return {"seconds": {"wall": 0.0, "cpu": 0.0}, **state} if state["fingerprint"] == fingerprint else None


def _save(
    path: Path,
    fingerprint: str,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    history: list[dict[str, float]],
    best: dict[str, Any],
    seconds: dict[str, float],
) -> None:
    state = {
        "fingerprint": fingerprint,
        "module": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "history": history,
        "best": best,
        "seconds": seconds,
    }
    with replacing(path) as temporary:
        torch.save(state, temporary)


def _report(
    describe: str, history: list[dict[str, float]], best_epoch: int, settings: LoopSettings, seconds: float
) -> None:
    last, epoch = history[-1], len(history)
    left = seconds * (settings.max_epochs - epoch)
    Console(stderr=True).print(
        f"{describe}: epoch {epoch}/{settings.max_epochs}  loss {last['loss']:.4f}  monitor {last['monitor']:.4f}"
        f"  best epoch {best_epoch + 1}  {seconds:.1f} s/epoch  at most {left:.0f} s left",
        highlight=False,
        soft_wrap=True,
    )
