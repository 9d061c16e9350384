"""The small pre-norm Transformer of the from-scratch encoders, with sinusoidal positions.

The nested-tensor fast path is off: it would zero padded rows in evaluation only.
"""

import math

import torch
from torch import Tensor, nn

from extract.config import TransformerSettings


class SequenceTransformer(nn.Module):
    """[B, T, width] to [B, T, width]; positions are added here, after the mask point."""

    def __init__(self, settings: TransformerSettings) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                settings.width,
                settings.heads,
                dim_feedforward=4 * settings.width,
                dropout=settings.dropout,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(settings.layers)
        )
        self.norm = nn.LayerNorm(settings.width)

    def forward(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """Contextualise valid tokens."""
        hidden = tokens + sinusoids(tokens.shape[1], tokens.shape[2], tokens.device)
        padding = torch.zeros_like(valid, dtype=hidden.dtype).masked_fill(~valid, float("-inf"))
        padding = padding.masked_fill(~valid.any(-1, keepdim=True), 0.0)  # a fully padded row must not give NaN
        for block in self.blocks:
            hidden = block(hidden, src_key_padding_mask=padding)
        result: Tensor = self.norm(hidden)
        return result


def sinusoids(length: int, width: int, device: torch.device) -> Tensor:
    """Fixed temporal position encoding, [length, width]."""
    place = torch.arange(length, device=device, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(10000.0) / width))
    angles = place * rate
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width]
