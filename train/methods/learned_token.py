"""Learned missing token: modality dropout whose fusion sees a trained vector in the place of what is missing.

What it adds to modality dropout is a way to say "absent"; nothing else differs. Cost: the fusion attends to T^(m)
tokens for each missing modality.
"""

import torch
from torch import Tensor, nn

from train.config import ModelSettings
from train.methods.base import ModelSpec, Tokens
from train.methods.baselines import ModalityDropout


class LearnedToken(ModalityDropout):
    """One vector a modality, repeated T^(m) times; the draws are those of modality dropout."""

    def __init__(self, spec: ModelSpec, model: ModelSettings) -> None:
        super().__init__(spec, model)
        self.missing_token = nn.ParameterDict(
            {m: nn.Parameter(torch.randn(model.width) * 0.02) for m in spec.modalities}
        )

    def predict(self, tokens: Tokens, observed: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return logits [B, C]."""
        fill = {m: self.missing_token[m].expand_as(value) for m, value in tokens.values.items()}
        return self.fuse_filled(tokens, observed, fill)
