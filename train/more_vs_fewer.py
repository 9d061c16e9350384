"""MoFe, "more vs fewer": of two nested sets of a sample's modalities, the larger must not do worse (SimMLM, 2025).

    l_MoFe = max(0, l(o+, y) - l(o-, y)), per sample and label, with a gradient on both sides.

An add-on for every method, since `Method.forward` without labels predicts from any subset. Where the hinge is active
the smaller set is pushed up, so keep the weight small. Costs two more predictions a batch; both use the same dropout
wherever their shapes agree, so that what is compared is the modalities and not the noise.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from cache.bank import TokenBatch
from extract.task import LabelSpec, loss_entries
from train.methods.base import Method
from train.missing import draw_nested


def ranking_loss(more: Tensor, fewer: Tensor, labels: Tensor, label: LabelSpec, comparable: Tensor) -> Tensor:
    """Mean of max(0, l(o+, y) - l(o-, y)) over the labels of comparable samples; a scalar.

    Args:
        more: logits [B, C] from the larger sets.
        fewer: logits [B, C] from the smaller sets.
        labels: float32 [B] or [B, L]; NaN marks an absent label.
        label: the label.
        comparable: bool [B], samples whose sets differ.
    """
    hinge = F.relu(loss_entries(more, labels, label) - loss_entries(fewer, labels, label))
    counted = torch.isfinite(labels) & comparable.reshape(-1, *[1] * (labels.dim() - 1))
    return (hinge * counted).sum() / counted.sum().clamp(min=1)


def add_ranking(
    losses: dict[str, Tensor], method: Method, batch: TokenBatch, weight: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return the losses with `more_vs_fewer` added at `weight`; unchanged at weight 0 or in a method's first stage.

    Args:
        losses: of the method; "loss" is their total.
        method: in training mode.
        batch: with labels.
        weight: of the ranking loss.
        generator: of the draws.
    """
    if not weight or method.warming_up or batch.labels is None:
        return losses
    larger, smaller, comparable = draw_nested(batch.observed, generator)
    unlabelled, device = replace(batch, labels=None), batch.observed.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        fewer = method(unlabelled.with_observed(smaller), generator).logits
    more = method(unlabelled.with_observed(larger), generator).logits
    ranking = ranking_loss(more, fewer, batch.labels, method.spec.label, comparable)
    return {**losses, "loss": losses["loss"] + weight * ranking, "more_vs_fewer": ranking}
