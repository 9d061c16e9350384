"""MoMKE: every modality through every modality's expert, mixed by a soft router (Xu, Jiang, Liang; ACM MM 2024).

Symbols: E_k expert; z_m tokens of modality m; s_m router; R_m mixture; J = [R_1; ..; R_M]. Stage 1 trains E_m on
modality m alone, stage 2 mixes; both fit one loop, as first epochs or as weights of one sum (`MoMKESettings`).
A step of stage 2 costs M^2 expert passes over the observed tokens, done in M calls; stage 1 costs M.
"""

from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cache.errors import UserError
from extract.encoders.base import masked_mean
from extract.task import outputs, task_loss
from train.config import ModelSettings, MoMKESettings
from train.methods.base import ModelSpec, Output, Tokens, labels_of
from train.methods.experts import ExpertMethod
from train.missing import draw_kept


class ExpertBlock(nn.Module):
    """z + [A(z) + MLP(A(z))]: attention without output projection; the inner residual is around the MLP alone."""

    def __init__(self, model: ModelSettings, norm: Literal["none", "pre"]) -> None:
        super().__init__()
        width = model.width
        self.heads = model.heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.mlp = router_mlp(width, width, model.dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(width) if norm == "pre" else nn.Identity() for _ in range(2))

    def forward(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """[R, L, D] and bool [R, L] to [R, L, D]; every row needs a valid token."""
        attended = self.attend(self.norms[0](tokens), valid)
        result: Tensor = tokens + attended + self.mlp(self.norms[1](attended))
        return result

    def attend(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """A(z): scale 1 / sqrt(D / heads), keys that are valid; [R, L, D]."""
        query, key, value = (
            part(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=valid[:, None, None, :])
        return mixed.transpose(1, 2).flatten(-2)


class Expert(nn.Module):
    """E_k: a stack of blocks, no positions and by default no LayerNorm."""

    def __init__(self, model: ModelSettings, norm: Literal["none", "pre"]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ExpertBlock(model, norm) for _ in range(model.fusion_layers))

    def forward(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """[R, L, D] to [R, L, D]."""
        for block in self.blocks:
            tokens = block(tokens, valid)
        return tokens


def router_mlp(width: int, results: int, dropout: float) -> nn.Sequential:
    """D -> D -> results with GELU and dropout after both linears, the router's logits included."""
    return nn.Sequential(
        nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, results), nn.Dropout(dropout)
    )


class MoMKE(ExpertMethod):
    """Experts, routers, the experts' own heads (stage 1) and the joint head (stage 2)."""

    def __init__(self, spec: ModelSpec, model: ModelSettings, momke: MoMKESettings) -> None:
        super().__init__(spec, model)
        unknown = [m for m in momke.fixed_pattern if m not in spec.modalities]
        if unknown:
            raise UserError(
                f"compared.momke.fixed_pattern names {unknown}; the modalities are {list(spec.modalities)}."
            )
        count, width, results = len(spec.modalities), model.width, outputs(spec.label)
        self.settings = momke
        self.warmup_epochs = momke.expert_epochs
        self.dropout = nn.Dropout(model.dropout)
        self.experts = nn.ModuleDict({m: Expert(model, momke.norm) for m in spec.modalities})
        self.routers = nn.ModuleDict({m: router_mlp(width, count, model.dropout) for m in spec.modalities})
        self.expert_heads = nn.ModuleDict({m: nn.Linear(width, results) for m in spec.modalities})
        self.joint = nn.Sequential(nn.Linear(count * width, count * width), nn.ReLU(), nn.Dropout(model.dropout))
        self.head = nn.Linear(count * width, results)

    def predict(self, tokens: Tokens, observed: Tensor) -> Tensor:
        """Logits of the joint head; [B, C]."""
        return self.mix(tokens, observed)[0]

    def learn(self, tokens: Tokens, natural: Tensor, labels: Tensor, generator: torch.Generator | None) -> Output:
        """Stage 1 on all that a sample has; stage 2 on a drawn subset, or on one fixed pattern."""
        if self.warming_up:
            alone = self.alone(tokens, natural)
            loss = self.unimodal_loss(alone, natural, labels)  # L1 = sum_m l(o_m, y)
            return Output(alone.sum(1), {"loss": loss, "experts": loss})
        observed, known = self.simulate(natural, generator)
        logits, alone = self.mix(tokens, observed, natural if self.settings.expert_loss else observed)
        task = task_loss(logits, labels_of(known, labels), self.spec.label)  # L2 = l(joint head(J), y)
        losses = {"loss": task, "task": task}
        if self.settings.expert_loss:
            losses["experts"] = self.unimodal_loss(alone, natural, labels)
            losses["loss"] = task + self.settings.expert_loss * losses["experts"]
        return Output(logits, losses, {"observed": observed})

    def simulate(self, natural: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Return what stage 2 sees, bool [B, M], and which samples it learns from, bool [B]."""
        if not self.settings.fixed_pattern:
            return draw_kept(natural, "sample", generator), torch.ones_like(natural[:, 0])
        pattern = torch.tensor([m in self.settings.fixed_pattern for m in self.spec.modalities])
        kept = natural & pattern.to(natural.device)
        known = kept.any(-1)
        return torch.where(known[:, None], kept, natural), known

    def alone(self, tokens: Tokens, observed: Tensor) -> Tensor:
        """o_m = head_m(E_m(z_m)); [B, M, C]."""

        def run(name: str, values: Tensor, valid: Tensor) -> Tensor:
            hidden = self.experts[name](self.dropout(values), valid)
            logits: Tensor = self.expert_heads[name](masked_mean(hidden, valid))
            return logits

        return self.per_modality(run, tokens, observed)

    def mix(self, tokens: Tokens, observed: Tensor, encoded: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the joint head's logits [B, C] and the experts' own [B, M, C].

        Args:
            tokens: z_m.
            observed: bool [B, M], what enters J.
            encoded: bool [B, M], what the experts run on; a superset of `observed`, which is the default.
        """
        seen = observed if encoded is None else encoded
        values = {m: self.dropout(value) for m, value in tokens.values.items()}
        rows, valid = self.stack(values)[seen], self.stack(tokens.valid)[seen]  # [R, L, D], [R, L]
        column = seen.nonzero()[:, 1]
        hidden = torch.stack([self.experts[m](rows, valid) for m in self.spec.modalities], dim=1)  # [R, K, L, D]
        shares = self.route(values, tokens.valid)[seen]  # [R, L or 1, K]
        mixture = (hidden * shares.transpose(1, 2)[..., None]).sum(1)  # R_m = sum_k s_mk E_k(z_m)
        pooled = rows.new_zeros(*observed.shape, rows.shape[-1]).to(mixture.dtype)
        pooled[seen] = masked_mean(mixture, valid)
        flat = (pooled * observed[..., None]).flatten(1)  # R_m = 0 where m is missing
        logits: Tensor = self.head(flat + self.joint(flat))  # u = J + Drop(ReLU(W J + b))
        return logits, self._own(hidden[torch.arange(len(rows)), column], valid, seen)

    def route(self, values: dict[str, Tensor], valid: dict[str, Tensor]) -> Tensor:
        """s_m, softmax over the experts; [B, M, L, K] a token, or [B, M, 1, K] a sample."""
        if self.settings.router_level == "token":
            return self.stack({m: self.routers[m](values[m]).softmax(-1) for m in values})
        pooled = {m: masked_mean(values[m], valid[m])[:, None] for m in values}
        return self.stack({m: self.routers[m](pooled[m]).softmax(-1) for m in pooled})

    def _own(self, hidden: Tensor, valid: Tensor, seen: Tensor) -> Tensor:
        pooled = hidden.new_zeros(*seen.shape, hidden.shape[-1])
        pooled[seen] = masked_mean(hidden, valid)
        heads = [cast(nn.Linear, self.expert_heads[m])(pooled[:, i]) for i, m in enumerate(self.spec.modalities)]
        return torch.stack(heads, dim=1)
