"""SimMLM: one expert a modality, mixed by a gate that sees them all (Li, Chen, Han; ICCV 2025, arXiv 2507.19264).

Symbols: E_m expert with logits o_m; w gate weights; MoFe "more vs fewer" loss on two nested sets S- in S+. An expert
sees its own modality alone, so that a step runs the M experts once, and only gate and mixture twice.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extract.task import LabelSpec, outputs, task_loss
from train.config import ModelSettings, SimMLMSettings
from train.methods.base import ModelSpec, Output, Tokens
from train.methods.experts import ExpertMethod, gate_features, gate_network
from train.missing import draw_nested
from train.more_vs_fewer import ranking_loss
from train.transformer import Fusion


class SimMLM(ExpertMethod):
    """Experts E_m (a Transformer, pooled, with a head) and the gate."""

    def __init__(self, spec: ModelSpec, model: ModelSettings, simmlm: SimMLMSettings) -> None:
        super().__init__(spec, model)
        count, results = len(spec.modalities), outputs(spec.label)
        self.settings = simmlm
        self.warmup_epochs = simmlm.expert_epochs
        self.experts = nn.ModuleDict({m: Fusion(model, results) for m in spec.modalities})
        self.gate = gate_network(model, count, count * (results if simmlm.gate == "class" else 1))

    def predict(self, tokens: Tokens, observed: Tensor) -> Tensor:
        """Logits of the mixture; [B, C]."""
        return self.mixture(self.alone(tokens, observed), tokens, observed)

    def learn(self, tokens: Tokens, natural: Tensor, labels: Tensor, generator: torch.Generator | None) -> Output:
        """Stage 1: the experts alone. Stage 2: both nested sets, and the ranking between them."""
        alone, label = self.alone(tokens, natural), self.spec.label
        if self.warming_up:
            loss = self.unimodal_loss(alone, natural, labels)
            return Output(alone.sum(1), {"loss": loss, "experts": loss})
        larger, smaller, comparable = draw_nested(natural, generator)
        more, fewer = (self.mixture(alone, tokens, kept) for kept in (larger, smaller))
        task = (task_loss(more, labels, label) + task_loss(fewer, labels, label)) / 2  # mean over both halves
        ranking = ranking_loss(more, fewer, labels, label, comparable)  # l_MoFe
        losses = {"loss": task + self.settings.more_vs_fewer * ranking, "task": task, "mofe": ranking}
        if self.settings.expert_loss:
            losses["experts"] = self.unimodal_loss(alone, natural, labels)
            losses["loss"] = losses["loss"] + self.settings.expert_loss * losses["experts"]
        return Output(more, losses, {"observed": larger})

    def alone(self, tokens: Tokens, observed: Tensor) -> Tensor:
        """o_m = E_m(z_m), zero where missing; [B, M, C]."""
        return self.per_modality(lambda name, values, valid: self.experts[name](values, valid), tokens, observed)

    def mixture(self, alone: Tensor, tokens: Tokens, observed: Tensor) -> Tensor:
        """o_c = sum_m w_mc o_mc over what is observed; [B, C]."""
        return mix(self.log_weights(tokens, observed), alone, self.settings.mix, self.spec.label)

    def log_weights(self, tokens: Tokens, observed: Tensor) -> Tensor:
        """log w, a softmax over the observed modalities; [B, M, C] or [B, M, 1], -inf where missing."""
        features = gate_features(tokens.values, tokens.valid, observed)
        scores: Tensor = self.gate(features).unflatten(-1, (observed.shape[1], -1)).float()
        return scores.masked_fill(~observed[..., None], -torch.inf).log_softmax(1)


def mix(log_weights: Tensor, alone: Tensor, level: str, label: LabelSpec) -> Tensor:
    """Mix the experts' logits, or the logits of the mixed probabilities; [B, M, C] to [B, C].

    Args:
        log_weights: [B, M, C] or [B, M, 1].
        alone: o, [B, M, C].
        level: `logits` or `probabilities`; the same for regression.
        label: the label.
    """
    if level == "logits" or label.kind == "regression":
        return (log_weights.exp() * alone).sum(1)
    if label.kind == "multiclass":
        return (log_weights + alone.log_softmax(-1)).logsumexp(1)
    positive, negative = (log_weights + F.logsigmoid(sign * alone) for sign in (1, -1))
    return positive.logsumexp(1) - negative.logsumexp(1)
