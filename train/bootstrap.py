"""Paired bootstrap over the test split's groups (patients, videos): intervals for the difference of two methods.

A resample is a vector of counts, so that every metric becomes a weighted one and all draws are computed at once:
sorting once per (method, seed), then sums of products. Groups are drawn whole, since their samples are not
independent. The same resamples serve both methods. Memory is bounded by handling the draws in blocks; time is
O(draws x samples) per metric.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from extract.metrics import sample_losses
from extract.task import LabelSpec

Array = np.ndarray
BLOCK = 4_000_000
"""Elements of a block of counts [draws, samples]."""
ONE = LabelSpec(kind="binary", names=("label",))


def resample_counts(groups: Array, draws: int, seed: int) -> Iterator[Array]:
    """Yield blocks of float64 [d, N]: how often each sample is drawn when G groups are drawn G times, with replacement.

    Args:
        groups: group of each sample, [N]; anything that `numpy.unique` sorts.
        draws: resamples in all.
        seed: of the draws.
    """
    names, member = np.unique(groups, return_inverse=True)
    generator, count = np.random.default_rng(seed), len(names)
    step = max(1, BLOCK // max(len(member), 1))
    for start in range(0, draws, step):
        size = min(step, draws - start)
        drawn = generator.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        of_group = np.bincount(drawn.reshape(-1), minlength=size * count).reshape(size, count)
        yield of_group[:, member].astype(np.float64)


def weighted_auroc(scores: Array, truth: Array, weights: Array) -> Array:
    """Area under the ROC curve of each weighting, ties counted half; [D], NaN where a class is absent.

    Args:
        scores: [N].
        truth: 0 or 1, [N].
        weights: [D, N].
    """
    positive, negative = _grouped(scores, truth, weights)
    below = np.cumsum(negative, axis=-1) - negative
    pairs = positive.sum(-1) * negative.sum(-1)
    return _divide((positive * (below + 0.5 * negative)).sum(-1), pairs)


def weighted_auprc(scores: Array, truth: Array, weights: Array) -> Array:
    """Average precision of each weighting; [D], NaN where no positive is drawn."""
    positive, negative = (values[:, ::-1] for values in _grouped(scores, truth, weights))
    hits = np.cumsum(positive, axis=-1)
    seen = hits + np.cumsum(negative, axis=-1)
    precision = np.divide(hits, seen, out=np.zeros_like(hits), where=seen > 0)
    return _divide((positive * precision).sum(-1), positive.sum(-1))


def weighted_metrics(probabilities: Array, labels: Array, weights: Array, spec: LabelSpec) -> dict[str, Array]:
    """Return, per metric, its value [D] under each weighting; definitions as in `extract.metrics`.

    Args:
        probabilities: [N, C].
        labels: [N] or [N, L]; NaN marks an absent label.
        weights: counts [D, N].
        spec: the label.
    """
    if spec.kind == "multilabel":
        columns = [_binary(probabilities[:, i], labels[:, i], weights) for i in range(len(spec.names))]
        return {key: _mean([column[key] for column in columns]) for key in columns[0]}
    compute: dict[str, Callable[[], dict[str, Array]]] = {
        "binary": lambda: _binary(probabilities[:, 0], labels, weights),
        "multiclass": lambda: _multiclass(probabilities, labels, weights, spec),
        "regression": lambda: _regression(probabilities[:, 0], labels, weights),
    }
    return compute[spec.kind]()


def resample_metrics(
    predictions: Sequence[Array], labels: Array, spec: LabelSpec, groups: Array, draws: int, seed: int
) -> dict[str, Array]:
    """Return, per metric, its mean over the training seeds, [1 + draws]: on the test set itself, then each resample.

    Equal groups and seed give equal resamples, so that the values of several methods, each computed once, can be
    compared in pairs.

    Args:
        predictions: probabilities [N, C] of each training seed.
        labels: [N] or [N, L].
        spec: the label.
        groups: what is resampled, [N]: the samples of one group are drawn together.
        draws: resamples.
        seed: of the resamples.
    """
    blocks = itertools.chain([np.ones((1, len(labels)))], resample_counts(groups, draws, seed))
    values = [_seed_mean(predictions, labels, counts, spec) for counts in blocks]
    return {name: np.concatenate([block[name] for block in values]) for name in values[0]}


def intervals(first: dict[str, Array], second: dict[str, Array]) -> dict[str, dict[str, Any]]:
    """Compare two `resample_metrics` of the same groups and seed: per metric, first minus second.

    Returns:
        `difference` on the test set itself, `low` and `high` (2.5 and 97.5 percentiles), two-sided `p` and the
        number of `draws` that define the metric. Metrics that the labels do not define are left out.
    """
    result = {}
    for name in first:
        point, *values = first[name] - second[name]
        drawn = np.asarray(values)[np.isfinite(values)]
        if np.isfinite(point) and len(drawn):
            result[name] = _interval(float(point), drawn)
    return result


def _interval(point: float, values: Array) -> dict[str, Any]:
    low, high = np.percentile(values, [2.5, 97.5])
    tail = min(int((values <= 0).sum()), int((values >= 0).sum()))
    p = min(1.0, 2 * (tail + 1) / (len(values) + 1))  # + 1: the test set itself is a draw; p is never zero
    return {"difference": point, "low": float(low), "high": float(high), "p": p, "draws": len(values)}


def _seed_mean(predictions: Sequence[Array], labels: Array, weights: Array, spec: LabelSpec) -> dict[str, Array]:
    metrics = [weighted_metrics(p, labels, weights, spec) for p in predictions]
    return {name: _mean([m[name] for m in metrics]) for name in metrics[0]}


def _binary(scores: Array, labels: Array, weights: Array) -> dict[str, Array]:
    known = np.isfinite(labels)
    p, truth, w = scores[known], labels[known], weights[:, known]
    return {
        "auroc": weighted_auroc(p, truth, w),
        "auprc": weighted_auprc(p, truth, w),
        "accuracy": _average((p >= 0.5) == (truth == 1), w),
        "nll": _average(sample_losses(p[:, None], truth, ONE), w),
    }


def _multiclass(probabilities: Array, labels: Array, weights: Array, spec: LabelSpec) -> dict[str, Array]:
    known = np.isfinite(labels)
    p, truth, w = probabilities[known], labels[known].astype(int), weights[:, known]
    areas = [weighted_auroc(p[:, c], (truth == c).astype(float), w) for c in range(p.shape[1])]
    return {
        "auroc": np.mean(areas, axis=0),  # NaN unless every class is drawn, as in the plain metric
        "accuracy": _average(p.argmax(-1) == truth, w),
        "nll": _average(sample_losses(p, truth, spec), w),
    }


def _regression(values: Array, labels: Array, weights: Array) -> dict[str, Array]:
    known = np.isfinite(labels)
    v, truth, w = values[known], labels[known], weights[:, known]
    mean_v, mean_t = _average(v, w), _average(truth, w)
    shared = _average(v * truth, w) - mean_v * mean_t
    spread = (_average(v**2, w) - mean_v**2) * (_average(truth**2, w) - mean_t**2)
    return {
        "mae": _average(np.abs(v - truth), w),
        "binary_accuracy": _average((v > 0) == (truth > 0), w),
        "pearson": _divide(shared, np.sqrt(np.maximum(spread, 0))),
    }


def _grouped(scores: Array, truth: Array, weights: Array) -> tuple[Array, Array]:
    """Weight of positives and negatives at each distinct score, ascending; [D, G] each."""
    order = np.argsort(scores, kind="stable")
    if not len(order):
        return np.zeros((len(weights), 1)), np.zeros((len(weights), 1))
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) > 0])
    ordered, positive = weights[:, order], truth[order] == 1
    return (
        np.add.reduceat(ordered * positive, starts, axis=-1),
        np.add.reduceat(ordered * ~positive, starts, axis=-1),
    )


def _average(values: Array, weights: Array) -> Array:
    return _divide(weights @ values.astype(np.float64), weights.sum(-1))


def _divide(top: Array, bottom: Array) -> Array:
    result: Array = np.divide(top, bottom, out=np.full_like(top, np.nan), where=bottom > 0)
    return result


def _mean(values: Sequence[Array]) -> Array:
    """Mean over the first axis of what is defined; NaN where nothing is."""
    stacked = np.stack(values)
    defined = np.isfinite(stacked)
    return _divide(np.where(defined, stacked, 0.0).sum(0), defined.sum(0).astype(np.float64))
