"""A simulated ICU cohort in MIMIC-IV's raw layout, so that everything can be tried without credentials.

The plan comes first: ordinary stays (`latent`), whose label can be told weakly from each modality, and stays that are
odd in one way each (`cases`). Tables, X-rays and notes are written from it, and `expected.json` states from the same
plan, never from the preparation, what a correct preparation finds. Same seed, same bytes. 400 stays take a few seconds.
"""

import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cache.errors import UserError
from cache.publish import write_json
from pipelines.simulate.icu.cases.all import make_cases
from pipelines.simulate.icu.cases.case import UNIT, Cases
from pipelines.simulate.icu.codes import bulk_codes, dictionary
from pipelines.simulate.icu.events import append_other_events, bulk_charts, bulk_labs, item_frames
from pipelines.simulate.icu.expected import MORTALITY, StayExpected, summarise
from pipelines.simulate.icu.images import bulk_films
from pipelines.simulate.icu.latent import Plan, make_plan
from pipelines.simulate.icu.notes import bulk_notes, discharge_frames, note_frames
from pipelines.simulate.icu.tables import CHEXPERT, METADATA, Release, Writer

FEWEST = 20


def simulate_icu(
    out: Path, stays: int, seed: int, release: Release = "2.2", *, plain: bool = False, other_events: int = 0
) -> None:
    """Write the cohort.

    Args:
        out: folder to write; replaced as a whole, once everything is there.
        stays: ordinary stays, beside the odd ones.
        seed: of everything, at least 0.
        release: of MIMIC-IV, whose layout is written.
        plain: `.csv` instead of `.csv.gz`.
        other_events: rows of chartevents that no variable uses.

    Raises:
        UserError: too few stays for three splits, a negative number, or `out` holds something else.
    """
    if stays < FEWEST or seed < 0 or other_events < 0:
        raise UserError(f"--stays must be at least {FEWEST}, for three splits, --seed and --other-events at least 0; "
                        f"given: {stays}, {seed} and {other_events}.")  # fmt: skip
    if out.exists() and not (out / "expected.json").is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there and is no simulated cohort; it would be replaced. Give another --out.")
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex}.partial")
    writer = Writer(temporary, release, plain)
    random = np.random.default_rng(seed)
    try:
        plan = make_plan(stays, random)
        expected = _write_everything(writer, plan, random)
        if other_events:
            columns, path = writer.columns("icu/chartevents"), writer.path("icu/chartevents")
            append_other_events(path, columns, plan.stays, other_events, seed)
        write_json(temporary / "expected.json", expected)
        _publish(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_everything(writer: Writer, plan: Plan, random: np.random.Generator) -> dict[str, Any]:
    """Write every table and file; returns what is expected."""
    stays, severity = plan.stays, plan.severity
    expected = [StayExpected("", s.stay_id, s.subject_id) for s in _rows(stays)]
    for wanted, death in zip(expected, stays["death"], strict=True):
        wanted.died.update(dict.fromkeys(MORTALITY, int(death)))
    cases, splits = make_cases(writer.root, random)
    rows = {name: pd.DataFrame(found) for name, found in cases.rows.items()}
    charts, labs = bulk_charts(stays, severity["ehr"], random), bulk_labs(stays, severity["ehr"], random)
    codes = bulk_codes(stays, severity["ehr"], expected, random)
    films = bulk_films(writer.root, stays, severity["cxr"], expected, random)
    notes, details = bulk_notes(stays, severity["txt"], expected, random)
    writer.write("hosp/patients", [_patients(stays, writer.release), rows["hosp/patients"]], ["subject_id"])
    writer.write("hosp/admissions", [_admissions(stays), rows["hosp/admissions"]], ["subject_id", "hadm_id"])
    writer.write("icu/icustays", [_stays(stays), rows["icu/icustays"]], ["subject_id", "stay_id"])
    writer.write("hosp/diagnoses_icd", [codes, rows["hosp/diagnoses_icd"]], ["subject_id", "hadm_id", "seq_num"])
    writer.write("icu/chartevents", [charts, rows["icu/chartevents"]], ["subject_id"])
    writer.write("hosp/labevents", [labs, rows["hosp/labevents"]], ["subject_id", "charttime"])
    writer.write(METADATA, [films, rows["metadata"]], ["subject_id", "study_id"])
    writer.write(CHEXPERT, [_labelled(films), rows["chexpert"]], ["subject_id", "study_id"])
    _write_notes(writer, notes, details, cases, rows, stays)
    _write_dictionaries(writer)
    _write_lists(writer.root, cases, splits)
    return summarise([*expected, *cases.expected], splits)


def _write_notes(
    writer: Writer,
    notes: pd.DataFrame,
    details: pd.DataFrame,
    cases: Cases,
    rows: dict[str, pd.DataFrame],
    stays: pd.DataFrame,
) -> None:
    own_notes, own_details = note_frames(cases.rows["notes"])
    writer.write("note/radiology", [notes, own_notes], ["subject_id", "note_seq"])
    writer.write("note/radiology_detail", [details, own_details], ["subject_id", "note_id"])
    columns = ["subject_id", "hadm_id", "intime", "outtime", "death"]
    summaries = [discharge_frames(frame[columns]) for frame in (stays, rows["icu/icustays"])]
    writer.write("note/discharge", [summary for summary, _ in summaries], ["subject_id", "hadm_id"])
    writer.write("note/discharge_detail", [detail for _, detail in summaries], ["subject_id", "note_id"])


def _write_dictionaries(writer: Writer) -> None:
    items, lab_items = item_frames()
    writer.write("icu/d_items", [items], ["itemid"])
    writer.write("hosp/d_labitems", [lab_items], ["itemid"])
    writer.write("hosp/d_icd_diagnoses", [dictionary()], ["icd_version", "icd_code"])


def _write_lists(root: Path, cases: Cases, splits: dict[str, str]) -> None:
    """Write split lists as MedFuse's: rows of a subject and 0 or 1, not of every subject."""
    subject = {str(wanted.stay): wanted.subject for wanted in cases.expected}
    for name in ("test", "valid"):
        lines = [f"{subject[stay]},{int(split == name)}" for stay, split in splits.items() if split != "train"]
        path = root / "splits" / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")


def _publish(temporary: Path, out: Path) -> None:
    """Rename; without a flush of every small file, which takes longer than simulating them again."""
    old = out.with_name(f".{out.name}.{uuid.uuid4().hex}.old.partial")
    if out.exists():
        out.rename(old)
    temporary.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _patients(stays: pd.DataFrame, release: Release) -> pd.DataFrame:
    died = stays["outtime"].where(stays["death"] == 1).groupby(stays["subject_id"]).max()
    first = stays.drop_duplicates("subject_id")
    years = ["2011 - 2013"] * (len(first) - 1) + ["2020 - 2022" if release == "3.1" else "2011 - 2013"]
    frame = first[["subject_id", "anchor_age", "anchor_year"]].assign(anchor_year_group=years)
    frame["gender"] = np.where(first["subject_id"] % 2 == 0, "F", "M")
    return frame.assign(dod=died.reindex(first["subject_id"]).dt.strftime("%Y-%m-%d").to_numpy())


def _admissions(stays: pd.DataFrame) -> pd.DataFrame:
    """Return admissions; the dead leave the hospital with the unit."""
    died = stays["death"] == 1
    fixed = {"admission_type": "EW EMER.", "admit_provider_id": "P00SIM", "admission_location": "EMERGENCY ROOM"}
    fixed |= {"insurance": "Other", "language": "ENGLISH", "race": "UNKNOWN"}
    return stays[["subject_id", "hadm_id", "admittime"]].assign(
        dischtime=stays["outtime"].where(died, stays["outtime"] + pd.Timedelta(hours=30)),
        deathtime=stays["outtime"].where(died),
        discharge_location=np.where(died, "DIED", "HOME"),
        edregtime=stays["admittime"] - pd.Timedelta(hours=4),
        edouttime=stays["admittime"],
        hospital_expire_flag=stays["death"],
        **fixed,
    )


def _stays(stays: pd.DataFrame) -> pd.DataFrame:
    columns = ["subject_id", "hadm_id", "stay_id", "intime", "outtime", "los"]
    return stays[columns].assign(first_careunit=UNIT, last_careunit=UNIT)


def _labelled(films: pd.DataFrame) -> pd.DataFrame:
    return films[["subject_id", "study_id"]].drop_duplicates().assign(Edema=1.0)


def _rows(frame: pd.DataFrame) -> Iterable[Any]:
    return frame.itertuples()
