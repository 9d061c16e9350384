"""Predictions and metrics of a method on a bank of tokens: the one path of selection, evaluation and prediction.

`Bank` is what a token bank must offer, so that cached tokens and freshly encoded ones are scored alike. Costs one
forward pass a batch, in float32 and without gradients, on the method's own device.
"""

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from cache.bank import TokenBatch
from cache.errors import UserError
from extract.metrics import compute_metrics, monitor_name
from extract.task import outputs, probabilities
from train.methods.base import Method
from train.missing import drop_by_protocol

Array = np.ndarray
Selection = Literal["natural", "protocol", "both"]
SELECTION_MASK_SEED = 20_260
"""Fixed, so that every epoch, method and training seed is selected on the same validation missingness."""


class Bank(Protocol):
    """N samples over M modalities: `cache.bank.TokenBank` or `train.encoded.EncodedBank`."""

    modalities: tuple[str, ...]
    observed: Tensor
    labels: Tensor | None

    def __len__(self) -> int: ...

    def batch(self, rows: Tensor) -> TokenBatch:
        """Gather the given samples, int64 [B]."""


def device_of(method: Method) -> torch.device:
    """Return the device that holds the method's weights."""
    return next(method.parameters()).device


def move(batch: TokenBatch, device: torch.device) -> TokenBatch:
    """Return the batch on `device`."""
    moved = ({m: v.to(device) for m, v in d.items()} for d in (batch.tokens, batch.valid, batch.maskable))
    tokens, valid, maskable = moved
    labels = None if batch.labels is None else batch.labels.to(device)
    return TokenBatch(tokens, valid, maskable, batch.observed.to(device), labels)


@torch.no_grad()
def predict_bank(method: Method, bank: Bank, kept: Array | None, batch_size: int) -> Array:
    """Return probabilities float64 [N, C]; rows that keep nothing are NaN.

    Args:
        method: any method; its training flag is restored afterwards.
        bank: the samples.
        kept: bool [N, M], what stays visible of what each sample has; None for everything.
        batch_size: samples per forward pass; does not change the result.
    """
    visible = bank.observed.cpu()
    if kept is not None:
        visible = visible & torch.as_tensor(kept, dtype=torch.bool)
    rows = visible.any(-1).nonzero().flatten()
    result = np.full((len(bank), outputs(method.spec.label)), np.nan)
    device, training = device_of(method), method.training
    method.eval()
    try:
        for chunk in rows.split(batch_size):
            batch = move(bank.batch(chunk), device).with_observed(visible[chunk].to(device))
            scores = probabilities(method(batch).logits, method.spec.label)
            result[chunk.numpy()] = scores.double().cpu().numpy()
    finally:
        method.train(training)
    return result


def score(method: Method, bank: Bank, kept: Array | None, batch_size: int) -> dict[str, float]:
    """Return the metrics of the samples that keep something."""
    if bank.labels is None:
        raise UserError("The samples have no labels to score against. Add a label column to the samples table.")
    predicted = predict_bank(method, bank, kept, batch_size)
    rows = np.isfinite(predicted).all(-1)
    if not rows.any():
        return {}
    return compute_metrics(predicted[rows], bank.labels.cpu().numpy()[rows], method.spec.label)


def selection_metrics(
    method: Method, bank: Bank, sample_ids: Sequence[str], select_on: Selection, batch_size: int
) -> dict[str, float]:
    """Return validation metrics; `monitor` is what the best epoch is chosen by (larger is better).

    Args:
        method: the method at the end of an epoch.
        bank: the validation split.
        sample_ids: its ids in the bank's order; the protocol's draw depends on them.
        select_on: `natural` missingness, the `protocol`, or the mean of both monitors.
        batch_size: samples per forward pass.

    Raises:
        UserError: the validation labels do not define the monitored metric.
    """
    name = monitor_name(method.spec.label)
    result: dict[str, float] = {}
    for scenario in ("natural", "protocol") if select_on == "both" else (select_on,):
        kept = None
        if scenario == "protocol":
            kept = drop_by_protocol(sample_ids, bank.observed.cpu().numpy(), SELECTION_MASK_SEED)
        metrics = score(method, bank, kept, batch_size)
        if not np.isfinite(metrics.get(name, np.nan)):
            raise UserError(
                f"The validation split does not define '{name}': it needs labelled samples of every class. "
                "Choose another split and run `selfmask prepare` again."
            )
        result.update({f"{scenario}/{key}": value for key, value in metrics.items()})
    result["monitor"] = float(np.mean([v for k, v in result.items() if k.endswith(f"/{name}") and k.count("/") == 1]))
    return result
