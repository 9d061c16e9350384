"""Compute precision of a forward pass, in training and extraction: autocast over float32 weights."""

from contextlib import AbstractContextManager
from typing import Any, Literal

import torch

from cache.errors import UserError

Precision = Literal["float32", "bfloat16", "float16"]


def autocast(precision: Precision, device: torch.device | str) -> AbstractContextManager[Any]:
    """Return the context of a forward pass on a device."""
    return torch.autocast(torch.device(device).type, getattr(torch, precision), enabled=precision != "float32")


def require_precision(precision: Precision, device: torch.device | str) -> None:
    """Raise UserError for float16 without a GPU: processors have no fast arithmetic for it."""
    kind = torch.device(device).type
    if precision == "float16" and kind != "cuda":
        raise UserError(
            f"precision float16 needs a CUDA device, and this process runs on {kind}. Set it to bfloat16 or float32."
        )
