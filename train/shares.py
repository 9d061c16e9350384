"""A rank's share of a global batch: its tokens, and what its losses count in those of the whole batch.

A share is padded as the whole batch would be, so that draws by token have the shape that they have in one process. A
rank that gets nothing of an uneven last batch computes one row and counts it zero, so that all ranks step together.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from cache.bank import TokenBatch
from cache.streaming import CachedBank
from extract.ranks import Ranks, Share
from train.methods.base import Output
from train.scoring import move


@dataclass(frozen=True)
class SharedBatch:
    """The rows of one rank, and the weights of their means: over samples, and over labelled entries."""

    tokens: TokenBatch
    share: Share
    label_weight: float

    def to(self, device: torch.device) -> "SharedBatch":
        """Return the batch on `device`."""
        return replace(self, tokens=move(self.tokens, device))

    def weighted(self, output: Output) -> dict[str, Tensor]:
        """Return the losses so that they, and their gradients, add up over the ranks to those of the whole batch."""
        return weighted(output, self.share, self.label_weight)


def weighted(output: Output, share: Share, label_weight: float) -> dict[str, Tensor]:
    """Return the losses of a part so that they, and their gradients, add up over the parts to those of the batch.

    `target_sd/...`, a deviation that is logged alone, becomes the mean of the parts' deviations.

    Args:
        output: of the part's rows.
        share: which rows of the batch they are.
        label_weight: what a mean over their labelled entries counts in that of the batch.
    """
    losses = output.losses
    if share.weight == 1 and label_weight == 1:
        return losses
    labelled = sum(
        (weight * losses[name] for name, weight in output.labelled.items()), torch.zeros_like(losses["loss"])
    )
    counted = {
        name: loss * (label_weight if name in output.labelled else share.weight) for name, loss in losses.items()
    }
    return {**counted, "loss": (losses["loss"] - labelled) * share.weight + labelled * label_weight}


def gather_share(bank: CachedBank, rows: Tensor, ranks: Ranks) -> SharedBatch:
    """Gather this rank's rows of the global batch `rows`, int64 [B]."""
    share = ranks.share(len(rows))
    return as_share(bank, rows, bank.batch(rows[share.first : max(share.last, share.first + 1)]), ranks)


def as_share(bank: CachedBank, rows: Tensor, batch: TokenBatch, ranks: Ranks) -> SharedBatch:
    """Return `batch`, this rank's rows of the global batch `rows`, int64 [B], of `bank`, as its share."""
    share = ranks.share(len(rows))
    if ranks.size == 1:
        return SharedBatch(batch, share, 1.0)
    longest = {m: max(1, int(bank.lengths[m][rows.cpu()].max())) for m in batch.modalities}
    return SharedBatch(_padded(batch, longest), share, _label_weight(bank, rows, share))


def _label_weight(bank: CachedBank, rows: Tensor, share: Share) -> float:
    if bank.labels is None:
        return share.weight
    known = torch.isfinite(bank.labels[rows.cpu()])
    return float(known[share.first : share.last].sum() / known.sum().clamp(min=1))


def _padded(batch: TokenBatch, longest: dict[str, int]) -> TokenBatch:
    def pad(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {m: F.pad(v, (0, 0) * (v.dim() - 2) + (0, longest[m] - v.shape[1])) for m, v in values.items()}

    return replace(batch, tokens=pad(batch.tokens), valid=pad(batch.valid), maskable=pad(batch.maskable))
