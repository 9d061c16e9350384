"""What methods with one expert a modality share: rows that have a modality, the gate, losses of the experts alone.

An expert runs on the samples that have its modality and on no others: nothing of a missing modality can reach a
result, no attention row is empty, and what is missing costs nothing. Reads the observed mask on the host.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cache.bank import TokenBatch
from extract.encoders.base import masked_mean
from extract.task import outputs, task_loss
from train.config import ModelSettings
from train.methods.base import Method, ModelSpec, Output, Tokens, labels_of
from train.transformer import Fusion

PerModality = Mapping[str, Tensor]


def stack_observed(
    run: Callable[[str, Tensor, Tensor], Tensor], values: PerModality, valid: PerModality, observed: Tensor
) -> Tensor:
    """Stack `run(modality, tokens [R, L, D], valid [R, L])` over modalities; [B, M, ...], zero where missing.

    Args:
        run: maps the samples that have the modality to [R, ...], the same trailing shape for all modalities.
        values: tokens of all samples by modality, in the order of the columns of `observed`.
        valid: bool [B, L] by modality.
        observed: bool [B, M] with no empty row.
    """
    results = {}
    for column, name in enumerate(values):
        rows = observed[:, column].nonzero().flatten()
        if len(rows):
            results[column] = rows, run(name, values[name][rows], valid[name][rows])
    like = next(iter(results.values()))[1]
    stacked = like.new_zeros(*observed.shape, *like.shape[1:])
    for column, (rows, value) in results.items():
        stacked[rows, column] = value.to(like.dtype)
    return stacked


def gate_network(model: ModelSettings, modalities: int, scores: int) -> nn.Sequential:
    """Return the gate: from what `gate_features` returns to scores [B, `scores`]."""
    return nn.Sequential(
        nn.Linear(modalities * (model.width + 1), model.width),
        nn.ReLU(),
        nn.Dropout(model.dropout),
        nn.Linear(model.width, scores),
    )


def gate_features(values: PerModality, valid: PerModality, observed: Tensor) -> Tensor:
    """Mean token of each observed modality, zero elsewhere, and what is observed; [B, M (D + 1)]."""
    pooled = torch.stack([masked_mean(values[m], valid[m]) for m in values], dim=1)
    visible = torch.where(observed[..., None], pooled, torch.zeros_like(pooled))
    return torch.cat([visible.flatten(1), observed.to(pooled.dtype)], dim=-1)


class ExpertMixture(nn.Module):
    """Logits of a fusion of everything, mixed with those of one small Transformer for each observed modality.

    A gate of what is observed weighs them, so that one modality's evidence reaches the prediction past the others.
    """

    def __init__(self, spec: ModelSpec, model: ModelSettings) -> None:
        super().__init__()
        count = len(spec.modalities)
        self.experts = nn.ModuleDict({m: Fusion(model, outputs(spec.label)) for m in spec.modalities})
        self.gate = gate_network(model, count, count + 1)

    def forward(self, fused: Tensor, values: PerModality, valid: PerModality, observed: Tensor) -> Tensor:
        """Return logits [B, C].

        Args:
            fused: logits [B, C] of the fusion.
            values: tokens [B, L, D] by modality; only those of observed modalities are read.
            valid: bool [B, L] by modality.
            observed: bool [B, M] with no empty row.
        """
        alone = stack_observed(lambda name, own, seen: self.experts[name](own, seen), values, valid, observed)
        scores = self.gate(gate_features(values, valid, observed)).float()
        open_to = torch.cat([torch.ones_like(observed[:, :1]), observed], dim=1)
        weights = scores.masked_fill(~open_to, -torch.inf).softmax(1)
        mixed: Tensor = (weights[..., None] * torch.cat([fused[:, None], alone.to(fused.dtype)], dim=1)).sum(1)
        return mixed


class ExpertMethod(Method):
    """A method that builds its own mixture instead of the shared fusion."""

    def forward(self, batch: TokenBatch, generator: torch.Generator | None = None) -> Output:
        """Losses in training mode with labels, else the prediction from `batch.observed`."""
        tokens = self.project(batch)
        if not self.training or batch.labels is None:
            return Output(self.predict(tokens, batch.observed))
        return self.learn(tokens, batch.observed, batch.labels, generator)

    @abstractmethod
    def predict(self, tokens: Tokens, observed: Tensor) -> Tensor:
        """Return logits [B, C]."""

    @abstractmethod
    def learn(self, tokens: Tokens, natural: Tensor, labels: Tensor, generator: torch.Generator | None) -> Output:
        """Draw missingness on top of the natural one and return the losses."""

    def per_modality(self, run: Callable[[str, Tensor, Tensor], Tensor], tokens: Tokens, observed: Tensor) -> Tensor:
        """As `stack_observed` on the tokens of this method's modalities."""
        return stack_observed(run, tokens.values, tokens.valid, observed)

    def stack(self, values: dict[str, Tensor]) -> Tensor:
        """Pad [B, L_m, ...] of all modalities to the longest and stack them; [B, M, L, ...]."""
        longest = max(value.shape[1] for value in values.values())
        return torch.stack(
            [
                F.pad(values[m], (0, 0) * (values[m].dim() - 2) + (0, longest - values[m].shape[1]))
                for m in self.spec.modalities
            ],
            dim=1,
        )

    def unimodal_loss(self, logits: Tensor, observed: Tensor, labels: Tensor) -> Tensor:
        """Sum over modalities of the task loss, each over the samples that have it; logits [B, M, C], a scalar."""
        losses = [
            task_loss(logits[:, column], labels_of(observed[:, column], labels), self.spec.label)
            for column in range(observed.shape[1])
        ]
        return torch.stack(losses).sum()
