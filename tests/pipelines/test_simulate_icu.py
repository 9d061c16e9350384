"""The simulated cohort: the same bytes twice, MIMIC-IV's columns, misleading rows, and a signal in every modality."""

import gzip
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cache.errors import UserError
from pipelines.simulate.icu.cohort import simulate_icu
from pipelines.simulate.icu.events import OTHER_ITEMS
from pipelines.simulate.icu.latent import make_plan
from pipelines.simulate.icu.notes import CANARY
from pipelines.simulate.icu.tables import COLUMNS, NEW_IN_2_2

STAYS = 30
PARAMS = Path(__file__).parents[2] / "params.yaml"


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("icu") / "raw"
    simulate_icu(folder, STAYS, seed=3)
    return folder


@pytest.fixture(scope="module")
def run(raw: Path) -> dict:
    return json.loads((raw / "expected.json").read_text())["runs"]["mortality.fixed"]


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_same_seed_same_bytes_and_another_seed_others(raw: Path, tmp_path: Path) -> None:
    simulate_icu(tmp_path / "again", 20, seed=4)
    other = digests(tmp_path / "again")
    simulate_icu(tmp_path / "again", STAYS, seed=3)  # replaces it
    assert digests(raw) == digests(tmp_path / "again")
    assert digests(raw)["icu/d_items.csv.gz"] == other["icu/d_items.csv.gz"]
    assert digests(raw)["icu/chartevents.csv.gz"] != other["icu/chartevents.csv.gz"]
    assert [path.name for path in tmp_path.iterdir()] == ["again"]  # nothing temporary is left


@pytest.mark.parametrize("table", sorted(COLUMNS))
def test_columns_are_those_of_the_real_table(raw: Path, table: str) -> None:
    with gzip.open(raw / f"{table}.csv.gz", "rt") as stream:
        assert tuple(stream.readline().strip().split(",")) == COLUMNS[table]


def test_the_first_release_has_its_own_folders_and_columns(tmp_path: Path) -> None:
    simulate_icu(tmp_path / "old", 20, 0, "1.0", plain=True)
    admissions = pd.read_csv(tmp_path / "old/core/admissions.csv")
    assert "ethnicity" in admissions
    assert "race" not in admissions
    assert not (tmp_path / "old/hosp/patients.csv").exists()
    for table in ("icu/chartevents", "hosp/labevents"):
        assert set(pd.read_csv(tmp_path / "old" / f"{table}.csv", nrows=1)).isdisjoint(NEW_IN_2_2)


def test_other_events_are_added_and_change_nothing_else(raw: Path, tmp_path: Path) -> None:
    simulate_icu(tmp_path / "more", STAYS, seed=3, other_events=1000)
    events, more = (pd.read_csv(folder / "icu/chartevents.csv.gz") for folder in (raw, tmp_path / "more"))
    assert len(more) == len(events) + 1000
    assert set(more["itemid"][len(events) :]) == set(OTHER_ITEMS)
    assert set(OTHER_ITEMS).isdisjoint(events["itemid"])
    pd.testing.assert_frame_equal(more[: len(events)], events)
    assert (raw / "expected.json").read_bytes() == (tmp_path / "more/expected.json").read_bytes()


def test_reports_never_state_the_outcome_and_discharge_notes_do(raw: Path) -> None:
    reports = pd.read_csv(raw / "note/radiology.csv.gz")["text"].dropna().str.lower()
    assert not reports.str.contains(f"{CANARY}|expired|died|death|deceased|home").any()
    summaries = pd.read_csv(raw / "note/discharge.csv.gz")
    assert summaries["text"].str.contains(CANARY).all()
    assert set(summaries["hadm_id"]) == set(pd.read_csv(raw / "icu/icustays.csv.gz")["hadm_id"])


def test_expected_agrees_with_the_raw_tables(raw: Path, run: dict) -> None:
    stays = pd.read_csv(raw / "icu/icustays.csv.gz")
    flags = pd.read_csv(raw / "hosp/admissions.csv.gz").set_index("hadm_id")["hospital_expire_flag"]
    assert run["steps"][0]["kept"] == len(stays)
    assert run["steps"][-1]["kept"] == run["samples"] == len(run["labels"])
    assert run["samples"] + len(run["dropped"]) == len(stays)
    admission = stays.set_index(stays["stay_id"].astype(str))["hadm_id"]
    assert run["labels"] == {stay: flags[admission[stay]] for stay in run["labels"]}
    films = {path.stem for path in (raw / "mimic-cxr-jpg/files").rglob("*.jpg")}
    assert set(run["images"].values()) <= films


def test_admissions_of_a_subject_do_not_overlap_and_end_with_death(raw: Path) -> None:
    admissions = pd.read_csv(raw / "hosp/admissions.csv.gz", parse_dates=["admittime", "dischtime"])
    ordered = admissions.sort_values(["subject_id", "admittime"])
    again = ordered["subject_id"].eq(ordered["subject_id"].shift())
    assert again.sum() > 0
    before = ordered.shift()[again]
    assert (before["dischtime"] < ordered.loc[again, "admittime"]).all()
    assert (before["hospital_expire_flag"] == 0).all()


def test_each_modality_sees_a_part_and_all_together_more() -> None:
    plan = make_plan(4000, np.random.default_rng(0))
    death = plan.stays["death"].to_numpy()
    alone = [auroc(severity, death) for severity in plan.severity.values()]
    assert all(0.75 < value < 0.85 for value in alone)
    assert auroc(np.sum(list(plan.severity.values()), axis=0), death) > 0.93
    assert 0.22 < death.mean() < 0.28
    assert abs(1 - plan.stays["image"].mean() - 0.30) < 0.03
    assert abs(1 - plan.stays["note"].mean() - 0.25) < 0.03


def test_films_of_the_dying_are_whiter(raw: Path, run: dict) -> None:
    paths = {path.stem: path for path in (raw / "mimic-cxr-jpg/files").rglob("*.jpg")}
    ordinary = {stay: film for stay, film in run["images"].items() if stay.startswith("30")}
    bright = np.array([np.asarray(Image.open(paths[film]))[30:55].mean() for film in ordinary.values()])
    assert auroc(bright, np.array([run["labels"][stay] for stay in ordinary])) > 0.6


def test_the_command_prints_own_and_published_counts_and_the_flag_lets_summaries_in(
    raw: Path, run: dict, run_line: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    line = ("prepare", "mimic4", "--raw", raw, "--out", tmp_path / "out", "--params", PARAMS)
    code, out, err = run_line(*line)
    assert code == 0, err
    assert f"event in the window: {run['samples']} kept, 2 dropped" in out
    assert "published, all three (paper): train 4880, valid 540, test 1373" in out
    assert not pd.read_parquet(tmp_path / "out/samples.parquet")["txt_text"].str.contains(CANARY).any()
    assert run_line(*line, "--allow-leaky-text")[0] == 0
    assert pd.read_parquet(tmp_path / "out/samples.parquet")["txt_text"].str.contains(CANARY).all()
    code, _, err = run_line("prepare", "mimic4", "--raw", tmp_path, "--out", tmp_path / "out", "--params", PARAMS)
    assert code == 2
    assert err.startswith("error: There is no icu/icustays")
    assert err.count("\n") == 1


def test_refuses_too_few_stays_and_a_folder_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 20"):
        simulate_icu(tmp_path / "few", 5, seed=0)
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(UserError, match="no simulated cohort"):
        simulate_icu(tmp_path, STAYS, seed=0)
    assert (tmp_path / "mine.txt").read_text() == "keep me"


def auroc(score: np.ndarray, label: np.ndarray) -> float:
    """Chance that a positive has the higher score."""
    positive, negative = score[label == 1], score[label == 0]
    return float((positive[:, None] > negative[None]).mean())
