"""`selfmask benchmark`: a tiny suite on random tokens through the command line; figures agree with plain loops."""

import contextlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from cache.errors import UserError
from cache.key import CacheKey
from cache.store import SampleTokens, TokenStore
from extract.metrics import compute_metrics
from extract.samples import DatasetInfo, ModalitySpec, SamplesTable
from extract.task import LabelSpec
from pipelines.benchmark.run import read_predictions, training_table
from pipelines.benchmark.suite import plan, read_suite
from pipelines.benchmark.workers import run_all
from train.bootstrap import intervals, resample_metrics

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
    assert "(curves.png)" in page
    assert Image.open(folder / "curves.png").size[0] > 500
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


def test_complete_training_leaves_the_other_splits_alone(project: Path) -> None:
    table = SamplesTable.read(project / "data/toy/samples")
    complete = training_table(table, "complete")
    assert complete.observed("train").all()
    assert 0 < len(complete.ids("train")) < len(table.ids("train"))
    assert [complete.ids(s) for s in ("valid", "test")] == [table.ids(s) for s in ("valid", "test")]
    frame = table.frame[table.frame["txt_array"].isna()].reset_index(drop=True)
    with pytest.raises(UserError, match="every modality"):
        training_table(SamplesTable(table.root, table.info, frame), "complete")


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


def test_a_search_keeps_each_method_s_best_point_on_validation(project: Path, tmp_path: Path, run_line: Any) -> None:
    """One point cannot learn; whoever keeps it, or looks at the test split to choose, fails here."""
    shutil.copytree(project, tmp_path / "p")
    root = tmp_path / "p"
    search = {"seed": 0, "points": [["train.learning_rate=1.0e-9"], ["train.learning_rate=0.003"]]}
    words = ["benchmark", write_suite(root, search=search), "--out", root / "out", "--params", root / "params.yaml"]
    with contextlib.chdir(root):
        code, _, err = run_line(*words)
        assert code == 0, err
        frame = pd.read_csv(root / "out/search.csv")
        assert list(frame["point"]) == [0, 1, 0, 1]
        for method, own in frame.groupby("method"):
            best = own.loc[own["validation"].idxmax()]
            assert list(own["chosen"]) == list(own["point"] == best["point"])
            folder = root / "out/default" / str(method)
            for point in (0, 1):
                monitor = json.loads((folder / f"search{point}/config.json").read_text())["validation"]["monitor"]
                assert monitor == pytest.approx(own.loc[own["point"] == point, "validation"].item(), abs=1e-5)
            chosen = int(best["point"])
            assert (folder / f"search{chosen}/predictions.npz").is_file()  # the search's seed is not trained again
            assert not (folder / f"search{1 - chosen}/predictions.npz").exists()
            assert not (folder / "seed0").exists()
            config = json.loads((folder / "seed1/config.json").read_text())
            assert config["train"]["learning_rate"] == (1e-9, 0.003)[chosen]
        assert set(frame[frame["chosen"]]["changes"]) == {"train.learning_rate=0.003"}
        assert "Settings chosen on validation" in (root / "out/table.md").read_text()
        shutil.rmtree(root / "out/default/zero_fill/search0")
        code, out, _ = run_line(*words, "--only-tables", "--json")
        assert set(json.loads(out)["table"]) == {"modality_dropout"}, "a choice from half of the points"
