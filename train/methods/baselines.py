"""Zero-fill, random-fill and modality dropout: what SelfMask must beat.

Zero-fill and random-fill train on the natural missingness and put zeros or noise where a modality is absent.
Modality dropout draws missingness in training as SelfMask does and lets the fusion attend to observed tokens only;
it is simple and strong.
"""

from abc import abstractmethod

import torch
from torch import Tensor

from cache.bank import TokenBatch
from extract.ranks import draw_rows
from extract.task import outputs, task_loss
from train.config import ModelSettings
from train.methods.base import Method, ModelSpec, Output, Tokens
from train.missing import draw_kept
from train.transformer import Fusion


class Baseline(Method):
    """Projection and fusion only; subclasses say what stands for a missing modality."""

    shares_batches = True

    def __init__(self, spec: ModelSpec, model: ModelSettings) -> None:
        super().__init__(spec, model)
        self.fusion = Fusion(model, outputs(spec.label))

    def forward(self, batch: TokenBatch, generator: torch.Generator | None = None) -> Output:
        """Predict; in training mode also the task loss."""
        if not self.training or batch.labels is None:
            return Output(self.predict(self.project(batch), batch.observed, generator))
        observed = self.simulate(batch.observed, generator)
        logits = self.predict(self.project(batch), observed, generator)
        loss = task_loss(logits, batch.labels, self.spec.label)
        return Output(logits, {"loss": loss}, labelled={"loss": 1.0})

    def simulate(self, observed: Tensor, generator: torch.Generator | None) -> Tensor:
        """Training missingness: the natural one."""
        return observed

    @abstractmethod
    def predict(self, tokens: Tokens, observed: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return logits [B, C]."""

    def fuse_filled(self, tokens: Tokens, observed: Tensor, fill: dict[str, Tensor]) -> Tensor:
        """Fuse with `fill` in the place of what is missing."""
        values = self.choose(observed, tokens.values, fill)
        valid = self.input_valid(tokens.valid, observed)
        logits: Tensor = self.fusion(self.concatenate(values), self.concatenate(valid))
        return logits


class ZeroFill(Baseline):
    """Zeros in the place of missing tokens."""

    def predict(self, tokens: Tokens, observed: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return logits [B, C]."""
        fill = {m: torch.zeros_like(value) for m, value in tokens.values.items()}
        return self.fuse_filled(tokens, observed, fill)


class RandomFill(Baseline):
    """Standard normal noise in the place of missing tokens; one stored draw in evaluation, so that it repeats."""

    def __init__(self, spec: ModelSpec, model: ModelSettings) -> None:
        super().__init__(spec, model)
        for name, length in spec.missing_lengths.items():
            self.register_buffer(f"noise_{name}", torch.randn(length, model.width))

    def predict(self, tokens: Tokens, observed: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return logits [B, C]."""
        fill = {m: self._noise(m, value, generator) for m, value in tokens.values.items()}
        return self.fuse_filled(tokens, observed, fill)

    def _noise(self, name: str, like: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.training:
            return draw_rows(torch.randn, like.shape, generator).to(like)
        stored: Tensor = getattr(self, f"noise_{name}")
        filled = torch.zeros_like(like)
        filled[:, : len(stored)] = stored
        return filled


class ModalityDropout(Baseline):
    """Random subsets in training; fusion masks out what is missing."""

    def simulate(self, observed: Tensor, generator: torch.Generator | None) -> Tensor:
        """Training missingness: a non-empty subset per sample."""
        return draw_kept(observed, "sample", generator)

    def predict(self, tokens: Tokens, observed: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return logits [B, C]."""
        zeros = {m: torch.zeros_like(value) for m, value in tokens.values.items()}
        values = self.choose(observed, tokens.values, zeros)
        valid = {m: tokens.valid[m] & observed[:, i, None] for i, m in enumerate(self.spec.modalities)}
        logits: Tensor = self.fusion(self.concatenate(values), self.concatenate(valid))
        return logits
