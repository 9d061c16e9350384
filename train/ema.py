"""Exponential moving average of a module: phi_bar <- tau phi_bar + (1 - tau) phi, no gradient into it."""

import copy

import torch
from torch import nn


class MovingAverage(nn.Module):
    """Holds the averaged copy; it is part of the state that a checkpoint saves."""

    def __init__(self, module: nn.Module, tau: float) -> None:
        super().__init__()
        self.average = copy.deepcopy(module).requires_grad_(False)
        self.tau = tau

    def train(self, mode: bool = True) -> "MovingAverage":
        """Stay in evaluation mode: the average scores without dropout."""
        return super().train(False)

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average one step towards `module` (Algorithm 1, after the optimiser step)."""
        for mean, current in zip(self.average.parameters(), module.parameters(), strict=True):
            mean.data.lerp_(current, 1 - self.tau)
        for kept, value in zip(self.average.buffers(), module.buffers(), strict=True):
            kept.copy_(value)
