"""The command line: the whole pipeline at a tiny size, and single commands on a table of the user's own."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from extract.samples import DatasetInfo, ModalitySpec, SamplesTable
from extract.task import LabelSpec

ROOT = Path(__file__).parents[2]
TINY = {
    "fit": {"max_epochs": 1},
    "model": {"width": 16, "heads": 2, "predictor_layers": 1},
    "train": {"max_epochs": 1, "methods": ["selfmask", "zero_fill"]},
    "joint": {"max_epochs": 1},
    "evaluate": {"missing_rates": [0.0, 0.5], "bootstrap_draws": 5},
}


# A table of the user's own: two series, one of them often missing, both telling of the label.


def write_table(root: Path, samples: int = 60) -> SamplesTable:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, samples)
    rows = []
    for i, label in enumerate(labels):
        row: dict[str, Any] = {"sample_id": f"s{i:03d}", "group_id": f"g{i:03d}", "label": int(label)}
        row["split"] = ("train", "train", "train", "valid", "test")[i % 5]
        for name, rate in (("first", 0.0), ("second", 0.4)):
            there = random.random() >= rate
            values = random.normal(float(label), 0.5, (8, 2)).astype(np.float32)
            row[f"{name}_array"] = values.ravel() if there else None
            row[f"{name}_shape"] = list(values.shape) if there else None
        rows.append(row)
    modalities = tuple(
        ModalitySpec(name=n, kind="timeseries", column=f"{n}_array", channels=("a", "b"), bin_hours=1)
        for n in ("first", "second")
    )
    info = DatasetInfo(name="own", label=LabelSpec(kind="binary", names=("outcome",)), modalities=modalities)
    return SamplesTable.write(
        root, info, pd.DataFrame(rows), pd.DataFrame([], columns=["source_id", "step", "reason"], dtype=str)
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder whose params.yaml names the user's own data set, beside it the table."""
    root = tmp_path_factory.mktemp("project")
    write_table(root / "raw")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["dataset"] = {"name": "own", "raw": "raw", "modalities": ["first", "second"]}
    settings: dict[str, Any] = {name: {} for name in ("fit", "extract", "selfmask")} | TINY
    encoders = {"first": "series_tiny", "second": "series_tiny"}
    params["datasets"]["own"] = {"options": {}, "encoders": encoders, "settings": settings}
    params["seeds"] = [0]
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    return root


@pytest.fixture
def inside(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(project)
    return project


STAGES = (
    ("prepare", "dataset"),
    ("fit", "first"),
    ("fit", "second"),
    ("extract", "first"),
    ("extract", "second"),
    ("train", "selfmask"),
    ("train", "zero_fill"),
    ("finetune",),
    ("evaluate",),
    ("report",),
)


def test_the_whole_pipeline_by_its_commands(inside: Path, run_line: Any) -> None:
    for words in STAGES:
        code, out, err = run_line(*words)
        assert code == 0, f"{words}: {err}"
        assert "wrote " in out, words
    metrics = json.loads((inside / "metrics/own/metrics.json").read_text())
    assert set(metrics) == {"selfmask", "zero_fill", "joint"}
    page = (inside / "reports/own/report.md").read_text()
    for name in ("observed_count.png", "curves.png", "masks.png"):
        assert (inside / "reports/own" / name).read_bytes().startswith(b"\x89PNG")
        assert name in page
    assert not any(f"s{i:03d}" in page for i in range(60)), "the report must not hold sample ids"
    assert "| selfmask |" in page
    _one_modality_alone(inside, page)

    # The rest needs the trained pipeline.
    _finished_stages_change_nothing(inside, run_line)
    _predict_json(inside, run_line)
    _cache_json(run_line)
    _another_method_in_the_list_trains_nothing_again(inside, run_line)
    _no_report_without_metrics(inside, run_line)


def _one_modality_alone(root: Path, page: str) -> None:
    rows = dict.fromkeys(("first", "second"), "")
    rows |= {line.split(" | ")[0].removeprefix("| "): line for line in page.split("One modality alone")[1].splitlines()}
    for modality in ("first", "second"):
        metrics = json.loads((root / f"models/own/encoders/{modality}/metrics.json").read_text())
        assert f"| {metrics['samples']['test']} | {metrics['test']['auroc']:.3f} |" in rows[modality]


def _finished_stages_change_nothing(root: Path, run_line: Any) -> None:
    weights = {path: path.read_bytes() for path in sorted((root / "models").rglob("*.safetensors"))}
    assert len(weights) >= 6
    for words in STAGES[1:8]:
        assert run_line(*words)[0] == 0
    assert {path: path.read_bytes() for path in weights} == weights


def _predict_json(root: Path, run_line: Any) -> None:
    for model in ("selfmask", "joint"):
        words = ("--model", f"models/own/{model}/seed0", "--samples", "raw", "--out", "p.csv", "--json")
        code, out, err = run_line("predict", *words)
        assert code == 0, err
        assert json.loads(out) == {"out": "p.csv", "samples": 60, "without_prediction": 0}
        frame = pd.read_csv(root / "p.csv", keep_default_na=False)
        assert frame["p_outcome"].astype(float).between(0, 1).all()


def _cache_json(run_line: Any) -> None:
    code, out, _ = run_line("cache", "info", "data/own/tokens/first.zarr", "--json")
    assert code == 0
    assert json.loads(out)["samples"] == 60
    code, out, _ = run_line("cache", "verify", "data/own/tokens/first.zarr", "--json")
    assert code == 0
    assert json.loads(out)["problems"] == []


def _another_method_in_the_list_trains_nothing_again(root: Path, run_line: Any) -> None:
    state = (root / "models/own/zero_fill/seed0/config.json").read_bytes()
    assert run_line("train", "zero_fill", "--set", "train.methods=[zero_fill, random_fill]")[0] == 0
    assert (root / "models/own/zero_fill/seed0/config.json").read_bytes() == state


def _no_report_without_metrics(root: Path, run_line: Any) -> None:
    (root / "metrics/own/metrics.json").unlink()
    code, _, err = run_line("report")
    assert code == 2
    assert "selfmask evaluate" in err


def test_the_demo_at_a_tiny_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_line: Any) -> None:
    """`make demo` in one process: simulated MIMIC-IV files, three kinds of modality, every stage."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert params["dataset"]["name"] == "icu", "make demo runs what params.yaml chooses"
    params["datasets"]["icu"]["settings"] |= {**TINY, "train": {"max_epochs": 1, "methods": ["selfmask"]}}
    params["seeds"] = [0]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.chdir(tmp_path)
    stages: list[tuple[str, ...]] = [("simulate", "icu", "--stays", "160"), ("prepare", "dataset")]
    stages += [(command, modality) for command in ("fit", "extract") for modality in params["dataset"]["modalities"]]
    stages += [("train", "selfmask"), ("finetune",), ("evaluate",), ("report",)]
    for words in stages:
        code, _, err = run_line(*words)
        assert code == 0, f"{words}: {err}"
    metrics = json.loads((tmp_path / "metrics/icu/metrics.json").read_text())
    assert {name: 0 <= metrics[name]["natural"]["auroc"]["mean"] <= 1 for name in metrics} == {
        "selfmask": True,
        "joint": True,
    }
    assert sorted(path.name for path in (tmp_path / "reports/icu").iterdir()) == [
        "curves.png",
        "masks.png",
        "observed_count.png",
        "report.md",
    ]


def test_check_counts_patterns_and_labels(tmp_path: Path, run_line: Any) -> None:
    table = write_table(tmp_path / "t")
    code, out, _ = run_line("check", tmp_path / "t", "--json")
    summary = json.loads(out)
    assert code == 0
    for split in ("train", "valid", "test"):
        observed, labels = table.observed(split), table.labels(split)
        assert summary[split]["samples"] == len(observed)
        assert summary[split]["patterns"].get("first+second", 0) == int(observed.all(1).sum())
        assert summary[split]["labels"] == {"0": int((labels == 0).sum()), "1": int((labels == 1).sum())}
    assert "patterns: first" in run_line("check", tmp_path / "t")[1]


def test_a_table_is_not_copied_into_itself(tmp_path: Path, run_line: Any) -> None:
    write_table(tmp_path / "t")
    for out in (tmp_path / "t", tmp_path / "t" / "samples", tmp_path):
        code, _, err = run_line("prepare", "table", "--raw", tmp_path / "t", "--out", out)
        assert code == 2
        assert "must not lie in each other" in err
    assert SamplesTable.read(tmp_path / "t").modalities == ("first", "second")


def test_a_damaged_cache_exits_with_1(tmp_path: Path, run_line: Any) -> None:
    from cache.key import CacheKey
    from cache.parts import SampleTokens
    from cache.store import TokenStore

    key = CacheKey.imported("e", "0" * 64)
    store = TokenStore.create(tmp_path / "m.zarr", key, 4)
    store.append([SampleTokens("a", "d", np.ones((3, 4), np.float32), np.ones(3, bool))])
    store.publish_view({"a": "d"})
    assert run_line("cache", "verify", tmp_path / "m.zarr")[0] == 0
    files = [path for path in (tmp_path / "m.zarr/parts").rglob("*") if path.is_file() and "tokens" in path.parts]
    chunk = max(files, key=lambda path: path.suffix != ".json")
    data = bytearray(chunk.read_bytes())
    data[0] ^= 1
    chunk.chmod(0o644)
    chunk.write_bytes(bytes(data))
    code, out, _ = run_line("cache", "verify", tmp_path / "m.zarr")
    assert code == 1
    assert "checksum" in out
    chunk.write_bytes(bytes(data[:-1]))
    code, out, _ = run_line("cache", "verify", tmp_path / "m.zarr", "--repair")
    assert code == 1, "the view still promises the sample"
    assert "quarantine" in out
    assert "1 samples of view.json" in out
    store.append([SampleTokens("a", "d", np.ones((3, 4), np.float32), np.ones(3, bool))])
    assert run_line("cache", "verify", f"file://{tmp_path / 'm.zarr'}")[0] == 0
    assert run_line("cache", "info", f"file://{tmp_path / 'm.zarr'}")[0] == 0


def test_words_of_real_texts_are_not_shown(tmp_path: Path) -> None:
    """Only samples that the simulator itself lists count as simulated."""
    from pipelines.params import load_params
    from pipelines.report import is_simulated

    table = write_table(tmp_path / "t")
    params = load_params(ROOT / "params.yaml", [f"dataset.raw={tmp_path}"])
    assert not is_simulated(params, table)
    expected = {"labels": {str(i): 0 for i in table.frame["sample_id"]}}
    (tmp_path / "expected.json").write_text(json.dumps(expected))
    assert is_simulated(params, table)
    expected["labels"].popitem()
    (tmp_path / "expected.json").write_text(json.dumps(expected))
    assert not is_simulated(params, table)
