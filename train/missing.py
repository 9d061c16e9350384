"""Which modalities are kept: seeded draws for training, stored scenarios for evaluation.

Missingness is never baked into data. A draw only removes from what a sample naturally has, and never everything.
In evaluation the draw of a sample depends on the seed and its id alone, not on the order or the other samples, so
that every method and every subset of the test split sees the same missingness.
"""

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from cache.errors import UserError
from extract.ranks import draw_rows
from train.config import Draw

BoolArray = np.ndarray


def patterns(modalities: int) -> Tensor:
    """Return all 2^M - 1 non-empty kept sets as bool [2^M - 1, M]."""
    codes = torch.arange(1, 2**modalities)
    return (codes[:, None] >> torch.arange(modalities)) % 2 == 1


def draw_kept(observed: Tensor, per: Literal["batch", "sample"], generator: torch.Generator | None) -> Tensor:
    """Draw the simulated missing set of Algorithm 1, line 2; returns what stays observed, bool [B, M].

    `sample`: each sample draws uniformly from the non-empty subsets of what it has. `batch`: one of all 2^M - 1
    sets for the batch; a sample that would keep nothing draws its own instead.

    Args:
        observed: natural availability, bool [B, M]; no row may be empty.
        per: granularity of the draw.
        generator: CPU generator; the result moves to `observed`'s device.
    """
    available = _available(observed)
    table = patterns(available.shape[-1])
    allowed = (table[None] & ~available[:, None]).sum(-1) == 0  # [B, P]: subsets of what the sample has
    own = table[_draw_one(allowed, generator)]
    if per == "sample":
        return own.to(observed.device)
    common = table[torch.randint(len(table), (1,), generator=generator)] & available
    return torch.where(common.any(-1, keepdim=True), common, own).to(observed.device)


def _draw_one(weights: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw one column of each row of [B, P] by the weights in it, where a flag is a weight of 1; int64 [B].

    The numbers that `torch.multinomial` would draw, but by row, so that ranks can each keep the rows of their own.
    """
    waiting = draw_rows(_exponential, weights.shape, generator)
    chosen: Tensor = (weights.float() / waiting).argmax(-1)
    return chosen


def _exponential(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    return torch.empty(shape).exponential_(generator=generator)


def draw_proper(observed: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw a non-empty proper subset of what each row has, uniformly; bool [B, M]. A row of one modality keeps it."""
    table, available = patterns(observed.shape[-1]), observed.cpu()
    allowed = ((table[None] & ~available[:, None]).sum(-1) == 0) & (table[None] != available[:, None]).any(-1)
    alone = available.sum(-1, keepdim=True) == 1
    allowed = torch.where(alone, (table[None] == available[:, None]).all(-1), allowed)
    return table[_draw_one(allowed, generator)].to(observed.device)


def simulate(observed: Tensor, draw: Draw, generator: torch.Generator | None) -> Tensor:
    """Training missingness of a method: the natural one, or a draw on top of it; bool [B, M]."""
    return observed if draw == "natural" else draw_kept(observed, draw, generator)


def draw_nested(observed: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
    """Draw two nested kept sets of each sample; returns larger and smaller, bool [B, M], and comparable, bool [B].

    Distributed as two uniform draws from the non-empty subsets of what the sample has, repeated until one strictly
    contains the other and the first is not all of it. A sample with one modality is not comparable and keeps it.

    Args:
        observed: natural availability, bool [B, M]; no row may be empty.
        generator: CPU generator; the results move to `observed`'s device.
    """
    available = _available(observed)
    table = patterns(available.shape[-1])
    inside = (table[None] & ~available[:, None]).sum(-1) == 0  # [B, P]
    whole = (table[None] == available[:, None]).all(-1)
    # Pairs below a set, in both orders; with everything in it, only the order that draws it second.
    weight = inside * (2.0 ** table.sum(-1) - 2) * torch.where(whole, 1.0, 2.0)
    comparable = available.sum(-1) > 1
    weight = torch.where(comparable[:, None], weight, whole.float())
    larger = table[_draw_one(weight, generator)]
    below = (table[None] & ~larger[:, None]).sum(-1) == 0
    proper = below & ~((table[None] == larger[:, None]).all(-1) & comparable[:, None])
    smaller = table[_draw_one(proper, generator)]
    device = observed.device
    return larger.to(device), smaller.to(device), comparable.to(device)


def drop_by_protocol(sample_ids: Sequence[str], observed: BoolArray, seed: int) -> BoolArray:
    """Return kept [N, M] by the paper's protocol: half of the samples miss one modality, half miss two.

    One or two of the modalities that the sample naturally has are dropped, each choice equally likely; a sample
    that has too few keeps one.
    """
    kept = observed.copy()
    for row, sample_id in enumerate(sample_ids):
        draw = _sample_generator(seed, sample_id, "protocol")
        available = np.flatnonzero(observed[row])
        dropped = min(int(draw.integers(1, 3)), len(available) - 1)
        kept[row, draw.permutation(available)[:dropped]] = False
    return kept


def drop_at_rate(sample_ids: Sequence[str], observed: BoolArray, rate: float, seed: int) -> BoolArray:
    """Return kept [N, M] with every observed modality dropped at `rate`; one is always kept.

    The same uniform numbers serve every rate, so a curve over rates drops nested sets.
    """
    kept = observed.copy()
    for row, sample_id in enumerate(sample_ids):
        draw = _sample_generator(seed, sample_id, "rate").random(observed.shape[1])
        kept[row] &= draw >= rate
        if observed[row].any() and not kept[row].any():
            kept[row, np.argmax(np.where(observed[row], draw, -1.0))] = True
    return kept


def _available(observed: Tensor) -> Tensor:
    available = observed.cpu()
    if not bool(available.any(-1).all()):
        raise UserError("A sample has no observed modality. Run `selfmask check` on the samples table.")
    return available


def _sample_generator(seed: int, sample_id: str, purpose: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{purpose}:{seed}:{sample_id}".encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint64))
