"""What the methods with one expert a modality share: rows that have a modality, and losses of the experts alone.

An expert runs on the samples that have its modality and on no others: nothing of a missing modality can reach a
result, no attention row is empty, and what is missing costs nothing. Reads the observed mask on the host.
"""

from abc import abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cache.bank import TokenBatch
from extract.task import task_loss
from train.methods.base import Method, Output, Tokens, labels_of


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
        """Stack `run(modality, tokens [R, L, D], valid [R, L])` over modalities; [B, M, ...], zero where missing.

        Args:
            run: maps the samples that have the modality to [R, ...], the same trailing shape for all modalities.
            tokens: of all samples.
            observed: bool [B, M] with no empty row.
        """
        results = {}
        for column, name in enumerate(self.spec.modalities):
            rows = observed[:, column].nonzero().flatten()
            if len(rows):
                results[column] = rows, run(name, tokens.values[name][rows], tokens.valid[name][rows])
        like = next(iter(results.values()))[1]
        stacked = like.new_zeros(*observed.shape, *like.shape[1:])
        for column, (rows, value) in results.items():
            stacked[rows, column] = value.to(like.dtype)
        return stacked

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
