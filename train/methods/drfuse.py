"""DrFuse: a shared and a distinct vector of each modality, and class-wise attention (Yao et al., AAAI 2024).

Symbols: h^sh, h^di shared and distinct vectors; S observed modalities; sigma logistic; alpha_c attention of class c
over the M distinct vectors and the pooled shared one. Generalised from two modalities, the first always present, to
any subset of any number (docs/methods.md). A step costs three small Transformers a modality.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extract.encoders.base import masked_mean
from extract.task import LabelSpec, loss_entries, outputs, task_loss
from train.config import DrFuseSettings, ModelSettings
from train.methods.base import ModelSpec, Output, Tokens
from train.methods.experts import ExpertMethod
from train.missing import draw_kept
from train.transformer import TokenTransformer


class ClassAttention(nn.Module):
    """alpha_c = softmax_n <q, k_cn> / sqrt(D); logit c is row c of a linear map of sum_n alpha_cn v_n."""

    def __init__(self, width: int, results: int, keys: Literal["full", "low_rank"]) -> None:
        super().__init__()
        self.results, self.width = results, width
        self.query, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.low_rank = keys == "low_rank"
        self.key = nn.Linear(width, width if self.low_rank else results * width)
        if self.low_rank:
            self.class_key = nn.Parameter(torch.randn(results, width))  # e_c of k_cn = e_c * (K h_n)
        self.out = nn.Linear(width, results)

    def forward(self, tokens: Tensor, available: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [B, C] and alpha [B, N, C] from [B, N, D] and bool [B, N]."""
        query = masked_mean(self.query(tokens), available)  # mean over the available tokens
        scores = self._scores(query, self.key(tokens)) / math.sqrt(self.width)
        alpha = scores.float().masked_fill(~available[..., None], -torch.inf).softmax(1)
        mixed = torch.einsum("bnc,bnd->bcd", alpha, self.value(tokens).float())
        return (mixed * self.out.weight).sum(-1) + self.out.bias, alpha

    def _scores(self, query: Tensor, keys: Tensor) -> Tensor:
        if self.low_rank:
            return torch.einsum("bd,cd,bnd->bnc", query, self.class_key, keys)
        return torch.einsum("bd,bncd->bnc", query, keys.unflatten(-1, (self.results, self.width)))


class DrFuse(ExpertMethod):
    """Trunk, shared and distinct Transformer of each modality, phi, class-wise attention and auxiliary heads."""

    def __init__(self, spec: ModelSpec, model: ModelSettings, drfuse: DrFuseSettings) -> None:
        super().__init__(spec, model)
        width, results = model.width, outputs(spec.label)
        self.settings = drfuse
        self.trunk, self.shared, self.distinct = (
            nn.ModuleDict({m: TokenTransformer(model, model.fusion_layers) for m in spec.modalities}) for _ in range(3)
        )
        self.phi = nn.Sequential(
            nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, width)
        )
        self.attention = ClassAttention(width, results, drfuse.keys)
        self.distinct_heads = nn.ModuleDict({m: nn.Linear(width, results) for m in spec.modalities})
        self.shared_head = nn.Linear(width, results)

    def predict(self, tokens: Tokens, observed: Tensor) -> Tensor:
        """Logits of the class-wise attention; [B, C]."""
        shared, distinct = self.encode(tokens, observed)
        logits: Tensor = self.attention(*self.candidates(pool_logits(shared, observed), distinct, observed))[0]
        return logits

    def learn(self, tokens: Tokens, natural: Tensor, labels: Tensor, generator: torch.Generator | None) -> Output:
        """L = L_final + l_sh L_shared + l_m L_m + g_sh L_JSD + g_m L_orth + l_attn L_rank."""
        s, label = self.settings, self.spec.label
        observed = self.simulate(natural, generator)
        shared, distinct = self.encode(tokens, observed)
        pooled = pool_logits(shared, observed)
        logits, alpha = self.attention(*self.candidates(pooled, distinct, observed))
        alone = self.auxiliary(pooled, distinct)
        losses = {
            "task": task_loss(logits, labels, label),
            "shared": task_loss(alone[:, -1], labels, label),
            "unimodal": self.unimodal_loss(alone[:, :-1], observed, labels),
            "divergence": (divergence if s.jsd == "full" else official_divergence)(shared, observed),
            "orthogonality": orthogonality(shared, distinct, observed),
            "ranking": attention_ranking(alpha, alone, observed, labels, label),
        }
        weights = (1.0, s.shared_loss, s.unimodal_loss, s.divergence, s.orthogonality, s.ranking)
        loss = torch.stack([w * value for w, value in zip(weights, losses.values(), strict=True)]).sum()
        return Output(logits, {"loss": loss, **losses}, {"observed": observed})

    def simulate(self, natural: Tensor, generator: torch.Generator | None) -> Tensor:
        """A drawn subset for floor(share B) random samples, all that they have for the others; bool [B, M]."""
        drawn = draw_kept(natural, "sample", generator)
        order = torch.randperm(len(natural), generator=generator).to(natural.device)
        return torch.where((order < int(self.settings.drawn_share * len(natural)))[:, None], drawn, natural)

    def encode(self, tokens: Tokens, observed: Tensor) -> tuple[Tensor, Tensor]:
        """Return h^sh after phi, and h^di; [B, M, D] each, zero where missing."""

        def run(name: str, values: Tensor, valid: Tensor) -> Tensor:
            hidden = self.trunk[name](values, valid)
            shared = self.phi(masked_mean(self.shared[name](hidden, valid), valid))
            return torch.stack([shared, masked_mean(self.distinct[name](hidden, valid), valid)], dim=1)

        both = self.per_modality(run, tokens, observed).float()
        return both[:, :, 0], both[:, :, 1]

    def candidates(self, pooled: Tensor, distinct: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is attended to, [B, M + 1, D], and what of it there is; the shared vector is last."""
        always = torch.ones_like(observed[:, :1])
        return torch.cat([distinct, pooled[:, None]], dim=1), torch.cat([observed, always], dim=1)

    def auxiliary(self, pooled: Tensor, distinct: Tensor) -> Tensor:
        """Logits of the heads on h^di and on the pooled h^sh; [B, M + 1, C]."""
        heads = [self.distinct_heads[m](distinct[:, i]) for i, m in enumerate(self.spec.modalities)]
        return torch.stack([*heads, self.shared_head(pooled)], dim=1)


def pool_logits(shared: Tensor, observed: Tensor) -> Tensor:
    """h^sh = logit(mean_S sigma(h_m)) = LSE_S log sigma(h_m) - LSE_S log sigma(-h_m); [B, M, D] to [B, D].

    1/|S| cancels; finite for any logits, and h_m itself where S = {m}.
    """
    absent = ~observed[..., None]
    positive, negative = (F.logsigmoid(sign * shared).masked_fill(absent, -torch.inf) for sign in (1, -1))
    return positive.logsumexp(1) - negative.logsumexp(1)


def divergence(shared: Tensor, observed: Tensor) -> Tensor:
    """Bernoulli JSD over S, mean over coordinates and over the samples with |S| >= 2; a scalar.

    JSD_S = H_b(h^sh) - 1/|S| sum_S H_b(h_m), with H_b(h) = sigma(h) softplus(-h) + sigma(-h) softplus(h).
    """
    weight = observed[..., None].to(shared.dtype)
    mean_entropy = (entropy(shared) * weight).sum(1) / weight.sum(1)
    per_sample = (entropy(pool_logits(shared, observed)) - mean_entropy).mean(-1)
    return _mean_over_pairs(per_sample, observed)


def entropy(logits: Tensor) -> Tensor:
    """H_b, the entropy of a Bernoulli variable in nats, from its logit."""
    return logits.sigmoid() * F.softplus(-logits) + (-logits).sigmoid() * F.softplus(logits)


def official_divergence(shared: Tensor, observed: Tensor) -> Tensor:
    """1/|S| sum_S p_m log(p_m / mean p), the p side alone, summed over coordinates; mean over samples, |S| >= 2.

    Unlike the official code, samples without a pair stay out, and saturated logits stay finite.
    """
    weight, count = observed[..., None].to(shared.dtype), observed.sum(-1)[:, None]
    log_p = F.logsigmoid(shared)
    log_mid = log_p.masked_fill(~observed[..., None], -torch.inf).logsumexp(1) - count.log()
    one_side = (log_p.exp() * (log_p - log_mid[:, None]) * weight).sum(1) / count
    return _mean_over_pairs(one_side.sum(-1), observed)


def orthogonality(shared: Tensor, distinct: Tensor, observed: Tensor) -> Tensor:
    """Sum over modalities of the mean |cos(h_m^sh, h_m^di)| over the samples that have it; a scalar."""
    cosine = F.cosine_similarity(shared, distinct, dim=-1).abs() * observed
    return (cosine.sum(0) / observed.sum(0).clamp(min=1)).sum()


def attention_ranking(alpha: Tensor, alone: Tensor, observed: Tensor, labels: Tensor, label: LabelSpec) -> Tensor:
    """Hinge max(0, -y (alpha_i - alpha_j)): the token whose own head has the smaller loss gets more attention.

    y = +1 if l_i < l_j, else -1, without gradient. For each pair of tokens the sum over samples with |S| >= 2 and
    labels is divided by the number of positive entries; then the mean over pairs. Classes share one label, so that
    their attention is averaged first.

    Args:
        alpha: [B, M + 1, C].
        alone: logits of the auxiliary heads, [B, M + 1, C].
        observed: bool [B, M].
        labels: float32 [B] or [B, L]; NaN marks an absent label.
        label: the label.
    """
    entries = torch.stack([loss_entries(one, labels, label).detach() for one in alone.unbind(1)], dim=1)
    entries = entries.reshape(*alpha.shape[:2], -1)  # [B, N, L]
    attention = alpha.mean(-1, keepdim=True) if label.kind == "multiclass" else alpha
    available = torch.cat([observed, torch.ones_like(observed[:, :1])], dim=1)
    first, second = torch.triu_indices(alpha.shape[1], alpha.shape[1], 1, device=alpha.device)
    sign = torch.where(entries[:, first] < entries[:, second], 1.0, -1.0)
    hinge = F.relu(-sign * (attention[:, first] - attention[:, second]))  # [B, P, L]
    paired = available[:, first] & available[:, second] & (observed.sum(-1, keepdim=True) > 1)
    hinge = hinge * paired[..., None] * torch.isfinite(labels).reshape(len(labels), 1, -1)
    return (hinge.sum((0, 2)) / (hinge > 0).sum((0, 2)).clamp(min=1)).mean()


def _mean_over_pairs(per_sample: Tensor, observed: Tensor) -> Tensor:
    paired = observed.sum(-1) > 1
    return (per_sample * paired).sum() / paired.sum().clamp(min=1)
