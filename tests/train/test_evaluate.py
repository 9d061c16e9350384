"""Evaluation: masks, counts and tables; the vectorised bootstrap agrees with a plain loop."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cache.errors import UserError
from extract.metrics import compute_metrics
from extract.task import LabelSpec
from train.bootstrap import intervals, resample_counts, resample_metrics, weighted_metrics
from train.checkpoint import save_checkpoint
from train.config import EvaluateSettings
from train.evaluate import evaluate_checkpoints
from train.methods.registry import build_method, model_spec
from train.scenarios import build_scenarios

SETTINGS = EvaluateSettings(mask_seed=0, missing_rates=(0.0, 0.5, 0.9), bootstrap_draws=50, batch_size=16)
SPECS = {
    "binary": LabelSpec(kind="binary", names=("y",)),
    "multiclass": LabelSpec(kind="multiclass", names=("y",), classes=("a", "b", "c")),
    "multilabel": LabelSpec(kind="multilabel", names=("u", "v")),
    "regression": LabelSpec(kind="regression", names=("y",)),
}


def paired_bootstrap(first: list[np.ndarray], second: list[np.ndarray], *about: Any) -> dict[str, dict[str, Any]]:
    """Compare the probabilities of two methods; `about` as of `resample_metrics`."""
    return intervals(resample_metrics(first, *about), resample_metrics(second, *about))


def example(kind, n=60, seed=0):
    rng = np.random.default_rng(seed)
    if kind == "multiclass":
        labels, p = rng.integers(0, 3, n).astype(float), rng.dirichlet(np.ones(3), n)
    elif kind == "regression":
        labels = rng.normal(size=n)
        p = (labels + rng.normal(size=n))[:, None]
    else:
        width = len(SPECS[kind].names)
        labels = rng.integers(0, 2, (n, width)).astype(float)
        p = np.round(np.clip(rng.random((n, width)), 0.02, 0.98), 1)  # rounding makes ties
        p, labels = np.clip(p, 0.05, 0.95), labels if width > 1 else labels[:, 0]
    return p, labels


@pytest.mark.parametrize("kind", SPECS)
def test_weighted_metrics_equal_metrics_of_repeated_samples(kind):
    p, labels = example(kind)
    labels[3] = np.nan
    for counts in resample_counts(np.arange(len(p)), 20, seed=1):
        fast = weighted_metrics(p, labels, counts, SPECS[kind])
        for draw, count in enumerate(counts.astype(int)):
            rows = np.repeat(np.arange(len(p)), count)
            slow = compute_metrics(p[rows], labels[rows], SPECS[kind])
            for name, values in fast.items():
                assert values[draw] == pytest.approx(slow[name], abs=1e-9), name


def test_bootstrap_agrees_with_a_loop():
    p, labels = example("binary")
    first, second = [p, example("binary", seed=4)[0]], [example("binary", seed=5)[0]]
    result = paired_bootstrap(first, second, labels, SPECS["binary"], np.arange(60), 80, 2)["auroc"]
    differences = []
    for counts in np.concatenate(list(resample_counts(np.arange(60), 80, 2))).astype(int):
        rows = np.repeat(np.arange(60), counts)
        one = [compute_metrics(q[rows], labels[rows], SPECS["binary"])["auroc"] for q in first]
        two = [compute_metrics(q[rows], labels[rows], SPECS["binary"])["auroc"] for q in second]
        differences.append(np.mean(one) - np.mean(two))
    low, high = np.percentile(differences, [2.5, 97.5])
    assert (result["low"], result["high"]) == (pytest.approx(low), pytest.approx(high))
    tail = min((np.array(differences) <= 0).sum(), (np.array(differences) >= 0).sum())
    assert result["p"] == pytest.approx(min(1, 2 * (tail + 1) / 81))


def test_resamples_do_not_depend_on_blocks(monkeypatch):
    whole = np.concatenate(list(resample_counts(np.arange(30), 10, 0)))
    monkeypatch.setattr("train.bootstrap.BLOCK", 90)
    assert np.array_equal(whole, np.concatenate(list(resample_counts(np.arange(30), 10, 0))))
    assert (whole.sum(1) == 30).all()


def test_a_group_is_drawn_whole_or_not_at_all():
    groups = np.array(["b", "a", "b", "c", "a", "b"])
    counts = np.concatenate(list(resample_counts(groups, 50, 0)))
    for name in "abc":
        own = counts[:, groups == name]
        assert (own == own[:, :1]).all()
    assert (counts[:, [1, 0, 3]].sum(1) == 3).all()  # as many groups are drawn as there are
    assert not (counts.sum(1) == 6).all()


def test_bootstrap_of_equal_and_of_better():
    p, labels = example("binary", n=200)
    same = paired_bootstrap([p], [p], labels, SPECS["binary"], np.arange(200), 100, 0)["auroc"]
    assert (same["difference"], same["low"], same["high"], same["p"]) == (0, 0, 0, 1)
    good = np.clip(labels[:, None] * 0.8 + 0.1, 0, 1)
    better = paired_bootstrap([good], [p], labels, SPECS["binary"], np.arange(200), 100, 0)["auroc"]
    assert better["low"] > 0.3
    assert better["p"] < 0.03


def test_scenarios_do_not_depend_on_order_and_never_add():
    rng = np.random.default_rng(0)
    ids, observed = [f"p{i}" for i in range(200)], rng.random((200, 3)) > 0.3
    order = rng.permutation(200)
    args = (("a", "b", "c"), 7, (0.0, 0.5))
    first = build_scenarios(ids, observed, *args)
    second = build_scenarios([ids[i] for i in order], observed[order], *args)
    for one, two in zip(first, second, strict=True):
        assert one.name == two.name
        assert np.array_equal(one.kept[order], two.kept)
        assert not (one.kept & ~observed).any()
    assert np.array_equal(first[2].kept, observed)
    assert np.array_equal(first[1].rows, observed.any(1))  # never emptied, never filled
    for scenario in first[4:]:
        columns = ["abc".index(m) for m in scenario.pattern]
        assert scenario.rows.sum() == observed[:, columns].all(1).sum()


@pytest.fixture(scope="module")
def evaluated(make_bank, settings, binary, tmp_path_factory):
    root, bank = tmp_path_factory.mktemp("evaluate"), make_bank(40, 6)
    spec = model_spec(bank, binary, settings.model_settings)
    folders = {}
    for name in ("selfmask", "zero_fill"):
        folders[name] = [root / name / f"seed{seed}" for seed in (0, 1)]
        for seed, folder in enumerate(folders[name]):
            method = build_method(name, spec, settings.model_settings, settings.selfmask)
            parts = {"spec": spec, "model": settings.model_settings, "options": settings.selfmask}
            config = {"method": name, "seed": seed, **{k: v.model_dump(mode="json") for k, v in parts.items()}}
            save_checkpoint(folder, method, config)
    table = SimpleNamespace(
        ids=lambda split: [f"t{i}" for i in range(40)], groups=np.asarray, info=SimpleNamespace(label=binary)
    )
    metrics = evaluate_checkpoints(folders, bank, table, SETTINGS, root / "out")
    return root / "out", metrics, bank, folders, table


def test_metrics_json(evaluated):
    out, metrics, *_ = evaluated
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert set(metrics) == {"selfmask", "zero_fill"}
    assert set(metrics["selfmask"]) == {"natural", "protocol", "rate_0", "rate_50", "rate_90"}
    assert set(metrics["selfmask"]["natural"]["auroc"]) == {"mean", "sd"}
    assert metrics["selfmask"]["natural"] == metrics["selfmask"]["rate_0"]


def test_per_pattern_counts(evaluated):
    out, _, bank, *_ = evaluated
    frame = pd.read_csv(out / "per_pattern.csv")
    assert len(frame) == 7 * 4
    observed = bank.observed.numpy()
    for row in frame.itertuples():
        columns = [bank.modalities.index(m) for m in row.pattern.split("+")]
        assert row.samples == observed[:, columns].all(1).sum()
        assert row.observed_modalities == len(columns)
    pairs = pd.read_csv(out / "observed_count.csv").query("method == 'selfmask' and seed == 0")["pairs"]
    assert pairs.sum() == frame.query("method == 'selfmask' and seed == 0")["samples"].sum()


def test_masks_curves_and_comparisons(evaluated):
    out, *_ = evaluated
    masks = pd.read_parquet(out / "masks.parquet")
    assert list(masks.columns) == ["sample_id", "modality", "kept", "seed"]
    assert len(masks) == 120
    assert masks.groupby("sample_id")["kept"].any().all()
    assert len(pd.read_csv(out / "curves.csv")) == 3 * 4
    comparisons = json.loads((out / "comparisons.json").read_text())
    entry = comparisons["zero_fill"]["protocol"]["auroc"]
    assert entry["low"] <= entry["difference"] <= entry["high"]


def test_evaluating_again_writes_the_same_bytes(evaluated, tmp_path):
    out, _, bank, folders, table = evaluated
    evaluate_checkpoints(folders, bank, table, SETTINGS, tmp_path)
    for path in out.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()


def test_other_label_is_refused(evaluated, tmp_path):
    _, _, bank, folders, table = evaluated
    other = SimpleNamespace(ids=table.ids, info=SimpleNamespace(label=LabelSpec(kind="binary", names=("stay",))))
    with pytest.raises(UserError, match="predicts"):
        evaluate_checkpoints(folders, bank, other, SETTINGS, tmp_path)
