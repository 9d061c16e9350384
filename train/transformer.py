"""The small Transformers g, h and f on concatenated token sequences.

One pre-norm stack serves predictor, mask predictor and fusion. Padding is excluded by the attention mask. The
nested-tensor fast path is switched off: it would make outputs at padded places differ between training and
evaluation.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from extract.encoders.base import masked_mean
from train.config import ModelSettings


class TokenTransformer(nn.Module):
    """Pre-norm Transformer encoder with a final LayerNorm: [B, T, D] to [B, T, D]."""

    def __init__(self, model: ModelSettings, layers: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            model.width,
            model.heads,
            dim_feedforward=4 * model.width,
            dropout=model.dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        # On the residuals alone: keeps the fused attention kernel, and on a CPU random numbers cost more than products.
        layer.self_attn.dropout = 0.0
        layer.dropout.p = 0.0
        self.layers = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(model.width), enable_nested_tensor=False)

    def forward(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """Encode `tokens` [B, T, D]; `valid` [B, T] marks what may be attended to."""
        result: Tensor = self.layers(tokens, src_key_padding_mask=~valid)
        return result

    @torch.no_grad()
    def attention_received(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """Return the attention each token receives in the last layer, mean over heads and queries; [B, T]."""
        hidden = tokens
        for layer in self.layers.layers[:-1]:
            hidden = layer(hidden, src_key_padding_mask=~valid)
        last = self.layers.layers[-1]
        normed = last.norm1(hidden)
        _, weights = last.self_attn(normed, normed, normed, key_padding_mask=~valid, need_weights=True)
        query = valid.to(weights.dtype)
        received: Tensor = (weights * query[:, :, None]).sum(1) / query.sum(-1, keepdim=True)
        return received


class ResidualMLP(nn.Module):
    """The head with a residual path that the paper uses for CMU-MOSEI."""

    def __init__(self, width: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, width))
        self.out = nn.Linear(width, outputs)

    def forward(self, pooled: Tensor) -> Tensor:
        """[B, D] to [B, C]."""
        result: Tensor = self.out(pooled + self.hidden(pooled))
        return result


class SummaryTransformer(nn.Module):
    """A Transformer over tokens, and one vector that stands for them."""

    def __init__(self, model: ModelSettings) -> None:
        super().__init__()
        self.pooling: Literal["cls", "mean"] = model.pooling
        self.transformer = TokenTransformer(model, model.fusion_layers)
        self.summary = nn.Parameter(torch.randn(model.width) * 0.02)

    def encode(self, tokens: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Return the vector [B, D] and the contextual tokens [B, T, D]; a sample needs one valid token."""
        if self.pooling == "mean":
            hidden = self.transformer(tokens, valid)
            return masked_mean(hidden, valid), hidden
        summary = self.summary.expand(len(tokens), 1, -1)
        tokens = torch.cat([summary, tokens], dim=1)
        valid = torch.cat([torch.ones_like(valid[:, :1]), valid], dim=1)
        hidden = self.transformer(tokens, valid)
        return hidden[:, 0], hidden[:, 1:]


class Fusion(SummaryTransformer):
    """f: a Transformer over all tokens, pooled, then a head: tokens to logits (eq. 9)."""

    def __init__(self, model: ModelSettings, outputs: int) -> None:
        super().__init__(model)
        self.dropout = nn.Dropout(model.dropout)
        self.head: nn.Module = (
            nn.Linear(model.width, outputs)
            if model.head == "linear"
            else ResidualMLP(model.width, outputs, model.dropout)
        )

    def forward(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """Return logits [B, C] from tokens [B, T, D]; a sample needs one valid token when pooling is `mean`."""
        pooled, _ = self.encode(tokens, valid)
        logits: Tensor = self.head(self.dropout(pooled))
        return logits
