"""`selfmask benchmark`: a tiny suite on random tokens through the command line; figures agree with plain loops."""

import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from cache.errors import UserError
from cache.key import CacheKey
from cache.store import SampleTokens, TokenStore
from extract.metrics import compute_metrics, sample_losses
from extract.samples import DatasetInfo, ModalitySpec, SamplesTable
from extract.task import LabelSpec
from pipelines.benchmark.layout import latex, markdown
from pipelines.benchmark.run import read_predictions, training_table
from pipelines.benchmark.suite import plan, read_suite
from pipelines.benchmark.workers import fitting_jobs, run_all
from train.bootstrap import intervals, resample_metrics
from train.config import MethodName
from train.nested import counterintuitive_rate

ROOT = Path(__file__).parents[2]
NAMES = ("ehr", "txt")
LABEL = LabelSpec(kind="binary", names=("death",))
SUITE: dict[str, Any] = {
    "methods": ["modality_dropout", "zero_fill"],
    "seeds": [0, 1],
    "variants": {"default": []},
    "training": "natural",
    "search": None,
    "reference": "modality_dropout",
    "columns": {"natural": ["auroc", "nll"], "protocol": ["auroc", "ece"], "complete": ["auroc"]},
}


def write_project(root: Path, samples: int = 120) -> None:
    """A project whose tokens are random and tell of the label; every fourth sample lacks its text."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, samples)
    rows = []
    for i in range(samples):
        row: dict[str, Any] = {"sample_id": f"s{i:03d}", "group_id": f"g{i // 3:03d}", "label": int(truth[i])}
        row["split"] = ("train", "train", "valid", "test")[i // 3 % 4]
        for name in NAMES:
            there = name == "ehr" or i % 4 > 0
            row |= {f"{name}_array": [0.0] if there else None, f"{name}_shape": [1, 1] if there else None}
        rows.append(row)
    modalities = tuple(ModalitySpec(name=n, kind="timeseries", column=f"{n}_array", channels=("a",)) for n in NAMES)
    none = pd.DataFrame({"source_id": [], "step": [], "reason": []})
    info = DatasetInfo(name="toy", label=LABEL, modalities=modalities)
    SamplesTable.write(root / "data/toy/samples", info, pd.DataFrame(rows), none)
    for name in NAMES:
        write_tokens(root / f"data/toy/tokens/{name}.zarr", name, rows, rng)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["dataset"] = {"name": "toy", "raw": "none", "modalities": list(NAMES)}
    sections = ("fit", "extract", "model", "selfmask", "compared", "train", "joint", "evaluate")
    encoders = dict.fromkeys(NAMES, "series_tiny")
    params["datasets"]["toy"] = {"options": {}, "encoders": encoders, "settings": {name: {} for name in sections}}
    params["model"] |= {"width": 8, "heads": 2, "predictor_layers": 1}
    params["train"] |= {"max_epochs": 2, "batch_size": 32, "learning_rate": 0.003}
    params["evaluate"] |= {"missing_rates": [0.0, 0.5], "bootstrap_draws": 40}
    (root / "params.yaml").write_text(yaml.safe_dump(params))


def write_tokens(path: Path, name: str, rows: list[dict[str, Any]], rng: np.random.Generator) -> None:
    key = CacheKey.imported(name, "0" * 64)
    store, content = TokenStore.create(path, key, 4), []
    present = [row for row in rows if row[f"{name}_array"] is not None]
    for row in present:
        tokens = rng.normal(size=(3, 4)) + row["label"]
        content.append(SampleTokens(row["sample_id"], "d", tokens.astype(np.float16), np.ones(3, bool)))
    store.append(content)
    store.publish_view({row["sample_id"]: "d" for row in present})


def write_suite(root: Path, **changes: Any) -> Path:
    path = root / "tiny.yaml"
    path.write_text(yaml.safe_dump({**SUITE, **changes}, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("suite")
    write_project(root)
    return root


@pytest.fixture
def inside(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(project)
    return project


def test_a_suite_by_the_command_line(inside: Path, run_line: Any) -> None:
    code, out, err = run_line("benchmark", write_suite(inside), "--json")
    assert code == 0, err
    result = json.loads(out)
    assert len(result["finished"]) == 4
    assert result["failed"] == {}
    folder = inside / "benchmarks-out/toy/tiny"
    _means_are_those_of_a_loop(inside, folder)
    _comparisons_are_those_of_the_bootstrap(inside, folder)
    _tables_are_complete(folder)
    _no_id_leaves_the_table(folder)
    _running_again_trains_nothing(folder, inside, run_line)
    _a_lost_run_is_the_only_one_made_again(folder, inside, run_line)


def loop_metrics(root: Path, folder: Path, method: str, scenario: str) -> list[dict[str, float]]:
    labels, result = SamplesTable.read(root / "data/toy/samples").labels("test"), []
    for seed in SUITE["seeds"]:
        stored = read_predictions(folder / "default" / method / f"seed{seed}")
        assert stored is not None
        p = stored.predicted[scenario]
        rows = [i for i in range(len(p)) if np.isfinite(p[i]).all()]
        result.append(compute_metrics(p[rows], labels[stored.rows[rows]], LABEL))
    return result


def _means_are_those_of_a_loop(root: Path, folder: Path) -> None:
    frame = pd.read_parquet(folder / "results.parquet")
    lines = (folder / "table.md").read_text().splitlines()
    for method in SUITE["methods"]:
        expected = []
        for column, metrics in SUITE["columns"].items():
            seeds = loop_metrics(root, folder, method, "pattern_ehr+txt" if column == "complete" else column)
            for metric in metrics:
                values = [own[metric] for own in seeds]
                scale, digits = (1, 3) if metric == "nll" else (100, 1)
                expected.append(f"{scale * np.mean(values):.{digits}f} ± {scale * np.std(values, ddof=1):.{digits}f}")
                if column != "complete":
                    rows = frame.query("method == @method and scenario == @column and metric == @metric")
                    assert rows.sort_values("seed")["value"].tolist() == pytest.approx(values, abs=1e-12)
        line = next(line for line in lines if line.startswith(f"| {method} |"))
        assert [cell.strip(" *") for cell in line.split("|")[2:-1]] == expected


def _comparisons_are_those_of_the_bootstrap(root: Path, folder: Path) -> None:
    table = SamplesTable.read(root / "data/toy/samples")
    labels, groups = table.labels("test"), table.groups(table.ids("test"))
    first, second = (
        [read_predictions(folder / "default" / m / f"seed{s}").predicted["protocol"] for s in SUITE["seeds"]]  # type: ignore[union-attr]
        for m in SUITE["methods"]
    )
    about = labels, LABEL, groups, 40, 0
    expected = intervals(resample_metrics(first, *about), resample_metrics(second, *about))
    found = pd.read_csv(folder / "comparisons.csv").query("scenario == 'protocol' and comparison == 'reference'")
    assert set(found["metric"]) == set(expected)
    for row in found.to_dict("records"):
        for key in ("difference", "low", "high", "p"):
            assert row[key] == pytest.approx(expected[row["metric"]][key], rel=1e-4, abs=1e-6)


def _tables_are_complete(folder: Path) -> None:
    page, tex = (folder / "table.md").read_text(), (folder / "table.tex").read_text()
    for title in ("Per pattern", "Missing rate", "Reliability", "Cost", "best other", "reference"):
        assert title in page
    assert tex.count("\\\\") == 4
    assert "modality\\_dropout" in tex
    assert len(pd.read_csv(folder / "curves.csv")) == 4 * 2
    assert len(pd.read_csv(folder / "per_pattern.csv")) == 4 * 3
    frame = pd.read_parquet(folder / "results.parquet").set_index(["scenario", "metric"])["value"]
    assert (frame["training", "seconds_cpu"] > 0).all()
    assert (frame["training", "parameters"] > 100).all()
    assert frame["over_patterns", "counterintuitive"].between(0, 1).all()


def _no_id_leaves_the_table(folder: Path) -> None:
    for path in (p for p in folder.rglob("*") if p.is_file()):
        assert not re.search(rb"\bs\d{3}\b|\bg\d{3}\b", path.read_bytes()), path
    with np.load(folder / "default/zero_fill/seed0/predictions.npz", allow_pickle=False) as arrays:
        kinds = {arrays[name].dtype.kind for name in arrays.files if name != "fingerprint"}
    assert kinds <= {"f", "i", "b"}


def times(folder: Path) -> dict[Path, int]:
    names = ("config.json", "predictions.npz", "state.pt")
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.name in names}


def _running_again_trains_nothing(folder: Path, root: Path, run_line: Any) -> None:
    before, page = times(folder), (folder / "table.md").read_bytes()
    (folder / "table.md").unlink()
    assert run_line("benchmark", root / "tiny.yaml", "--only-tables", "--set", "train.memory_gb=1")[0] == 0
    assert (folder / "table.md").read_bytes() == page
    code, _, err = run_line("benchmark", root / "tiny.yaml", "--only-tables", "--set", "train.batch_size=7")
    assert code == 2, "runs with other settings are not these"
    assert "No run" in err
    assert times(folder) == before


def _a_lost_run_is_the_only_one_made_again(folder: Path, root: Path, run_line: Any) -> None:
    """As after a kill: one run has not started, one is trained but not predicted; beside them, runs that fail."""
    probabilities = read_predictions(folder / "default/zero_fill/seed0").predicted["natural"]  # type: ignore[union-attr]
    shutil.rmtree(folder / "default/zero_fill/seed0")
    (folder / "default/zero_fill/seed1/predictions.npz").unlink()
    before = times(folder)
    assert run_line("benchmark", root / "tiny.yaml", "--only-tables")[0] == 0
    assert "Not finished and left out: default/zero_fill/seed0" in (folder / "table.md").read_text()

    variants = {"default": [], "broken": ["train.learning_rate=1e30", "train.clip_norm=1e30"]}
    suite = write_suite(root, variants=variants, reference="default/zero_fill")
    code, out, err = run_line("benchmark", suite, "--jobs", "2")
    assert code == 1
    assert "4 of 8 runs finished" in out
    assert len(re.findall(r"failed: broken/\w+/seed\d: .*not finite", err)) == 4
    assert "broken/zero_fill/seed0" in (folder / "table.md").read_text()

    after = times(folder / "default")
    assert {path: after[path] for path in before} == before
    assert len(after) == 12
    again = read_predictions(folder / "default/zero_fill/seed0").predicted["natural"]  # type: ignore[union-attr]
    assert np.array_equal(probabilities, again, equal_nan=True)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"method": ["zero_fill"]}, ["unknown key 'method'", "methods, seeds, variants"]),
        ({"methods": ["nothing"]}, ["methods.0", "'zero_fill'"]),
        ({"reference": "selfmask"}, ["reference must be one of modality_dropout, zero_fill"]),
        ({"variants": {"a": ["evaluate.mask_seed=3"]}}, ["must not change 'evaluate.mask_seed=3'", "selfmask"]),
        ({"variants": {"../a": []}}, ["variants"]),
        ({"variants": {"a": ["model.no_key=3"]}}, ["variant 'a'", "no_key", "predictor_layers"]),
        ({"columns": {"rate_7": ["auroc"]}}, ["rate_7", "rate_50", "pattern_ehr+txt"]),
    ],
)
def test_a_mistake_in_a_suite_is_named(
    changes: dict[str, Any], parts: list[str], tmp_path: Path, inside: Path, run_line: Any
) -> None:
    code, out, err = run_line("benchmark", write_suite(tmp_path, **changes))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert [part for part in parts if part not in err] == []


@pytest.mark.parametrize("path", sorted((ROOT / "suites").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_suites_fit_params(path: Path) -> None:
    suite = read_suite(path)
    runs = plan(suite, ROOT / "params.yaml", [], Path("out"))
    assert len(runs) == len(suite.entries) * len(suite.seeds)
    assert len({run.folder for run in runs}) == len(runs)
    settings = {run.variant: run.params.model_dump_json() for run in runs}
    assert len(set(settings.values())) == len(settings), "two variants are the same"


def test_the_main_suite_has_every_method() -> None:
    assert set(read_suite(ROOT / "suites/main.yaml").methods) == set(MethodName.__args__)  # type: ignore[attr-defined]


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


def test_complete_training_leaves_the_other_splits_alone(project: Path) -> None:
    table = SamplesTable.read(project / "data/toy/samples")
    complete = training_table(table, "complete")
    assert complete.observed("train").all()
    assert 0 < len(complete.ids("train")) < len(table.ids("train"))
    assert [complete.ids(s) for s in ("valid", "test")] == [table.ids(s) for s in ("valid", "test")]
    frame = table.frame[table.frame["txt_array"].isna()].reset_index(drop=True)
    with pytest.raises(UserError, match="every modality"):
        training_table(SamplesTable(table.root, table.info, frame), "complete")


def test_jobs_fit_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.benchmark.workers._available_bytes", lambda: 10 * 10**9)
    assert [fitting_jobs(jobs, size) for jobs, size in ((2, 0), (8, 10**9), (64, 0), (4, 10**11))] == [2, 5, 10, 1]


def crash(run: Any) -> None:
    """Stand in for a run that is killed for memory."""
    import os
    import signal

    if run.seed == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_replaced(tmp_path: Path) -> None:
    runs = plan(read_suite(write_suite(tmp_path, methods=["modality_dropout"])), ROOT / "params.yaml", [], tmp_path)
    ended: list[tuple[str, bool]] = []
    failed = run_all(runs, 1, crash, lambda run, reason: ended.append((run.name, reason is None)))
    assert ended == [("default/modality_dropout/seed0", False), ("default/modality_dropout/seed1", True)]
    assert "signal 9" in failed["default/modality_dropout/seed0"]
