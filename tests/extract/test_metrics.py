"""Metrics against hand-computed values, and what they do with absent labels, one class and float32 rounding."""

import warnings

import numpy as np
import pytest
import torch

from extract.metrics import compute_metrics, expected_calibration_error, sample_losses
from extract.task import LabelSpec

BINARY = LabelSpec(kind="binary", names=("death",))
THREE = LabelSpec(kind="multiclass", names=("digit",), classes=("0", "1", "2"))
TWO = LabelSpec(kind="multilabel", names=("a", "b"))
VALUE = LabelSpec(kind="regression", names=("score",))


def test_binary_metrics_by_hand_and_absent_labels_take_no_part() -> None:
    scores = np.array([[0.9], [0.8], [0.4], [0.3], [0.99]])
    found = compute_metrics(scores, np.array([1.0, 0.0, 1.0, 0.0, np.nan]), BINARY)
    assert found["auroc"] == pytest.approx(3 / 4)  # of the four pairs, 0.4 loses against 0.8
    assert found["auprc"] == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert found["accuracy"] == pytest.approx(2 / 4)
    assert found["nll"] == pytest.approx(-np.log([0.9, 0.2, 0.4, 0.7]).mean())


def test_a_split_of_one_class_has_no_auroc() -> None:
    found = compute_metrics(np.array([[0.2], [0.7]]), np.array([0.0, 0.0]), BINARY)
    assert "auroc" not in found
    assert "auprc" not in found
    assert found["accuracy"] == 0.5


def test_a_float32_softmax_is_scored_without_a_warning() -> None:
    logits = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)) * 3
    scores = logits.softmax(-1).double().numpy()
    truth = np.arange(200) % 3
    assert np.abs(scores.sum(-1) - 1).max() > 1e-8
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = compute_metrics(scores, truth.astype(float), THREE)
    exact = torch.nn.functional.cross_entropy(logits.double(), torch.from_numpy(truth)).item()
    assert found["nll"] == pytest.approx(exact, rel=1e-5)
    assert found["nll"] == pytest.approx(sample_losses(scores, truth.astype(float), THREE).mean(), rel=1e-5)
    assert found["accuracy"] == (scores.argmax(-1) == truth).mean()


def test_multilabel_metrics_are_means_over_labels() -> None:
    rng = np.random.default_rng(0)
    scores, truth = rng.random((40, 2)), rng.integers(0, 2, (40, 2)).astype(float)
    truth[::7, 1] = np.nan
    found = compute_metrics(scores, truth, TWO)
    alone = [compute_metrics(scores[:, [i]], truth[:, i], BINARY) for i in range(2)]
    for key in ("auroc", "auprc", "nll", "accuracy"):
        assert found[key] == pytest.approx((alone[0][key] + alone[1][key]) / 2)


def test_regression_errors_by_hand() -> None:
    found = compute_metrics(np.array([[1.0], [2.0], [4.0]]), np.array([1.0, 3.0, np.nan]), VALUE)
    assert found["mae"] == pytest.approx(0.5)
    assert found["neg_mae"] == -found["mae"]


def test_calibration_error_by_hand() -> None:
    """Two bins: confidence .95 with one of two right, confidence .5 with one of two right."""
    confidence, correct = np.array([0.95, 0.95, 0.5, 0.5]), np.array([1.0, 0.0, 1.0, 0.0])
    assert expected_calibration_error(confidence, correct) == pytest.approx((2 * 0.45 + 0) / 4)


@pytest.mark.parametrize("label", [BINARY, THREE, TWO, VALUE], ids=lambda label: label.kind)
def test_losses_of_samples_without_a_label_are_nan(label: LabelSpec) -> None:
    width = {"binary": 1, "multiclass": 3, "multilabel": 2, "regression": 1}[label.kind]
    scores = np.full((3, width), 1 / 3)
    truth = np.array([1.0, np.nan, 0.0]) if width != 2 else np.array([[1.0, np.nan], [np.nan, np.nan], [0.0, 1.0]])
    losses = sample_losses(scores, truth, label)
    assert np.isnan(losses).tolist() == [False, True, False]
