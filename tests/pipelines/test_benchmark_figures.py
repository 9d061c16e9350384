"""Figures of a suite's tables: losses and the counterintuitive rate against loops, and which cell is bold."""

import itertools

import numpy as np
import pytest

from extract.metrics import sample_losses
from extract.task import LabelSpec
from pipelines.benchmark.layout import latex, markdown
from train.nested import counterintuitive_rate

LABEL = LabelSpec(kind="binary", names=("death",))


def test_counterintuitive_rate_is_that_of_a_loop() -> None:
    rng = np.random.default_rng(1)
    sets = [frozenset(c) for size in (1, 2, 3) for c in itertools.combinations("abc", size)]
    labels, has = rng.integers(0, 2, 30).astype(float), rng.random((30, 3)) < 0.7
    labels[0], has[1] = np.nan, (True, False, False)
    predicted = {s: rng.random((30, 1)) for s in sets}
    for seen, p in predicted.items():
        p[[not all(has[i]["abc".index(m)] for m in seen) for i in range(30)]] = np.nan
    shares = []
    for i in range(30):
        pairs = [(s, t) for s in sets for t in sets if s < t and np.isfinite(predicted[t][i, 0])]
        if pairs and np.isfinite(labels[i]):
            loss = {s: -np.log(p[i, 0] if labels[i] else 1 - p[i, 0]) for s, p in predicted.items()}
            shares.append(np.mean([loss[t] > loss[s] for s, t in pairs]))
    assert counterintuitive_rate(predicted, labels, LABEL) == pytest.approx(np.mean(shares))
    assert counterintuitive_rate({sets[0]: predicted[sets[0]]}, labels, LABEL) is None


def test_losses_of_samples() -> None:
    p = np.array([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]])
    classes = LabelSpec(kind="multiclass", names=("y",), classes=("a", "b", "c"))
    assert sample_losses(p, np.array([1.0, np.nan]), classes) == pytest.approx([-np.log(0.5), np.nan], nan_ok=True)
    several = LabelSpec(kind="multilabel", names=("u", "v"))
    truth = np.array([[1.0, np.nan], [0.0, 1.0]])
    expected = [-np.log(0.2), -(np.log(0.4) + np.log(0.3)) / 2]
    assert sample_losses(p[:, :2], truth, several) == pytest.approx(expected)
    value = LabelSpec(kind="regression", names=("y",))
    assert sample_losses(p[:, :1], np.array([1.0, 0.0]), value) == pytest.approx([0.64, 0.36])


def test_the_best_is_bold_also_where_lower_is_better_and_where_it_is_shared() -> None:
    def cell(mean: float | None, sd: float | None = 0.01) -> dict[str, float | None]:
        return {"mean": mean, "sd": sd}

    keys = [("natural", "auroc"), ("natural", "nll"), ("protocol", "auroc")]
    values = {"a": (0.8, 0.4, 0.71), "b_c": (0.9, 0.3, 0.7101), "d": (0.7, 0.5, None)}
    cells = {name: {key: cell(v) for key, v in zip(keys, row, strict=True)} for name, row in values.items()}
    lines = markdown(cells, keys).splitlines()
    assert lines[0] == "| method | natural AUROC ↑ | natural NLL ↓ | protocol AUROC ↑ |"
    assert lines[2:] == [
        "| a | 80.0 ± 1.0 | 0.400 ± 0.010 | **71.0 ± 1.0** |",
        "| b_c | **90.0 ± 1.0** | **0.300 ± 0.010** | **71.0 ± 1.0** |",
        "| d | 70.0 ± 1.0 | 0.500 ± 0.010 | – |",
    ]
    tex = latex(cells, keys)
    assert "\\multicolumn{2}{c}{natural} & \\multicolumn{1}{c}{protocol}" in tex
    assert "b\\_c & \\textbf{90.0 $\\pm$ 1.0} & \\textbf{0.300 $\\pm$ 0.010}" in tex
