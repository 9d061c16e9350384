"""What is predicted: label kinds, the number of logits, the task loss (eq. 9) and probabilities.

Binary tasks have one logit, so that a threshold of 0.5 is the sign of the logit. Rows without a label (NaN)
take no part in the loss: they can still teach the reconstruction losses.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor

LabelKind = Literal["binary", "multiclass", "multilabel", "regression"]


class LabelSpec(BaseModel):
    """Kind and names of the label."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: LabelKind
    names: tuple[str, ...]
    """One name per label column."""
    classes: tuple[str, ...] = ()
    """Class names in index order (multiclass only)."""


def outputs(spec: LabelSpec) -> int:
    """Return C, the number of logits."""
    return len(spec.classes) if spec.kind == "multiclass" else len(spec.names)


def task_loss(logits: Tensor, labels: Tensor, spec: LabelSpec, reduction: Literal["mean", "none"] = "mean") -> Tensor:
    """Cross entropy, binary cross entropy or mean squared error (eq. 9).

    Args:
        logits: [B, C].
        labels: float32 [B], or [B, L] for multi-label; NaN marks an absent label.
        spec: the label.
        reduction: `mean` over labelled rows, or `none` for [B] with zeros at unlabelled rows.
    """
    known = torch.isfinite(labels)
    entries = loss_entries(logits, labels, spec)
    if reduction == "mean":
        return entries.sum() / known.sum().clamp(min=1)
    return entries.sum(-1) / known.sum(-1).clamp(min=1) if entries.dim() > 1 else entries


def loss_entries(logits: Tensor, labels: Tensor, spec: LabelSpec) -> Tensor:
    """Task loss of every label, [B], or [B, L] for multi-label; zero where the label is NaN.

    Args:
        logits: [B, C].
        labels: float32 [B], or [B, L] for multi-label; NaN marks an absent label.
        spec: the label.
    """
    known = torch.isfinite(labels)
    safe = torch.where(known, labels, torch.zeros_like(labels))
    if spec.kind == "multiclass":
        entries = F.cross_entropy(logits, safe.long(), reduction="none")
    elif spec.kind == "regression":
        entries = (logits.squeeze(-1) - safe).square()
    else:
        entries = F.binary_cross_entropy_with_logits(logits.reshape(safe.shape), safe, reduction="none")
    return entries * known


def probabilities(logits: Tensor, spec: LabelSpec) -> Tensor:
    """Return [B, C]: softmax for classes, sigmoid for binary and multi-label, the value for regression."""
    if spec.kind == "multiclass":
        return logits.softmax(-1)
    return logits if spec.kind == "regression" else logits.sigmoid()
