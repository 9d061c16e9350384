"""Training by several processes (`torchrun`) that step together as one process would on the same global batch.

Every rank computes its consecutive share of each global batch, and gradients are added up before the step, weighted so
that the sum is the gradient of the whole batch, also when the last batch is uneven. Random draws per sample are made
for the whole batch on every rank, and each keeps its own rows; dropout alone differs from a single process. Cost: one
sum over all ranks of as many numbers as there are trained parameters, a step.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cache.errors import UserError
from cache.shuffle import share_of


@dataclass(frozen=True)
class Share:
    """The rows [first, last) of a global batch of `total`, that one rank computes."""

    first: int
    last: int
    total: int

    @property
    def weight(self) -> float:
        """What a mean over the rows counts in the mean over the whole batch."""
        return (self.last - self.first) / self.total


class SharedGenerator(torch.Generator):
    """Random numbers of a global batch; `share` says which rows of it are this rank's."""

    share: Share | None = None


def draw_rows(draw: Callable[..., Tensor], shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
    """Return `draw(shape, generator=generator)` [B, ...]; of a shared batch, this rank's rows of the global draw."""
    share = getattr(generator, "share", None)
    if share is None:
        return draw(tuple(shape), generator=generator)
    whole = draw((share.total, *shape[1:]), generator=generator)
    return whole[share.first : share.first + shape[0]]


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes, logs and evaluates for all."""
        return self.rank == 0

    def share(self, total: int) -> Share:
        """Split a global batch as evenly as possible; a rank may get nothing."""
        return Share(*share_of(total, self.rank, self.size), total)

    def add_gradients(self, loss: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
        """Add up gradients over the ranks, in place; returns the added loss.

        A parameter that took part nowhere keeps no gradient, so that the optimiser leaves it alone as it would in one
        process.
        """
        if self.size == 1:
            return loss.detach()
        trained = list(parameters)
        used = loss.new_tensor([p.grad is not None for p in trained])
        gradients = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained]
        flat = torch.cat([*gradients, used, loss.detach().reshape(1)])
        self._together(lambda: dist.all_reduce(flat))
        used, total = flat[-len(trained) - 1 : -1], flat[-1]
        pieces = flat[: -len(trained) - 1].split([p.numel() for p in trained])
        for parameter, piece, count in zip(trained, pieces, used.tolist(), strict=True):
            parameter.grad = piece.view_as(parameter).clone() if count else None
        return total

    def add(self, values: Sequence[float]) -> list[float]:
        """Add up numbers over the ranks."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        self._together(lambda: dist.all_reduce(tensor))
        return tensor.tolist()

    def from_first(self, value: float) -> float:
        """Return the first rank's number."""
        return self.add([value if self.first else 0.0])[0]

    def require_same(self, value: int, what: str) -> None:
        """Raise UserError, on every rank, when the ranks hold different numbers (of 48 bits at most)."""
        differs = self.from_first(value) != value
        if self.add([float(differs)])[0]:
            raise UserError(
                f"The ranks of this run differ in {what}. They must see the same files: put the project on a disk that "
                "all machines share."
            )

    def wait(self) -> None:
        """Return when every rank has come here."""
        self.add([0.0])

    def _together(self, collective: Callable[[], object]) -> None:
        try:
            collective()
        except (RuntimeError, dist.DistBackendError) as error:
            raise UserError(
                f"Rank {self.rank} lost another rank of this run; its message is above, if it had one. "
                "Run the same command again to go on from the last whole epoch."
            ) from error


def alone() -> Ranks:
    """Return a process that trains by itself.

    Raises:
        UserError: `torchrun` started several processes for a stage that runs in one.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("Of the stages only `train` runs in several processes. Run this one without torchrun.")
    return Ranks()


@contextmanager
def join_ranks() -> Iterator[Ranks]:
    """Join the processes that `torchrun` started; a process started by hand is alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Ranks()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Ranks(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()
