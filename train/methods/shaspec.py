"""ShaSpec (Wang et al., CVPR 2023): one encoder shared by all modalities beside one for each.

Symbols: A the observed modalities; r_m shared and s_m specific vector, P the projection that joins them, f_m their
fusion; f of a missing modality is made of the shared vectors of the others (eq. 4). Missing modalities take no part in
either loss, as the paper says and its code does not. Cost: two encoder passes a modality.
"""

from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cache.bank import TokenBatch
from extract.task import outputs, task_loss
from train.config import ModelSettings, ShaSpecSettings
from train.methods.base import Method, ModelSpec, Output, Tokens
from train.methods.modality_encoders import ModalityEncoders, encode_rows
from train.missing import simulate
from train.transformer import SummaryTransformer


class ShaSpec(Method):
    """E_sh, E_m, P, the head (FC, dropout, FC) and the modality classifiers of the two losses."""

    def __init__(self, spec: ModelSpec, model: ModelSettings, shaspec: ShaSpecSettings) -> None:
        super().__init__(spec, model)
        self.settings = shaspec
        width, count = model.width, len(spec.modalities)
        self.shared = SummaryTransformer(model)  # E_sh
        self.specific = ModalityEncoders(spec, model)  # E_m
        self.join = nn.Linear(2 * width, width)  # P
        self.head = nn.Sequential(
            nn.Linear(count * width, width),
            nn.ReLU(),
            nn.Dropout(model.dropout),
            nn.Linear(width, outputs(spec.label)),
        )
        self.classify_specific = nn.Linear(width, count)  # D_dco
        if shaspec.alignment == "ce":
            self.classify_shared = nn.Linear(width, count)
        elif shaspec.alignment == "kl":
            self.distribution = nn.Linear(width, width)

    def forward(self, batch: TokenBatch, generator: torch.Generator | None = None) -> Output:
        """Predict; in training mode also l_task + alpha l_dao + beta l_dco."""
        labels = batch.labels if self.training else None
        observed = batch.observed if labels is None else simulate(batch.observed, self.settings.draw, generator)
        shared, specific = self.vectors(self.project(batch), observed)
        logits: Tensor = self.head(self.features(shared, specific, observed).flatten(1))
        if labels is None:
            return Output(logits)
        task = task_loss(logits, labels, self.spec.label)
        dao, dco = self.alignment_loss(shared, observed), self.objective_loss(specific, observed)
        loss = task + self.settings.alpha * dao + self.settings.beta * dco
        return Output(logits, {"loss": loss, "task": task, "dao": dao, "dco": dco})

    def vectors(self, tokens: Tokens, observed: Tensor) -> tuple[Tensor, Tensor]:
        """r and s, both [B, M, D], zero where missing."""
        shared = [
            encode_rows(self.shared, tokens.values[m], tokens.valid[m], observed[:, i])[0]
            for i, m in enumerate(self.spec.modalities)
        ]
        specific, _ = self.specific(tokens, observed)
        return torch.stack(shared, dim=1), specific

    def features(self, shared: Tensor, specific: Tensor, observed: Tensor) -> Tensor:
        """f_m = r_m + P([r_m; s_m]), and eq. 4 for what is missing; [B, M, D]."""
        own = shared + self.join(torch.cat([shared, specific], dim=-1))
        if self.settings.missing == "mean":
            weight = observed.to(shared.dtype)[:, :, None]
            made = (shared * weight).sum(1) / weight.sum(1)  # eq. 4 with 1 / |A|
        else:  # as the official code does: the first modality that is there
            made = shared[torch.arange(len(shared), device=shared.device), observed.int().argmax(1)]
        return torch.where(observed[:, :, None], own, made[:, None])

    def objective_loss(self, specific: Tensor, observed: Tensor) -> Tensor:
        """l_dco: cross entropy of naming the modality of s, mean over what is observed."""
        names = torch.arange(observed.shape[1], device=observed.device).expand_as(observed)
        return F.cross_entropy(self.classify_specific(specific[observed]), names[observed])

    def alignment_loss(self, shared: Tensor, observed: Tensor) -> Tensor:
        """l_dao: r says nothing of its modality; mean over the pairs (entries for `ce`) that are observed."""
        if self.settings.alignment == "ce":  # against the uniform distribution
            return torch.as_tensor(-self.classify_shared(shared[observed]).log_softmax(-1).mean())
        pairs = [
            (shared[both, i], shared[both, j])
            for i, j in combinations(range(observed.shape[1]), 2)
            for both in [observed[:, i] & observed[:, j]]
        ]
        if not any(len(r) for r, _ in pairs):
            return shared.new_zeros(())
        one, other = (torch.cat(side) for side in zip(*pairs, strict=True))
        return self._distance(one, other)

    def _distance(self, one: Tensor, other: Tensor) -> Tensor:
        if self.settings.alignment == "l1":
            return (one - other).abs().mean()
        if self.settings.alignment == "mse":
            return (one - other).square().mean()
        p, q = (self.distribution(side).log_softmax(-1) for side in (one, other))
        both = F.kl_div(p, q, log_target=True, reduction="batchmean") + F.kl_div(
            q, p, log_target=True, reduction="batchmean"
        )
        return both / 2
