"""Padded minibatches from flat tokens: index arithmetic and one gather per modality.

All tokens of some samples lie in one tensor, [tokens + 1, width] in the stored type, whose last row is zero and serves
as padding: no Python loop over samples. On the CPU the rows pass through a scratch that stays in its cache on their way
to float32: half the memory traffic of a gather followed by a conversion, and no fresh pages for the intermediate. Only
where a sample's copy takes longer than the loop's step, large samples on the CPU, is each copied by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

SCRATCH_BYTES = 2**19
"""Of gathered tokens per thread; about a core's second-level cache."""
SLICE_BYTES = 2**16
"""Mean size of a minibatch's samples from which one copy a sample is faster than a gather of rows."""


@dataclass(frozen=True)
class TokenBatch:
    """One minibatch; dicts by modality in the order of `observed`'s columns.

    tokens: float32 [B, T_m, width_m], zero at padding; valid, maskable: bool [B, T_m]; observed: bool [B, M];
    labels: float32 [B] or [B, L], or None.
    """

    tokens: dict[str, Tensor]
    valid: dict[str, Tensor]
    maskable: dict[str, Tensor]
    observed: Tensor
    labels: Tensor | None

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names in the order of `observed`'s columns."""
        return tuple(self.tokens)

    def to(self, device: torch.device | str) -> "TokenBatch":
        """Return the batch on another device."""
        tokens, valid, maskable = (
            {name: value.to(device) for name, value in values.items()}
            for values in (self.tokens, self.valid, self.maskable)
        )
        labels = None if self.labels is None else self.labels.to(device)
        return TokenBatch(tokens, valid, maskable, self.observed.to(device), labels)

    def with_observed(self, observed: Tensor) -> "TokenBatch":
        """Return the batch with another observed mask [B, M]."""
        return replace(self, observed=observed.to(self.observed.device))


@dataclass(frozen=True)
class FlatTokens:
    """N samples of one modality, one after the other, on one device."""

    tokens: Tensor
    """[tokens + 1, width] in the stored type."""
    maskable: Tensor
    """bool [tokens + 1]."""
    starts: Tensor
    """int64 [N]."""
    lengths: Tensor
    """int64 [N]; zero where a sample lacks the modality."""
    scales: Tensor | None = None
    """float32 [tokens + 1], by which int8 tokens are multiplied; None for the other types."""

    def to(self, device: torch.device | str) -> "FlatTokens":
        """Return the tokens on another device."""
        return FlatTokens(
            self.tokens.to(device),
            self.maskable.to(device),
            self.starts.to(device),
            self.lengths.to(device),
            None if self.scales is None else self.scales.to(device),
        )

    def pad(self, rows: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
        """Gather samples, int64 [B] on the device, padded to `length`.

        Returns:
            Tokens float32 [B, length, width], valid and maskable bool [B, length].
        """
        place = torch.arange(length, device=self.tokens.device)
        valid = place[None] < self.lengths[rows, None]
        index = torch.where(valid, self.starts[rows, None] + place, len(self.tokens) - 1).flatten()
        if self._has_large(rows):
            tokens = copy_slices(self, rows, length)
        else:
            tokens = gather_float(self, index).view(len(rows), length, self.tokens.shape[1])
        return tokens, valid, self.maskable.index_select(0, index).view_as(valid)

    def _has_large(self, rows: Tensor) -> bool:
        if self.tokens.device.type != "cpu" or not len(rows):
            return False
        row_bytes = self.tokens.shape[1] * self.tokens.element_size()
        return int(self.lengths[rows].sum()) * row_bytes >= SLICE_BYTES * len(rows)


def padded_length(longest: int, buckets: Sequence[int]) -> int:
    """Return the smallest bucket that holds `longest`, or `longest` itself if none does; at least one."""
    return max(1, min((bucket for bucket in buckets if bucket >= longest), default=longest))


def gather_float(flat: FlatTokens, index: Tensor) -> Tensor:
    """Return the tokens at `index`, int64 [K], as float32 [K, width]."""
    if flat.tokens.device.type != "cpu":
        found = flat.tokens.index_select(0, index).float()
    elif flat.tokens.dtype == torch.float32:
        found = torch.index_select(flat.tokens, 0, index, out=_empty(len(index), flat.tokens.shape[1]))
    else:
        found = _gather_converted(flat.tokens, index)
    return found if flat.scales is None else found.mul_(flat.scales[index, None])


def copy_slices(flat: FlatTokens, rows: Tensor, length: int) -> Tensor:
    """Return the tokens of samples as float32 [B, length, width], zero at padding; one copy a sample."""
    found = _empty(len(rows) * length, flat.tokens.shape[1]).view(len(rows), length, -1)
    places = zip(found.unbind(), flat.starts[rows].tolist(), flat.lengths[rows].tolist(), strict=True)
    for target, start, count in places:
        own = slice(start, start + count)
        target[:count].copy_(flat.tokens[own])
        if flat.scales is not None:
            target[:count].mul_(flat.scales[own, None])
        target[count:].zero_()
    return found


def _gather_converted(tokens: Tensor, index: Tensor) -> Tensor:
    width = tokens.shape[1]
    found = _empty(len(index), width)
    step = max(1, SCRATCH_BYTES * torch.get_num_threads() // max(1, width * tokens.element_size()))
    scratch = torch.empty(min(step, len(index)), width, dtype=tokens.dtype)
    for part, target in zip(index.split(step), found.split(step), strict=True):
        target.copy_(torch.index_select(tokens, 0, part, out=scratch[: len(part)]))
    return found


def _empty(rows: int, width: int) -> Tensor:
    """Return an uninitialised float32 tensor; from NumPy, because that asks the kernel for huge pages."""
    return torch.from_numpy(np.empty((rows, width), np.float32))
