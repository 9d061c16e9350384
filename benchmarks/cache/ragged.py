"""Ragged tokens of random values, as every form holds them, and the padded minibatch that all end in."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

WIDTH = 768
Array = np.ndarray
Reader = Callable[[Array], Sequence[Array]]


@dataclass(frozen=True)
class Ragged:
    """Tokens float16 [T, WIDTH] of N samples, one after the other."""

    tokens: Array
    offsets: Array

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def sample(self, row: int) -> Array:
        """Return float16 [T_row, WIDTH]."""
        return self.tokens[self.offsets[row] : self.offsets[row + 1]]

    def spans(self, rows: Array) -> list[tuple[int, int]]:
        """Return (first, last + 1) token of each row."""
        return list(zip(self.offsets[rows].tolist(), self.offsets[rows + 1].tolist(), strict=True))


def random_ragged(path: Path, size: int, random: np.random.Generator) -> Ragged:
    """Samples of 20 to 179 tokens, about `size` bytes, mapped from a file that is written at `path`."""
    lengths = random.integers(20, 180, max(300, size // (2 * WIDTH * 100)))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.memmap(path, np.float16, "w+", shape=(int(offsets[-1]), WIDTH))
    block = random.standard_normal((4099, WIDTH)).astype(np.float16)
    for first in range(0, len(tokens), len(block)):
        tokens[first : first + len(block)] = block[: len(tokens) - first]
    tokens.flush()
    return Ragged(np.asarray(tokens), offsets)


def padded(samples: Sequence[Array]) -> torch.Tensor:
    """Collate to float32 [B, T, WIDTH], zero at padding."""
    found = torch.from_numpy(np.empty((len(samples), max(map(len, samples)), WIDTH), np.float32))
    for target, sample in zip(found, samples, strict=True):
        target[: len(sample)].copy_(torch.from_numpy(sample))
        target[len(sample) :].zero_()
    return found
