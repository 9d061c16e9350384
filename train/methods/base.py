"""What every method shares: its contract, the projections to the shared width, and sequence assembly.

A method is built from a `ModelSpec` that comes from the training split alone. What is missing is read from the
observed mask only: the tokens of a missing modality never enter, and its length is the fixed T^(m).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from cache.bank import TokenBatch
from extract.task import LabelSpec
from train.config import ModelSettings


class ModelSpec(BaseModel):
    """Shapes that a method is built for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    modalities: tuple[str, ...]
    widths: dict[str, int]
    """Native token width of each modality's cache."""
    missing_lengths: dict[str, int]
    """T^(m): tokens that stand for a missing modality."""
    max_lengths: dict[str, int]
    """Longest training sequence; the size of learned position tables."""
    label: LabelSpec


@dataclass(frozen=True)
class Output:
    """Logits [B, C]; in training the losses, `loss` being their total; and what a picture or metric may want."""

    logits: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    extras: dict[str, Any] = field(default_factory=dict)
    labelled: dict[str, float] = field(default_factory=dict)
    """Weight in `loss` of each loss that is a mean over labelled entries; the others are means over samples."""


@dataclass(frozen=True)
class Tokens:
    """Projected tokens of all modalities, padded to at least T^(m): dicts of [B, L_m, D] and bool [B, L_m]."""

    values: dict[str, Tensor]
    valid: dict[str, Tensor]
    maskable: dict[str, Tensor]


class Projections(nn.Module):
    """P_m: native cached tokens to the shared width, Z^(m) = LayerNorm(W C^(m) + b)."""

    def __init__(self, spec: ModelSpec, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.maps = nn.ModuleDict(
            {m: nn.Sequential(nn.Linear(spec.widths[m], width), nn.LayerNorm(width)) for m in spec.modalities}
        )

    def forward(self, batch: TokenBatch) -> Tokens:
        """Project and pad every modality of the batch."""
        return Tokens(
            values={m: self.project(m, batch.tokens[m]) for m in self.spec.modalities},
            valid={m: self.pad(m, batch.valid[m]) for m in self.spec.modalities},
            maskable={m: self.pad(m, batch.maskable[m]) for m in self.spec.modalities},
        )

    def project(self, modality: str, tokens: Tensor) -> Tensor:
        """Native [B, T, width_m] to padded [B, L_m, D]."""
        return self.pad(modality, self.maps[modality](tokens))

    def pad(self, modality: str, values: Tensor) -> Tensor:
        """Pad the token axis (1) with zeros to at least T^(m)."""
        short = max(0, self.spec.missing_lengths[modality] - values.shape[1])
        return F.pad(values, (0, 0) * (values.dim() - 2) + (0, short)) if short else values


class Method(nn.Module, ABC):
    """One way to predict from any subset of modalities."""

    warmup_epochs: int = 0
    """Epochs in which parts are trained alone; the loop selects none of them."""
    warming_up: bool = False
    shares_batches: bool = False
    """Whether the losses of a batch's parts add up to the batch's, so that several ranks can train it."""

    def __init__(self, spec: ModelSpec, model: ModelSettings) -> None:
        super().__init__()
        self.spec = spec
        self.model_settings = model
        self.project = Projections(spec, model.width)

    @abstractmethod
    def forward(self, batch: TokenBatch, generator: torch.Generator | None = None) -> Output:
        """Training mode with labels: draw missingness and return losses; else predict from `batch.observed`."""

    def start_epoch(self, epoch: int) -> None:
        """Prepare a training epoch; a function of its number alone, so that a resumed run is exact."""
        self.warming_up = epoch < self.warmup_epochs

    def after_step(self) -> None:
        """Update what moves after the optimiser step."""

    def input_valid(self, valid: Mapping[str, Tensor], observed: Tensor) -> dict[str, Tensor]:
        """Valid tokens, where a missing modality counts its fixed T^(m); dict of bool [B, L_m]."""
        result = {}
        for column, name in enumerate(self.spec.modalities):
            place = torch.arange(valid[name].shape[1], device=observed.device)
            stand_in = (place < self.spec.missing_lengths[name]).expand_as(valid[name])
            result[name] = torch.where(observed[:, column, None], valid[name], stand_in)
        return result

    def choose(
        self, observed: Tensor, present: Mapping[str, Tensor], absent: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Per sample and modality `present` where observed, else `absent`; dict of [B, L_m, D]."""
        return {
            m: torch.where(observed[:, i, None, None], present[m], absent[m])
            for i, m in enumerate(self.spec.modalities)
        }

    def concatenate(self, per_modality: Mapping[str, Tensor]) -> Tensor:
        """Concatenate along the token axis in the order of the modalities."""
        return torch.cat([per_modality[m] for m in self.spec.modalities], dim=1)

    def split(self, sequence: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Undo `concatenate`."""
        sizes = [like[m].shape[1] for m in self.spec.modalities]
        return dict(zip(self.spec.modalities, sequence.split(sizes, dim=1), strict=True))


def labels_of(rows: Tensor, labels: Tensor) -> Tensor:
    """Return labels [B] or [B, L] with NaN, which is no label, outside of `rows`, bool [B]."""
    chosen = rows.reshape(-1, *[1] * (labels.dim() - 1))
    return torch.where(chosen, labels, torch.full_like(labels, torch.nan))
