"""Token masks of eq. 4: the K highest scores among the valid, maskable tokens, with a gradient if asked.

Top-K has no gradient; the straight-through form uses the hard mask forward and a sigmoid of the scores backward.
It is written as `hard + (soft - soft.detach())`: with any other grouping the mask is off by a rounding error, and
masked content leaks.
"""

import torch
from torch import Tensor


def masked_count(valid: Tensor, maskable: Tensor, ratio: float) -> Tensor:
    """Return K = max(1, round(ratio x valid tokens)), at most the maskable ones; int64 [B].

    Args:
        valid: bool [B, T].
        maskable: bool [B, T], a subset of `valid`.
        ratio: share of valid tokens to mask.
    """
    wanted = (ratio * valid.sum(-1)).round().long().clamp(min=1)
    return torch.minimum(wanted, maskable.sum(-1))


def top_k_mask(scores: Tensor, valid: Tensor, maskable: Tensor, ratio: float) -> Tensor:
    """Mark the K highest-scored maskable tokens of each sample (eq. 4); bool [B, T].

    Padding and special tokens are never marked; equal scores are resolved by position.
    """
    allowed = maskable & valid
    ranked = scores.detach().masked_fill(~allowed, float("-inf"))
    order = ranked.argsort(dim=-1, descending=True, stable=True)
    first = torch.arange(scores.shape[-1], device=scores.device) < masked_count(valid, allowed, ratio)[:, None]
    return torch.zeros_like(allowed).scatter(-1, order, first) & allowed


def straight_through(hard: Tensor, scores: Tensor, *, reverse: bool = False) -> Tensor:
    """Return the hard mask whose gradient is that of sigmoid(scores); float [B, T], exactly 0 or 1 forward.

    Args:
        hard: bool [B, T].
        scores: float [B, T].
        reverse: turn the gradient around, so that the scores climb what everything else descends.
    """
    soft = scores.sigmoid()
    change = soft.detach() - soft if reverse else soft - soft.detach()
    return hard.to(soft.dtype) + change
