"""The interface of every encoder: embed, (mask), encode.

`embed` turns inputs into token inputs without positions, `encode` adds positions and contextualises, so that eq. 5,
masking an encoder's input, is `encode(where(mask, V, tokens))` and a masked token keeps its position. Padding goes to
the attention mask only, masking to the tokens only.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from extract.samples import ModalitySpec


@dataclass(frozen=True)
class Embedded:
    """Token inputs: tokens [B, T, d_in]; valid and maskable, bool [B, T]."""

    tokens: Tensor
    valid: Tensor
    maskable: Tensor


class Encoder(nn.Module, ABC):
    """Maps raw values of one modality to token sequences; one output token per input token."""

    width: int
    """Width of the output tokens."""
    input_width: int
    """d_in, the width of the token inputs."""

    def __init__(self, width: int, input_width: int) -> None:
        super().__init__()
        self.width, self.input_width = width, input_width
        self.placeholder = nn.Parameter(torch.randn(input_width) * 0.02)  # V

    @classmethod
    def prepare(
        cls, settings: Any, modality: ModalitySpec, train_values: Callable[[], Iterable[Any]]
    ) -> dict[str, Any]:
        """Return the assets that a new encoder starts from (a tokenizer, channel names); none by default."""
        return {}

    @classmethod
    def assemble(cls, settings: Any, assets: dict[str, Any], *, load_weights: bool) -> "Encoder":
        """Build from settings and assets; without `load_weights` a saved encoder, whose state is loaded next."""
        make: Any = cls
        built: Encoder = make(settings, None if load_weights else assets)
        return built

    @abstractmethod
    def preprocess(self, value: Any) -> dict[str, np.ndarray]:
        """Turn one raw value into arrays; raises UnreadableValue with a reason."""

    @abstractmethod
    def collate(self, items: Sequence[dict[str, np.ndarray]]) -> dict[str, Tensor]:
        """Pad and stack preprocessed values."""

    @abstractmethod
    def embed(self, inputs: dict[str, Tensor]) -> Embedded:
        """Token inputs of a collated batch, without positions."""

    @abstractmethod
    def encode(self, embedded: Embedded) -> Tensor:
        """Contextualised tokens, float32 [B, T, width]."""

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """Return name, options, preprocessing and token layout: what the cache key records besides the weights."""

    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """Return the blocks from input to output: what is trained, adapted or recomputed block by block."""

    @abstractmethod
    def token_spans(self, value: Any) -> list[tuple[float, ...]]:
        """Return the part of the input behind each token: pixel boxes, character spans, or (start, end)."""

    def length(self, item: dict[str, np.ndarray]) -> int:
        """Return the tokens of a preprocessed value, by which batches are formed; by default one per array row."""
        return len(next(iter(item.values())))

    def encode_masked(self, embedded: Embedded, mask: Tensor) -> Tensor:
        """Encode X (1 - M) + V M (eq. 5); differentiable in `mask` [B, T], in V and in the inputs."""
        weight = mask.to(embedded.tokens.dtype)[:, :, None]
        mixed = embedded.tokens * (1 - weight) + self.placeholder * weight
        return self.encode(replace(embedded, tokens=mixed))

    def forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Embedded]:
        """Return tokens [B, T, width] and the embedded inputs with their masks."""
        embedded = self.embed(inputs)
        return self.encode(embedded), embedded

    def augment(self, inputs: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Randomly change training inputs; the identity by default."""
        return inputs

    def set_checkpointing(self, enabled: bool) -> None:
        """Recompute each block in the backward pass of training: less memory, more time, the same gradients."""
        for block in self.blocks():
            block.__dict__.pop("forward", None)
            if enabled:
                block.forward = partial(_recomputed, block.forward)

    def fit_statistics(self, values: Sequence[dict[str, np.ndarray]]) -> None:
        """Fit normalisation on preprocessed training values; nothing by default."""

    def assets(self) -> dict[str, Any]:
        """Return what `load` needs besides settings and weights, as JSON (a tokenizer, channel names)."""
        return {}


def _recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():  # in evaluation; a part may be in that mode in training, too
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def pad(arrays: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Stack arrays [T_i, ...] into zero-padded [B, T, ...] and bool valid [B, T]."""
    lengths = np.array([len(array) for array in arrays])
    stacked = np.zeros((len(arrays), int(lengths.max()), *arrays[0].shape[1:]), arrays[0].dtype)
    for row, array in enumerate(arrays):
        stacked[row, : len(array)] = array
    valid = np.arange(stacked.shape[1])[None] < lengths[:, None]
    return torch.from_numpy(stacked), torch.from_numpy(valid)


def masked_mean(tokens: Tensor, valid: Tensor) -> Tensor:
    """Mean of the valid tokens; [B, T, D] to [B, D], zero where there is none."""
    weight = valid.to(tokens.dtype)[:, :, None]
    return (tokens * weight).sum(1) / weight.sum(1).clamp(min=1)
