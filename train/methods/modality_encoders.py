"""One small Transformer a modality: the vectors that methods with a fusion of vectors work on.

The compared methods were published with an encoder a modality and a fusion of pooled vectors. Cached tokens already
come from an encoder, so what is left is a Transformer of the size of the shared fusion. Only rows that have the
modality are encoded: the content of a missing one cannot leak, and costs nothing.
"""

from typing import cast

import torch
from torch import Tensor, nn

from train.config import ModelSettings
from train.methods.base import ModelSpec, Tokens
from train.transformer import SummaryTransformer


def encode_rows(encoder: SummaryTransformer, values: Tensor, valid: Tensor, has: Tensor) -> tuple[Tensor, Tensor]:
    """Summaries [B, D] and contextual tokens [B, T, D] of the rows that `has` [B] marks; zeros in the others."""
    rows = has.nonzero().flatten()
    summary, hidden = torch.zeros_like(values[:, 0]), torch.zeros_like(values)
    if not len(rows):
        return summary, hidden
    pooled, encoded = encoder.encode(values[rows], valid[rows])
    return summary.index_copy(0, rows, pooled.to(summary)), hidden.index_copy(0, rows, encoded.to(hidden))


class ModalityEncoders(nn.Module):
    """An encoder for each modality, none shared."""

    def __init__(self, spec: ModelSpec, model: ModelSettings) -> None:
        super().__init__()
        self.per_modality = nn.ModuleDict({m: SummaryTransformer(model) for m in spec.modalities})

    def forward(self, tokens: Tokens, observed: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Summaries [B, M, D] and contextual tokens, dict of [B, L_m, D]; zeros where a modality is missing."""
        summaries, hidden = [], {}
        for column, name in enumerate(self.per_modality):
            encoder = cast(SummaryTransformer, self.per_modality[name])
            summary, hidden[name] = encode_rows(encoder, tokens.values[name], tokens.valid[name], observed[:, column])
            summaries.append(summary)
        return torch.stack(summaries, dim=1), hidden
