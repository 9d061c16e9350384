"""The one training loop of fit, train and joint: early stopping, exact resume, nothing hidden.

Every epoch seeds the global random state and its own generator from (seed, epoch), and the whole state is published by
rename at its end. So a run that is killed at any instant and started again gives bit-identical weights to one that
was not; what is lost is at most the epoch in progress. A finished run returns at once. Several ranks (`extract.ranks`)
step together on shares of the same batches; the first of them validates, writes and reports. A batch may be computed
in parts, one after the other: each sees the random numbers of the whole batch, and gradients are added up.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
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

    warmup_epochs: int = 0
    """First epochs, in which parts are trained alone: none of them can be the best, and patience starts after them."""
    warmup_steps: int = 0
    """First steps, over which the learning rate rises linearly to its value."""

    def rate(self, epoch: int, step: int = 0) -> float:
        """Return the learning rate of a step, counted over all epochs, as a share of the first whole one."""
        decayed = 1.0 if self.schedule == "constant" else (1 + math.cos(math.pi * epoch / self.max_epochs)) / 2
        return decayed * (min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0)


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


@dataclass
class Progress:
    """What a run has done so far, beside the weights."""

    history: list[dict[str, float]]
    best: dict[str, Any]
    steps: int


@dataclass(frozen=True)
class Loop:
    """One run: what is trained, on what, and how."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Callable[[int, SharedGenerator], Iterable[Any]]
    step: Callable[[Any, SharedGenerator], dict[str, Tensor]]
    parts: Callable[[Any], Sequence[Any]]
    after_step: Callable[[], None] | None
    settings: LoopSettings
    ranks: Ranks
    scaler: torch.amp.GradScaler

    def epoch(self, progress: Progress) -> dict[str, float]:
        """Train one epoch; returns the mean losses."""
        epoch = len(progress.history)
        seed = int(digest([self.settings.seed, epoch])[:15], 16)
        torch.manual_seed(seed + self.ranks.rank)  # dropout: not the same on every rank's rows
        generator = SharedGenerator()
        generator.manual_seed(seed)
        self.module.train()
        sums: dict[str, Tensor] = {}
        count = 0
        for batch in self.batches(epoch, generator):
            for group in self.optimizer.param_groups:
                whole = group.setdefault("initial_lr", group["lr"])
                group["lr"] = whole * self.settings.rate(epoch, progress.steps)
            losses = self._batch(batch, generator)
            self._update(losses["loss"], f"epoch {epoch}, batch {count}")
            for name, value in losses.items():
                sums[name] = sums.get(name, torch.zeros(())) + value.float().cpu()
            count += 1
            progress.steps += 1
        totals = self.ranks.add([float(value) for value in sums.values()])
        return {name: total / max(count, 1) for name, total in zip(sums, totals, strict=True)}

    def _batch(self, batch: Any, generator: SharedGenerator) -> dict[str, Tensor]:
        """Losses of a batch, added up over its parts as its gradients are."""
        self.optimizer.zero_grad(set_to_none=True)
        state = generator.get_state()
        sums: dict[str, Tensor] = {}
        for part in self.parts(batch):
            generator.set_state(state)  # every part draws for the whole batch, and keeps its own rows
            losses = self.step(part, generator)
            self.scaler.scale(losses["loss"]).backward()
            for name, value in losses.items():
                sums[name] = sums[name] + value.detach() if name in sums else value.detach()
        return sums

    def _update(self, loss: Tensor, where: str) -> None:
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        total = self.ranks.add_gradients(loss, trained)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(trained, self.settings.clip_norm)
        finite = bool(torch.isfinite(norm))
        # A scaled gradient may overflow: the scaler then leaves out the step and scales less.
        if not bool(torch.isfinite(total)) or (not finite and self.scaler.get_scale() <= 1):
            raise UserError(
                f"The loss or its gradient is not finite in {where}. "
                "Lower the learning rate, or check the data with `selfmask check`."
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.after_step is not None:
            self.after_step()


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
    parts: Callable[[Any], Sequence[Any]] | None = None,
    after_step: Callable[[], None] | None = None,
    describe: str = "train",
    ranks: Ranks | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> History:
    """Train until the monitor stops improving; `module` ends with the best epoch's weights.

    Args:
        module: what is trained and checkpointed.
        optimizer: over its parameters.
        batches: batches of an epoch, drawn from the generator.
        step: losses of a batch, or of one of its parts; "loss" is minimised, the others are logged.
        validate: metrics with the module in evaluation mode; "monitor" is larger-is-better.
        settings: limits and seed.
        folder: holds the resumable state.
        fingerprint: of everything the result depends on; another one starts anew.
        parts: splits a batch into what `step` gets, and whose losses add up to the batch's; default: the batch itself.
        after_step: runs after each optimiser step.
        describe: name in the progress lines.
        ranks: processes that train together; the losses of `step` add up over them.
        scaler: scales the loss of float16.

    Raises:
        UserError: a loss, a gradient or the monitor is not finite, or another rank is lost.
    """
    ranks, scaler = ranks or alone(), scaler or torch.amp.GradScaler("cpu", enabled=False)
    _require_epochs(settings, describe)
    loop = Loop(module, optimizer, batches, step, parts or _whole, after_step, settings, ranks, scaler)
    progress, clock = _resume(loop, folder / STATE, fingerprint)
    ranks.require_same(int(digest([fingerprint, progress.history[-1:]])[:12], 16), "what they go on from")
    started, first = time.monotonic(), len(progress.history)
    while not _finished(len(progress.history), progress.best["epoch"], settings):
        losses = loop.epoch(progress)
        module.eval()
        metrics = validate() if ranks.first else {}
        metrics["monitor"] = ranks.from_first(metrics.get("monitor", 0.0))
        _record(progress, {**losses, **metrics}, module, settings)
        if ranks.first:
            _save(folder / STATE, fingerprint, loop, progress, clock.read())
            seconds = (time.monotonic() - started) / (len(progress.history) - first)
            _report(describe, progress.history, progress.best["epoch"], settings, seconds)
    module.load_state_dict(progress.best["module"])
    module.eval()
    return History(progress.history, progress.best["epoch"], clock.read())


def _whole(batch: Any) -> Sequence[Any]:
    return (batch,)


def _require_epochs(settings: LoopSettings, describe: str) -> None:
    if settings.max_epochs <= settings.warmup_epochs:
        raise UserError(
            f"{describe}: max_epochs={settings.max_epochs} leaves no epoch after the {settings.warmup_epochs} of "
            "the first stage. Raise max_epochs, or lower the method's own setting of the first stage's epochs."
        )


def _finished(epochs: int, best_epoch: int, settings: LoopSettings) -> bool:
    if epochs <= settings.warmup_epochs:
        return False
    return epochs >= settings.max_epochs or epochs - 1 - best_epoch >= settings.patience_epochs


def _record(progress: Progress, epoch: dict[str, float], module: nn.Module, settings: LoopSettings) -> None:
    """Add an epoch to the history, and keep its weights if it is the best."""
    number, monitor = len(progress.history), epoch["monitor"]
    progress.history.append(epoch)
    if not math.isfinite(monitor):  # no later epoch would ever compare as better
        raise UserError(
            f"The validation metric is not finite in epoch {number}. "
            "Check the validation labels with `selfmask check`, or lower the learning rate."
        )
    if number >= settings.warmup_epochs and monitor > progress.best["monitor"]:
        weights = {name: value.detach().clone() for name, value in module.state_dict().items()}
        progress.best = {"epoch": number, "monitor": monitor, "module": weights}


def _resume(loop: Loop, path: Path, fingerprint: str) -> tuple[Progress, Clock]:
    state: dict[str, Any] = {"seconds": {"wall": 0.0, "cpu": 0.0}, "steps": 0, "scaler": {}}
    found = torch.load(path, weights_only=True, map_location="cpu") if path.exists() else {}
    if found.get("fingerprint") != fingerprint:
        none = {"epoch": -1, "monitor": float("-inf"), "module": None}
        return Progress([], none, 0), Clock(state["seconds"])
    state |= found
    loop.module.load_state_dict(state["module"])
    loop.optimizer.load_state_dict(state["optimizer"])
    loop.scaler.load_state_dict(state["scaler"])
    return Progress(state["history"], state["best"], state["steps"]), Clock(state["seconds"])


def _save(path: Path, fingerprint: str, loop: Loop, progress: Progress, seconds: dict[str, float]) -> None:
    state = {
        "fingerprint": fingerprint,
        "module": loop.module.state_dict(),
        "optimizer": loop.optimizer.state_dict(),
        "scaler": loop.scaler.state_dict(),
        "history": progress.history,
        "best": progress.best,
        "steps": progress.steps,
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
