"""SMIL (Ma et al., AAAI 2021): a missing modality is a mix of learned priors, and the mix is meta-learned.

Symbols: theta the main network, psi the two auxiliary ones; C_m the dictionary of modality m; h the vectors, u their
concatenation, v the hidden feature. The paper trains encoders, then priors by K-means, then meta-learns. Here one loop
does it all: the dictionary is a moving K-means of the vectors, so that it follows the encoders, and complete rows
have a task loss of their own. The projections of the tokens are no part of the inner step.

Cost of a training step: three forwards of theta and a derivative through one (`order: second` also differentiates
that derivative, in attention without the fused kernel).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from cache.bank import TokenBatch
from extract.task import outputs, task_loss
from train.config import ModelSettings, SmilSettings
from train.methods.base import Method, ModelSpec, Output, Tokens
from train.methods.modality_encoders import ModalityEncoders
from train.missing import draw_proper, simulate

THETA = ("encode.", "hidden.", "head.")


class Features(NamedTuple):
    """Logits [B, C], u [B, M D], v [B, D], and the vectors h [B, M, D] of what was given."""

    logits: Tensor
    u: Tensor
    v: Tensor
    vectors: Tensor


class SmilNetwork(nn.Module):
    """theta (encoders, F1, F2), psi (dictionary weights, R1, R2) and the dictionaries."""

    def __init__(self, spec: ModelSpec, model: ModelSettings, smil: SmilSettings) -> None:
        super().__init__()
        self.settings = smil
        width, count, priors = model.width, len(spec.modalities), smil.priors
        self.encode = ModalityEncoders(spec, model)
        self.hidden = nn.Linear(count * width, width)  # F1
        self.dropout = nn.Dropout(model.dropout)
        self.head = nn.Linear(width, outputs(spec.label))  # F2
        self.weigh = nn.ModuleList([nn.Linear(width, count * priors) for _ in spec.modalities])  # f_phi_c
        self.regularise_u = nn.Linear(width, count * width)  # R1
        self.regularise_v = nn.Linear(count * width, width)  # R2
        self.dictionary: Tensor
        self.filled: Tensor
        self.register_buffer("dictionary", torch.zeros(count, priors, width))  # C
        self.register_buffer("filled", torch.zeros(count, dtype=torch.int64))

    def forward(self, tokens: Tokens, observed: Tensor, noisy: bool, generator: torch.Generator | None) -> Features:
        """Reconstruct what is missing and predict; rows that miss something are regularised, the others are not."""
        vectors, _ = self.encode(tokens, observed)
        made = self.reconstruct(vectors, observed, noisy, generator)
        u = torch.where(observed[:, :, None], vectors, made).flatten(1)
        incomplete = ~observed.all(-1, keepdim=True)
        mean = vectors.sum(1) / observed.sum(-1, keepdim=True)  # vectors are zero where missing
        u = torch.where(incomplete, self._combine(u, self.regularise_u(mean), noisy, generator), u)
        v = F.relu(self.hidden(u))
        v = torch.where(incomplete, self._combine(v, self.regularise_v(u), noisy, generator), v)
        return Features(self.head(self.dropout(v)), u, v, vectors)

    def reconstruct(self, vectors: Tensor, observed: Tensor, noisy: bool, generator: torch.Generator | None) -> Tensor:
        """Mixes of the dictionaries' rows for every modality, from what is observed; [B, M, D]."""
        weight = self._dictionary_weights(self.context(vectors, observed), noisy, generator)
        weight = weight * (torch.arange(weight.shape[-1], device=weight.device) < self.filled[:, None])
        mix = torch.einsum("bmk,mkd->bmd", weight, self.dictionary)
        if self.settings.weights == "gaussian":
            return mix / self.filled.clamp(min=1)[:, None]
        return mix / weight.sum(-1, keepdim=True).clamp(min=1e-6)

    def context(self, vectors: Tensor, observed: Tensor) -> Tensor:
        """g of every modality: mean over the observed j of W_{j to m} h_j; [B, M, K]."""
        maps = torch.stack([weigh(vectors[:, j]) for j, weigh in enumerate(self.weigh)], dim=1)
        mean = (maps * observed[:, :, None]).sum(1) / observed.sum(-1, keepdim=True)
        return mean.view(len(vectors), *self.dictionary.shape[:2])

    def _dictionary_weights(self, context: Tensor, noisy: bool, generator: torch.Generator | None) -> Tensor:
        spread = F.softplus(context)
        if self.settings.weights == "softplus":
            return spread
        return 1 + spread * noise(context, generator) if noisy else torch.ones_like(spread)  # omega ~ N(1, sigma)

    def _combine(self, feature: Tensor, r: Tensor, noisy: bool, generator: torch.Generator | None) -> Tensor:
        scale = F.softplus(r + noise(r, generator) if noisy else r)
        return feature + scale if self.settings.combine == "add" else feature * scale

    @torch.no_grad()
    def update_dictionary(self, vectors: Tensor, observed: Tensor) -> None:
        """One step of a moving K-means: rows fill the dictionary first, then each moves to the mean of its cluster."""
        dictionary, filled = self.dictionary.clone(), self.filled.clone()
        for m in range(len(dictionary)):
            rows, start = vectors[observed[:, m], m].detach(), int(filled[m])
            new = rows[: len(dictionary[m]) - start]
            dictionary[m, start : start + len(new)] = new
            filled[m] += len(new)
            rows = rows[len(new) :]
            if len(rows):
                dictionary[m] = moved(dictionary[m], rows, self.settings.prior_momentum)
        self.dictionary, self.filled = dictionary, filled  # anew: the graph of this step still needs the old ones


class Smil(Method):
    """The meta-learned network."""

    def __init__(self, spec: ModelSpec, model: ModelSettings, smil: SmilSettings) -> None:
        super().__init__(spec, model)
        self.settings = smil
        self.network = SmilNetwork(spec, model, smil)

    def forward(self, batch: TokenBatch, generator: torch.Generator | None = None) -> Output:
        """Predict without noise; in training mode one meta-learning iteration."""
        tokens = self.project(batch)
        if not self.training or batch.labels is None:
            return Output(self.network(tokens, batch.observed, False, generator).logits)
        with differentiable_twice(self.settings.order == "second"):
            return self.learn(tokens, batch.observed, batch.labels, generator)

    def learn(self, tokens: Tokens, natural: Tensor, labels: Tensor, generator: torch.Generator | None) -> Output:
        """L(D^m; theta) + L(D^f; theta*), with theta* one step from theta on L(D^m; theta)."""
        inner, outer = meta_sets(natural)
        kept = self._inner_missingness(natural[inner], generator)
        given = self.network(take(tokens, inner), kept, True, generator)
        losses = {"inner": task_loss(given.logits, labels[inner], self.spec.label)}
        logits = given.logits.new_zeros(len(natural), given.logits.shape[-1]).index_copy(0, inner, given.logits)
        seen, available = given.vectors, kept
        if len(outer):
            theta_star = self.inner_step(losses["inner"])
            clean = self._outer(theta_star, take(tokens, outer), natural[outer], labels[outer], losses, generator)
            logits = logits.index_copy(0, outer, clean.logits)
            seen, available = torch.cat([seen, clean.vectors]), torch.cat([kept, natural[outer]])
        self.network.update_dictionary(seen, available)
        loss = losses["inner"]
        if len(outer):
            loss = loss + losses["outer"] + self.settings.feature * losses["feature"]
            loss = loss + self.settings.clean_task * losses["clean"]
        return Output(logits, {"loss": loss, **losses})

    def inner_step(self, loss: Tensor) -> dict[str, Tensor]:
        """theta* = theta - alpha grad L; parameters that the loss does not reach stay."""
        theta = {name: p for name, p in self.network.named_parameters() if name.startswith(THETA)}
        second = self.settings.order == "second"
        gradients = torch.autograd.grad(
            loss, list(theta.values()), create_graph=second, retain_graph=True, allow_unused=True
        )
        return {
            name: p if g is None else p - self.settings.inner_rate * g
            for (name, p), g in zip(theta.items(), gradients, strict=True)
        }

    def _outer(
        self,
        theta_star: dict[str, Tensor],
        tokens: Tokens,
        natural: Tensor,
        labels: Tensor,
        losses: dict[str, Tensor],
        generator: torch.Generator | None,
    ) -> Features:
        """Add the losses of D^f under theta*: a proper subset reconstructed, against everything the rows have."""
        kept = draw_proper(natural, generator)
        made: Features = functional_call(self.network, theta_star, (tokens, kept, False, generator))
        clean: Features = functional_call(self.network, theta_star, (tokens, natural, False, generator))
        losses["outer"] = task_loss(made.logits, labels, self.spec.label)
        losses["feature"] = F.mse_loss(made.u, clean.u) + F.mse_loss(made.v, clean.v)  # gradient to both sides
        losses["clean"] = task_loss(clean.logits, labels, self.spec.label)
        return clean

    def _inner_missingness(self, natural: Tensor, generator: torch.Generator | None) -> Tensor:
        if natural.all():  # the batch has no incomplete row
            return draw_proper(natural, generator)
        return simulate(natural, self.settings.draw, generator)


def meta_sets(natural: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of D^m and of D^f, int64.

    D^m: the incomplete rows, or all when there is none. D^f: the complete rows, or those with two modalities or more
    when there is none; empty when no row has two.
    """
    several = natural.sum(-1) >= 2
    complete = natural.all(-1)
    inner = torch.ones_like(complete) if bool(complete.all()) else ~complete
    outer = complete & several if bool((complete & several).any()) else several
    return inner.nonzero().flatten(), outer.nonzero().flatten()


def take(tokens: Tokens, rows: Tensor) -> Tokens:
    """Return the given rows of every modality."""
    values, valid, maskable = (
        {m: value[rows] for m, value in part.items()} for part in (tokens.values, tokens.valid, tokens.maskable)
    )
    return Tokens(values, valid, maskable)


def moved(centres: Tensor, rows: Tensor, momentum: float) -> Tensor:
    """Move each centre [K, D] that has rows [N, D] nearest to it towards their mean."""
    member = F.one_hot(torch.cdist(rows, centres).argmin(-1), len(centres)).to(rows.dtype)  # [N, K]
    size = member.sum(0)[:, None]
    means = member.T @ rows / size.clamp(min=1)
    return torch.where(size > 0, momentum * centres + (1 - momentum) * means, centres)


def noise(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers from the CPU generator, on the device of `like`."""
    return torch.randn(like.shape, generator=generator).to(like)


@contextmanager
def differentiable_twice(needed: bool) -> Iterator[None]:
    """Attention by plain products where a second derivative is needed: the fused kernels have none."""
    if not needed:
        yield
        return
    with sdpa_kernel(SDPBackend.MATH):
        yield
