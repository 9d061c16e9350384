"""SelfMask: cross-modal self-masking (the paper's Algorithm 1, eq. 2-10).

Symbols: Z^(m) projected tokens; V^(m) placeholder of a masked token; t^(m) missing token, E^(m) modality embedding;
g predictor, g_bar its moving average; h mask predictor; f fusion; M mask. What the paper leaves open is a field of
`SelfMaskSettings`. The same algorithm serves the cached stage and the joint stage: a `TokenSource` says what Z is
and what masking an input does to it (eq. 5).

Cost of a training step: one forward of g_bar, one of h, two of g and one of f; `task_from: unmasked` adds one of g,
`complete_task` or `distill` one of g and one of f. `adversarial` is free with `task_from: unmasked`, where the masks
reach the reconstruction losses alone; else it adds a backward of these losses to the scores.
"""

from dataclasses import dataclass
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cache.bank import TokenBatch
from extract.ranks import draw_rows
from extract.task import outputs, task_loss
from train.config import ModelSettings, SelfMaskSettings
from train.ema import MovingAverage
from train.losses import distillation_loss, mean_over_observed, reconstruction_loss
from train.masks import straight_through, top_k_mask
from train.methods.base import Method, ModelSpec, Output, Tokens
from train.methods.experts import ExpertMixture
from train.missing import draw_kept
from train.transformer import Fusion, TokenTransformer

PerModality = dict[str, Tensor]


class TokenSource(Protocol):
    """Where Z and its masked version come from."""

    @property
    def tokens(self) -> Tokens:
        """Z^(m), unmasked."""

    def masked(self, modality: str, mask: Tensor) -> Tensor:
        """Return the Z~^(m) of eq. 5 for a float mask [B, L_m]; differentiable in the mask."""


@dataclass(frozen=True)
class CachedSource:
    """Cached stage: the mask mixes V^(m) into the tokens themselves, Z~ = Z (1 - M) + V M."""

    tokens: Tokens
    placeholders: nn.ParameterDict

    def masked(self, modality: str, mask: Tensor) -> Tensor:
        """Return Z~^(m) [B, L_m, D]."""
        weight = mask[:, :, None]
        masked: Tensor = self.tokens.values[modality] * (1 - weight) + self.placeholders[modality] * weight
        return masked


class SelfMask(Method):
    """Predictor g, its average, mask predictor h, fusion f, and the learned vectors t, E and V."""

    shares_batches = True

    def __init__(self, spec: ModelSpec, model: ModelSettings, selfmask: SelfMaskSettings) -> None:
        super().__init__(spec, model)
        self.fusion = Fusion(model, outputs(spec.label))
        self.mixture = ExpertMixture(spec, model) if selfmask.experts == "observed" else None
        self.settings = selfmask
        self.g = TokenTransformer(model, model.predictor_layers)
        self.g_bar = MovingAverage(self.g, selfmask.tau)
        self.h = TokenTransformer(model, model.predictor_layers)
        self.score = nn.Linear(model.width, 1)
        self.missing_token = self._vectors()  # t^(m)
        self.modality_embedding = self._vectors()  # E^(m)
        self.placeholder = self._vectors()  # V^(m)
        self.position = nn.ParameterDict()
        if selfmask.positions == "learned":
            rows = {m: max(spec.max_lengths[m], spec.missing_lengths[m]) for m in spec.modalities}
            self.position.update({m: nn.Parameter(torch.randn(n, model.width) * 0.02) for m, n in rows.items()})

    def _vectors(self) -> nn.ParameterDict:
        width = self.model_settings.width
        return nn.ParameterDict({m: nn.Parameter(torch.randn(width) * 0.02) for m in self.spec.modalities})

    def forward(self, batch: TokenBatch, generator: torch.Generator | None = None) -> Output:
        """One step of Algorithm 1 in training mode, else a prediction from `batch.observed`."""
        source = CachedSource(self.project(batch), self.placeholder)
        if not self.training or batch.labels is None:
            return Output(self.predict(source.tokens, batch.observed))
        return self.learn(source, batch.observed, batch.labels, generator)

    def after_step(self) -> None:
        """phi_bar <- tau phi_bar + (1 - tau) phi (Algorithm 1, last line)."""
        self.g_bar.update(self.g)

    def predict(self, tokens: Tokens, observed: Tensor) -> Tensor:
        """Inference: nothing masked, missing tokens imputed; logits [B, C]."""
        imputed = self.fill_in(self.g, tokens.values, tokens, observed)
        return self.fuse(tokens, imputed, observed)

    def learn(self, source: TokenSource, natural: Tensor, labels: Tensor, generator: torch.Generator | None) -> Output:
        """Algorithm 1 for one batch: draw, score, mask, predict, and the losses of eq. 6, 8, 9 and 10."""
        s, tokens, label = self.settings, source.tokens, self.spec.label
        observed = draw_kept(natural, s.draw_per, generator)  # line 2
        scores = self.scores(tokens, observed, generator)  # eq. 3-4
        hard_obs = self.masks(scores, tokens, s.ratio_observed)  # eq. 4
        hard_cross = self.masks(scores, tokens, s.ratio_cross)
        masked = self.mask_inputs(source, hard_obs, scores)  # eq. 5
        predicted = self.fill_in(self.g, masked, tokens, observed)  # eq. 2
        l_obs = self.reconstruction(predicted, tokens, hard_obs, observed)  # eq. 6
        masked_cross = self.mask_inputs(source, hard_cross, scores)
        cross = self.fill_in(self.g, masked_cross, tokens, observed, imputed=predicted)  # eq. 7
        l_cross = self.reconstruction(cross, tokens, hard_cross, observed)  # eq. 8
        if s.task_from == "unmasked":
            predicted = self.fill_in(self.g, tokens.values, tokens, observed)
        logits = self.fuse(tokens, predicted, observed)
        losses = {"task": task_loss(logits, labels, label), "obs": l_obs, "cross": l_cross}  # eq. 9
        reconstruction = s.alpha * l_obs + s.beta * l_cross
        loss = losses["task"] + reconstruction  # eq. 10
        if self._adversarial and s.task_from == "masked":
            loss = loss + self._turned_against(reconstruction, scores)
        if s.complete_task or s.distill:
            loss = loss + self._complete(tokens, natural, labels, logits, losses)
        spread = {f"target_sd/{m}": self._spread(tokens, natural, m) for m in self.spec.modalities}
        labelled = {"task": 1.0, **({"complete": s.complete_task} if "complete" in losses else {})}
        return Output(logits, {"loss": loss, **losses, **spread}, {"masks": hard_obs, "observed": observed}, labelled)

    @property
    def _adversarial(self) -> bool:
        return self.settings.mask_gradient == "adversarial" and self.settings.mask_policy == "learned"

    def _complete(self, tokens: Tokens, natural: Tensor, labels: Tensor, logits: Tensor, losses: PerModality) -> Tensor:
        complete = self.predict(tokens, natural)
        losses["complete"] = task_loss(complete, labels, self.spec.label)
        losses["distill"] = distillation_loss(logits, complete, self.spec.label)
        return self.settings.complete_task * losses["complete"] + self.settings.distill * losses["distill"]

    def scores(self, tokens: Tokens, observed: Tensor, generator: torch.Generator | None = None) -> PerModality:
        """sigma = h(g_bar(...)) (eq. 3-4) or the scores of another mask policy; dict of [B, L_m]."""
        if self.settings.mask_policy == "random":
            return {
                m: draw_rows(torch.rand, valid.shape, generator).to(valid.device) for m, valid in tokens.valid.items()
            }
        sequence, valid = self.assemble(tokens.values, tokens, observed)
        sequence = sequence.detach()
        if self.settings.mask_policy == "attention":
            average = cast(TokenTransformer, self.g_bar.average)
            flat = average.attention_received(sequence, valid)
        else:
            with torch.no_grad():
                context = self.g_bar.average(sequence, valid)
            flat = self.score(self.h(context, valid)).squeeze(-1)
        return self.split(flat, tokens.valid)

    def masks(self, scores: PerModality, tokens: Tokens, ratio: float) -> PerModality:
        """Hard masks of eq. 4; dict of bool [B, L_m]."""
        return {m: top_k_mask(scores[m], tokens.valid[m], tokens.maskable[m], ratio) for m in scores}

    def mask_inputs(self, source: TokenSource, hard: PerModality, scores: PerModality) -> PerModality:
        """Z~ of eq. 5 for every modality."""
        learned = self.settings.mask_policy == "learned" and self.settings.mask_gradient != "none"
        reverse = self._adversarial and self.settings.task_from == "unmasked"
        soft = {
            m: straight_through(hard[m], scores[m], reverse=reverse) if learned else hard[m].to(scores[m]) for m in hard
        }
        return {m: source.masked(m, soft[m]) for m in hard}

    def assemble(
        self, values: PerModality, tokens: Tokens, observed: Tensor, imputed: PerModality | None = None
    ) -> tuple[Tensor, Tensor]:
        """concat(Z + E observed, T + E missing) of eq. 2, 3 and 7; [B, L, D] and bool [B, L].

        Args:
            values: what stands for observed modalities.
            tokens: gives the valid tokens.
            observed: bool [B, M].
            imputed: what stands for missing modalities; t^(m) replicated by default.
        """
        absent = imputed or {m: self.missing_token[m].expand_as(values[m]) for m in values}
        chosen = self.choose(observed, values, absent)
        placed = {m: chosen[m] + self.modality_embedding[m] + self._position(m, chosen[m]) for m in chosen}
        valid = self.input_valid(tokens.valid, observed)
        return self.concatenate(placed), self.concatenate(valid)

    def fill_in(
        self,
        predictor: nn.Module,
        values: PerModality,
        tokens: Tokens,
        observed: Tensor,
        imputed: PerModality | None = None,
    ) -> PerModality:
        """Z^ = g(concat(...)) for all modalities (eq. 2; eq. 7 when `imputed` is given); dict of [B, L_m, D]."""
        sequence, valid = self.assemble(values, tokens, observed, imputed)
        return self.split(predictor(sequence, valid), values)

    def reconstruction(self, predicted: PerModality, tokens: Tokens, masks: PerModality, observed: Tensor) -> Tensor:
        """Eq. 6 and eq. 8: mean over the observed modalities of 1/K |(Z^ - Z) M|_F^2."""
        columns = []
        for column, name in enumerate(self.spec.modalities):
            target = tokens.values[name] if self.settings.target_grad else tokens.values[name].detach()
            guess = predicted[name]
            if self.settings.target_norm == "layer":
                target, guess = F.layer_norm(target, target.shape[-1:]), F.layer_norm(guess, guess.shape[-1:])
            columns.append(
                reconstruction_loss(guess, target, masks[name], observed[:, column], self.settings.reconstruction)
            )
        return mean_over_observed(torch.stack(columns, dim=-1), observed)

    def fuse(self, tokens: Tokens, imputed: PerModality, observed: Tensor) -> Tensor:
        """y^ = f(concat(Z observed and unmasked, Z^ missing)) (eq. 9); logits [B, C]."""
        values = self.choose(observed, tokens.values, imputed)
        if self.settings.fusion_sees_imputed:
            valid = self.input_valid(tokens.valid, observed)
        else:
            valid = {m: tokens.valid[m] & observed[:, i, None] for i, m in enumerate(self.spec.modalities)}
        logits: Tensor = self.fusion(self.concatenate(values), self.concatenate(valid))
        return logits if self.mixture is None else self.mixture(logits, tokens.values, tokens.valid, observed)

    def _position(self, name: str, like: Tensor) -> Tensor:
        if name not in self.position:
            return like.new_zeros(1, 1, 1)
        table: Tensor = self.position[name]
        place = torch.arange(like.shape[1], device=like.device).clamp(max=len(table) - 1)
        return table[place][None]

    def _turned_against(self, reconstruction: Tensor, scores: PerModality) -> Tensor:
        """Return a zero-valued term that turns the gradient of the reconstruction losses to the scores around."""
        values = [scores[m] for m in self.spec.modalities]
        gradients = torch.autograd.grad(reconstruction, values, retain_graph=True)
        term = sum((2 * g * (v.detach() - v)).sum() for g, v in zip(gradients, values, strict=True))
        return torch.as_tensor(term)

    def _spread(self, tokens: Tokens, observed: Tensor, name: str) -> Tensor:
        """Standard deviation of the targets over tokens, mean over features: near zero means a collapse."""
        column = self.spec.modalities.index(name)
        rows = tokens.valid[name] & observed[:, column, None]
        chosen = tokens.values[name].detach()[rows]
        return chosen.std(0).mean() if len(chosen) > 1 else chosen.new_zeros(())
