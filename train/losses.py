"""Reconstruction losses of eq. 6 and eq. 8 on one modality, and the distillation loss.

Both equations are the same formula on different masks. The mask inside is the hard mask without gradient: else the
scorer would simply pick tokens with a small error.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from extract.task import LabelSpec


def reconstruction_loss(
    predicted: Tensor,
    target: Tensor,
    mask: Tensor,
    observed: Tensor,
    over: Literal["sum", "mean"],
) -> Tensor:
    """1/K |(predicted - target) * M|_F^2 per sample (eq. 6, eq. 8); [B], zero where not observed.

    Args:
        predicted: [B, T, D].
        target: [B, T, D].
        mask: bool [B, T], the hard mask.
        observed: bool [B].
        over: `sum` over the D features as in the paper, or their mean.
    """
    error = (predicted - target).square()
    per_token = error.sum(-1) if over == "sum" else error.mean(-1)
    weight = (mask & observed[:, None]).to(per_token.dtype)
    return (per_token * weight).sum(-1) / weight.sum(-1).clamp(min=1)


def mean_over_observed(per_modality: Tensor, observed: Tensor) -> Tensor:
    """Mean over the observed modalities of each sample, then over the batch; [B, M] to a scalar."""
    weight = observed.to(per_modality.dtype)
    return ((per_modality * weight).sum(-1) / weight.sum(-1).clamp(min=1)).mean()


def distillation_loss(student: Tensor, teacher: Tensor, label: LabelSpec) -> Tensor:
    """KL from the teacher's to the student's prediction (squared distance for regression); a scalar.

    Args:
        student: logits [B, C] on the incomplete sample.
        teacher: logits [B, C] on everything the sample has; no gradient flows into it.
        label: the label.
    """
    teacher = teacher.detach()
    if label.kind == "regression":
        return F.mse_loss(student, teacher)
    if label.kind == "multiclass":
        return F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="batchmean")
    soft = teacher.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(teacher, soft)
    return F.binary_cross_entropy_with_logits(student, soft) - entropy
