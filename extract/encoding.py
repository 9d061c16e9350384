"""Batches through an encoder, without gradients: preprocessed values to the tokens of each sample.

A token's last bits depend on the batch that it was computed in (padding and the shape of the products), so whoever
wants the same bytes twice must form the same batches; `extract.engines.chunks` does.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from cache.errors import UserError
from cache.parts import SampleTokens
from extract.encoders.base import Encoder
from extract.precision import Precision, autocast

Item = tuple[str, str, dict[str, np.ndarray]]
"""Sample id, digest of the raw value, preprocessed value."""


def batches(encoder: Encoder, items: Sequence[Item], most_samples: int, most_tokens: int) -> Iterator[list[Item]]:
    """Group samples of similar length, shortest first, so that little is spent on padding.

    Args:
        encoder: tells lengths.
        items: in any order; equal lengths keep it.
        most_samples: of a batch.
        most_tokens: of a batch, padding included; a longer sample is alone.
    """
    raw = [len(next(iter(item[2].values()))) for item in items]  # audio: clips of one exact length side by side
    lengths = [encoder.length(item[2]) for item in items]
    batch: list[Item] = []
    for row in sorted(range(len(items)), key=lambda row: (lengths[row], raw[row])):
        if batch and (len(batch) == most_samples or (len(batch) + 1) * lengths[row] > most_tokens):
            yield batch
            batch = []
        batch.append(items[row])
    if batch:
        yield batch


@torch.no_grad()
def encode_items(encoder: Encoder, items: Sequence[Item], precision: Precision) -> list[SampleTokens]:
    """Encode one batch of preprocessed samples."""
    encoder.eval()
    device = encoder.placeholder.device
    inputs = encoder.collate([item[2] for item in items])
    if device.type == "cuda":  # page-locked memory is copied while the device computes
        inputs = {name: value.pin_memory() for name, value in inputs.items()}
    inputs = {name: value.to(device, non_blocking=True) for name, value in inputs.items()}
    with autocast(precision, device):
        tokens, embedded = encoder(inputs)
    native = tokens.float().cpu().numpy()
    valid, maskable = embedded.valid.cpu().numpy(), embedded.maskable.cpu().numpy()
    return [
        SampleTokens(sample_id, digest, native[row][valid[row]], maskable[row][valid[row]])
        for row, (sample_id, digest, _) in enumerate(items)
    ]


class MemoryLimit:
    """Encodes batches; one that the device's memory does not hold is halved, and so is each later one of its size."""

    def __init__(self, encoder: Encoder, precision: Precision) -> None:
        self.encoder, self.precision = encoder, precision
        self.tokens = math.inf
        """Fewest tokens, padding included, that were too many."""

    def encode(self, items: Sequence[Item]) -> list[SampleTokens]:
        """As `encode_items`.

        Raises:
            UserError: not even one sample fits.
        """
        tokens = len(items) * max(self.encoder.length(item[2]) for item in items)
        if len(items) == 1 or tokens < self.tokens:
            encoded = self._try(items)
            if encoded is not None:
                return encoded
            self._learn(tokens, len(items))
        half = len(items) // 2
        return [sample for part in (items[:half], items[half:]) for sample in self.encode(part)]

    def _try(self, items: Sequence[Item]) -> list[SampleTokens] | None:
        try:
            return encode_items(self.encoder, items, self.precision)
        except torch.OutOfMemoryError:
            return None  # what the error holds of the pass is free from here

    def _learn(self, tokens: int, samples: int) -> None:
        device = self.encoder.placeholder.device
        if samples == 1:
            raise UserError(
                f"The memory of {device} does not hold one sample of {tokens} tokens. "
                "Shorten the values in encoders.<name>, or set extract.precision=bfloat16."
            )
        self.tokens = min(self.tokens, tokens)
        if device.type == "cuda":
            torch.cuda.empty_cache()
