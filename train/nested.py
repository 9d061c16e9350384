"""Counter-intuitive rate: how often a prediction from more modalities is worse than one from fewer.

A pair of a sample is two non-empty sets S < T of modalities that it has, S strictly inside T. The pair is
counter-intuitive if the sample's loss (`extract.metrics.sample_losses`) with T exceeds that with S. The rate is the
share of such pairs, averaged over the samples that have a pair and a label: the chance that more is worse, for a sample
and a pair drawn evenly. Costs one comparison of [N] a pair; M modalities have 3^M - 2^(M+1) + 1 pairs.
"""

from collections.abc import Mapping

import numpy as np

from extract.metrics import sample_losses
from extract.task import LabelSpec

Array = np.ndarray
ROUNDING = 1e-6
"""Losses of float32 predictions that differ by less are equal."""


def counterintuitive_rate(predicted: Mapping[frozenset[str], Array], labels: Array, label: LabelSpec) -> float | None:
    """Return the rate in [0, 1]; None if no labelled sample has two modalities.

    Args:
        predicted: probabilities [N, C] by the set of modalities that is seen; NaN where a sample lacks one of them.
        labels: [N] or [N, L].
        label: what is predicted.
    """
    losses = {seen: sample_losses(p, labels, label) for seen, p in predicted.items()}
    worse, pairs = np.zeros(len(labels)), np.zeros(len(labels))
    for more, high in losses.items():
        for fewer, low in losses.items():
            if fewer < more:
                comparable = np.isfinite(high) & np.isfinite(low)
                pairs += comparable
                worse += comparable & (np.where(comparable, high - low, 0.0) > ROUNDING)
    has_pair = pairs > 0
    return float((worse[has_pair] / pairs[has_pair]).mean()) if has_pair.any() else None
