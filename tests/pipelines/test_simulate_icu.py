"""The simulated cohort: the same bytes twice, MIMIC-IV's columns, misleading rows, and a signal in every modality."""

import gzip
import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cache.errors import UserError
from pipelines.simulate.icu import simulate_icu
from pipelines.simulate.icu_latent import make_plan
from pipelines.simulate.icu_notes import CANARY

STAYS = 30
# columns of MIMIC-IV v2.2, MIMIC-IV-Note v2.2 and MIMIC-CXR-JPG v2
COLUMNS = {
    "hosp/patients": "subject_id gender anchor_age anchor_year anchor_year_group dod",
    "hosp/admissions": "subject_id hadm_id admittime dischtime deathtime admission_type admit_provider_id "
    "admission_location discharge_location insurance language marital_status race edregtime edouttime "
    "hospital_expire_flag",
    "hosp/diagnoses_icd": "subject_id hadm_id seq_num icd_code icd_version",
    "hosp/d_labitems": "itemid label fluid category",
    "hosp/labevents": "labevent_id subject_id hadm_id specimen_id itemid order_provider_id charttime storetime value "
    "valuenum valueuom ref_range_lower ref_range_upper flag priority comments",
    "icu/icustays": "subject_id hadm_id stay_id first_careunit last_careunit intime outtime los",
    "icu/chartevents": "subject_id hadm_id stay_id caregiver_id charttime storetime itemid value valuenum valueuom "
    "warning",
    "icu/d_items": "itemid label abbreviation linksto category unitname param_type lownormalvalue highnormalvalue",
    "note/radiology": "note_id subject_id hadm_id note_type note_seq charttime storetime text",
    "note/radiology_detail": "note_id subject_id field_name field_value field_ordinal",
    "note/discharge": "note_id subject_id hadm_id note_type note_seq charttime storetime text",
    "note/discharge_detail": "note_id subject_id field_name field_value field_ordinal",
    "mimic-cxr-jpg/mimic-cxr-2.0.0-metadata": "dicom_id subject_id study_id PerformedProcedureStepDescription "
    "ViewPosition Rows Columns StudyDate StudyTime ProcedureCodeSequence_CodeMeaning ViewCodeSequence_CodeMeaning "
    "PatientOrientationCodeSequence_CodeMeaning",
}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("icu") / "raw"
    simulate_icu(folder, STAYS, seed=3)
    return folder


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
        assert stream.readline().strip().split(",") == COLUMNS[table].split()


def test_reports_never_state_the_outcome_and_discharge_notes_do(raw: Path) -> None:
    reports = pd.read_csv(raw / "note/radiology.csv.gz")["text"].str.lower()
    assert not reports.str.contains(f"{CANARY}|expired|died|death|deceased|home").any()
    assert pd.read_csv(raw / "note/discharge.csv.gz")["text"].str.contains(CANARY).all()


def test_expected_agrees_with_the_raw_tables(raw: Path) -> None:
    expected = json.loads((raw / "expected.json").read_text())
    stays = pd.read_csv(raw / "icu/icustays.csv.gz")
    flags = pd.read_csv(raw / "hosp/admissions.csv.gz").set_index("hadm_id")["hospital_expire_flag"]
    assert expected["steps"][0]["kept"] == len(stays)
    assert expected["steps"][-1]["kept"] == expected["samples"] == STAYS
    admission = stays.set_index(stays["stay_id"].astype(str))["hadm_id"]
    assert expected["labels"] == {stay: flags[admission[stay]] for stay in expected["labels"]}
    films = {path.stem for path in (raw / "mimic-cxr-jpg/files").rglob("*.jpg")}
    assert set(expected["images"].values()) <= films


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


def test_films_of_the_dying_are_whiter(raw: Path) -> None:
    expected = json.loads((raw / "expected.json").read_text())
    paths = {path.stem: path for path in (raw / "mimic-cxr-jpg/files").rglob("*.jpg")}
    bright = np.array([np.asarray(Image.open(paths[film]))[30:55].mean() for film in expected["images"].values()])
    assert auroc(bright, np.array([expected["labels"][stay] for stay in expected["images"]])) > 0.6


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
