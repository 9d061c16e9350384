"""Flex-MoE's missing-modality bank in front of the shared fusion (Yun et al., NeurIPS 2024).

What is missing is replaced by learned tokens chosen by the whole observed pattern and the missing modality. Its
routers and sparse experts are left out: the bank is what completes a sample. It grows with 2^(M-1) M T D, and a
pattern that training never shows keeps its initial values; here every pattern is drawn.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cache.bank import TokenBatch
from extract.task import outputs, task_loss
from train.config import FlexMoESettings, ModelSettings
from train.methods.base import Method, ModelSpec, Output, Tokens, labels_of
from train.missing import draw_kept
from train.transformer import Fusion


class FlexMoE(Method):
    """Bank of T^(m) tokens for each pattern without modality m, and the shared fusion."""

    def __init__(self, spec: ModelSpec, model: ModelSettings, flexmoe: FlexMoESettings) -> None:
        super().__init__(spec, model)
        self.fusion = Fusion(model, outputs(spec.label))
        self.warmup_epochs = flexmoe.complete_epochs
        rows = max(1, 2 ** (len(spec.modalities) - 1) - 1)
        self.bank = nn.ParameterDict(
            {m: nn.Parameter(torch.randn(rows, n, model.width) * 0.02) for m, n in spec.missing_lengths.items()}
        )

    def forward(self, batch: TokenBatch, generator: torch.Generator | None = None) -> Output:
        """Predict; in training mode with labels also the task loss, first on complete samples alone."""
        tokens, labels = self.project(batch), batch.labels
        if not self.training or labels is None:
            return Output(self.predict(tokens, batch.observed))
        if self.warming_up:
            observed, labels = batch.observed, labels_of(batch.observed.all(-1), labels)
        else:
            observed = draw_kept(batch.observed, "sample", generator)
        logits = self.predict(tokens, observed)
        return Output(logits, {"loss": task_loss(logits, labels, self.spec.label)}, {"observed": observed})

    def predict(self, tokens: Tokens, observed: Tensor) -> Tensor:
        """Logits with the bank's tokens in the place of what is missing; [B, C]."""
        rows = bank_rows(observed)
        filled = {m: self._fill(m, rows[:, i], tokens.values[m]) for i, m in enumerate(self.spec.modalities)}
        values = self.choose(observed, tokens.values, filled)
        valid = self.input_valid(tokens.valid, observed)
        logits: Tensor = self.fusion(self.concatenate(values), self.concatenate(valid))
        return logits

    def _fill(self, name: str, rows: Tensor, like: Tensor) -> Tensor:
        chosen = self.bank[name][rows]
        return F.pad(chosen, (0, 0, 0, like.shape[1] - chosen.shape[1])).to(like.dtype)


def bank_rows(observed: Tensor) -> Tensor:
    """Number the observed patterns for each modality that they lack; int64 [B, M] from bool [B, M].

    The pattern without modality m has 2^(M-1) - 1 values, the code of the other modalities minus one. Where m is
    observed the number means nothing.
    """
    place = torch.arange(observed.shape[1], device=observed.device)
    code = (observed.long() << place).sum(-1, keepdim=True)
    others = (code % (1 << place)) | (code >> (place + 1) << place)
    return (others - 1).clamp(min=0)
