"""Evaluation metrics by scikit-learn and SciPy; thresholds are fixed (0.5, argmax), never tuned on test.

A metric that a split cannot define (one class only) is left out of the result, never reported as zero.
"""

from collections.abc import Callable

import numpy as np
from scipy.stats import pearsonr
from sklearn import metrics as sk

from extract.task import LabelKind, LabelSpec

Array = np.ndarray
CALIBRATION_BINS = 15
TINY = 1e-15
MONITOR: dict[LabelKind, str] = {
    "binary": "auroc",
    "multilabel": "auroc",
    "multiclass": "accuracy",
    "regression": "neg_mae",
}


def monitor_name(spec: LabelSpec) -> str:
    """Return the metric on which epochs are selected; larger is better."""
    return MONITOR[spec.kind]


def compute_metrics(probabilities: Array, labels: Array, spec: LabelSpec) -> dict[str, float]:
    """Return every metric that is defined for these labels.

    Args:
        probabilities: [N, C], as `extract.task.probabilities` gives them.
        labels: [N] or [N, L]; NaN marks an absent label.
        spec: the label.
    """
    compute: dict[LabelKind, Callable[[Array, Array, LabelSpec], dict[str, float]]] = {
        "binary": _binary,
        "multiclass": _multiclass,
        "multilabel": _multilabel,
        "regression": _regression,
    }
    return compute[spec.kind](np.asarray(probabilities, np.float64), np.asarray(labels), spec)


def sample_losses(probabilities: Array, labels: Array, spec: LabelSpec) -> Array:
    """Return the task loss of each sample, float64 [N]: negative log likelihood, or squared error; NaN without label.

    Args:
        probabilities: [N, C], as `extract.task.probabilities` gives them.
        labels: [N] or [N, L]; of several, the mean over those that a sample has.
        spec: the label.
    """
    if spec.kind == "multiclass":
        known = np.isfinite(labels)
        chosen = probabilities[np.arange(len(labels)), np.where(known, labels, 0).astype(int)]
        return np.asarray(np.where(known, -np.log(np.clip(chosen, TINY, 1.0)), np.nan))
    truth = labels.reshape(probabilities.shape)
    if spec.kind == "regression":
        return np.asarray(np.square(probabilities - truth)[:, 0])
    entries = -np.log(np.clip(np.where(truth == 1, probabilities, 1 - probabilities), TINY, 1.0))
    known = np.isfinite(truth)
    count = known.sum(-1)
    total = np.where(known, entries, 0.0).sum(-1)
    result: Array = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
    return result


def expected_calibration_error(confidence: Array, correct: Array) -> float:
    """Return the mean |confidence - accuracy| over equal-width bins, weighted by their share of samples."""
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = [abs(confidence[bins == b].sum() - correct[bins == b].sum()) for b in np.unique(bins)]
    return float(sum(gaps) / max(len(confidence), 1))


def _binary(probabilities: Array, labels: Array, spec: LabelSpec) -> dict[str, float]:
    known = np.isfinite(labels)
    score, truth = probabilities[known, 0], labels[known].astype(int)
    predicted = (score >= 0.5).astype(int)
    result = {
        "accuracy": float((predicted == truth).mean()),
        "f1_weighted": float(sk.f1_score(truth, predicted, average="weighted", zero_division=0)),
        "nll": float(sk.log_loss(truth, score, labels=[0, 1])),
        "ece": expected_calibration_error(score, truth),
    }
    if len(np.unique(truth)) == 2:
        result["auroc"] = float(sk.roc_auc_score(truth, score))
        result["auprc"] = float(sk.average_precision_score(truth, score))
    return result


def _multiclass(probabilities: Array, labels: Array, spec: LabelSpec) -> dict[str, float]:
    known = np.isfinite(labels)
    scores, truth = probabilities[known], labels[known].astype(int)
    scores = scores / scores.sum(-1, keepdims=True)  # a softmax in float32 sums to one up to its rounding alone
    predicted, classes = scores.argmax(-1), np.arange(len(spec.classes))
    result = {
        "accuracy": float((predicted == truth).mean()),
        "f1_weighted": float(sk.f1_score(truth, predicted, average="weighted", zero_division=0)),
        "nll": float(sk.log_loss(truth, scores, labels=classes)),
        "ece": expected_calibration_error(scores.max(-1), predicted == truth),
    }
    if len(np.unique(truth)) == len(classes):
        one_hot = truth[:, None] == classes
        result["auroc"] = float(sk.roc_auc_score(one_hot, scores, average="macro"))
        result["auprc"] = float(sk.average_precision_score(one_hot, scores, average="macro"))
    return result


def _multilabel(probabilities: Array, labels: Array, spec: LabelSpec) -> dict[str, float]:
    one = LabelSpec(kind="binary", names=("label",))
    columns = {name: _binary(probabilities[:, [i]], labels[:, i], one) for i, name in enumerate(spec.names)}
    keys = sorted({key for column in columns.values() for key in column})
    result = {key: float(np.mean([c[key] for c in columns.values() if key in c])) for key in keys}
    for name, column in columns.items():
        result.update({f"{key}/{name}": value for key, value in column.items()})
    return result


def _regression(probabilities: Array, labels: Array, spec: LabelSpec) -> dict[str, float]:
    known = np.isfinite(labels)
    value, truth = probabilities[known, 0], labels[known]
    error = float(np.abs(value - truth).mean())
    result = {"mae": error, "neg_mae": -error, "binary_accuracy": float(((value > 0) == (truth > 0)).mean())}
    if len(value) > 2 and value.std() > 0 and truth.std() > 0:
        result["pearson"] = float(pearsonr(value, truth).statistic)
    return result
