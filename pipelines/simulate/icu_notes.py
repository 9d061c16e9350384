"""Radiology reports and discharge notes of the simulated cohort.

A report states findings whose chance depends on severity, never the outcome. Misleading on purpose are reports from
before admission to the unit, reports stored after the prediction time, and addenda. Discharge notes state the outcome
and carry a canary word: a preparation that lets them reach its text input leaks.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipelines.simulate.icu_tables import write_csv

CANARY = "canarydischarge"
EXAM = "CHEST (PORTABLE AP)"
# finding when present, when absent, slope of severity in its log odds
FINDINGS = (
    ("There is a large right pleural effusion.", "No pleural effusion is seen.", 1.4),
    ("Diffuse bilateral opacities are concerning for edema.", "The lungs are clear.", 1.3),
    ("Increasing consolidation in the left lower lobe.", "No focal consolidation.", 1.3),
    ("The cardiac silhouette is enlarged.", "Heart size is normal.", 1.0),
    ("Endotracheal tube terminates above the carina.", "No support devices.", 1.2),
    ("Findings have worsened since the prior study.", "Findings are unchanged since the prior study.", 1.3),
)
COLUMNS = ["note_id", "subject_id", "hadm_id", "note_type", "note_seq", "charttime", "storetime", "text"]


def write_notes(root: Path, stays: pd.DataFrame, severity: np.ndarray, random: np.random.Generator) -> dict[str, int]:
    """Write radiology and discharge notes with their detail tables; returns the number of usable reports by stay id."""
    rows: list[tuple[Any, ...]] = []
    usable: dict[str, int] = {}
    plan: list[Any] = list(stays.itertuples())
    for number, (stay, level) in enumerate(zip(plan, severity, strict=True)):
        notes = _usable(stay, number, float(level), random)
        if stay.note:
            usable[str(stay.stay_id)] = len(notes)
        notes += _misleading(stay, number, float(level), random)
        for sequence, (hour, stored, kind, text) in enumerate(notes, start=1):
            chart = (stay.intime + pd.Timedelta(hours=hour)).round("s")
            store = None if stored is None else (stay.intime + pd.Timedelta(hours=stored)).round("s")
            admission = None if number % 4 == 2 else stay.hadm_id  # often unknown in the real table
            name = f"{stay.subject_id}-{kind}-{number * 10 + sequence}"
            rows.append((name, stay.subject_id, admission, kind, sequence, chart, store, text))
    frame = pd.DataFrame(rows, columns=COLUMNS)
    frame["hadm_id"] = frame["hadm_id"].astype("Int64")
    frame["storetime"] = pd.to_datetime(frame["storetime"])
    write_csv(root / "note/radiology.csv.gz", dict(frame.items()))
    detail = {"note_id": frame["note_id"], "subject_id": frame["subject_id"], "field_name": "exam_name"}
    write_csv(root / "note/radiology_detail.csv.gz", {**detail, "field_value": EXAM, "field_ordinal": 1})
    _write_discharge(root, stays)
    return usable


def _usable(stay: Any, number: int, level: float, random: np.random.Generator) -> list[tuple[Any, ...]]:
    """Return (hour, hour stored, type, text) of the reports known at the prediction time."""
    if stay.case == "blank_report":
        return [(5.0, 6.0, "RR", "___\n")]
    if not stay.note:
        return []
    hour = random.uniform(2, 42)
    notes: list[tuple[Any, ...]] = [(hour, None if number % 9 == 0 else hour + 2, "RR", _report(level, random))]
    if number % 5 == 1:
        notes.append((hour / 2, hour / 2 + 1, "RR", _report(level, random)))
    return notes


def _misleading(stay: Any, number: int, level: float, random: np.random.Generator) -> list[tuple[Any, ...]]:
    notes: list[tuple[Any, ...]] = []
    if number % 6 == 0:
        notes.append((random.uniform(48.01, 80), 90.0, "RR", _report(-level, random)))
    if number % 6 == 1:
        notes.append((47.0, 49.0, "RR", _report(-level, random)))
    if number % 6 == 2:
        notes.append((30.0, 31.0, "AR", "ADDENDUM: " + _report(-level, random)))
    if number % 6 == 3:
        notes.append((-5.0, -4.0, "RR", _report(-level, random)))
    if number % 6 == 4:
        notes.append((49.0, None, "RR", _report(-level, random)))
    return notes


def _write_discharge(root: Path, stays: pd.DataFrame) -> None:
    left = stays["outtime"].fillna(stays["intime"]).dt.normalize()
    name = stays["subject_id"].astype(str) + "-DS-" + stays["hadm_id"].astype(str)
    outcome = np.where(stays["death"] == 1, "Expired", "Home")
    columns = {
        "note_id": name,
        "subject_id": stays["subject_id"],
        "hadm_id": stays["hadm_id"],
        "note_type": "DS",
        "note_seq": 1,
        "charttime": left.dt.strftime("%Y-%m-%d 00:00:00"),
        "storetime": left.dt.strftime("%Y-%m-%d 00:00:00"),
        "text": [f"{CANARY}\nDischarge Disposition: {word}" for word in outcome],
    }
    write_csv(root / "note/discharge.csv.gz", columns)
    detail = {"note_id": name, "subject_id": stays["subject_id"], "field_name": "author"}
    write_csv(root / "note/discharge_detail.csv.gz", {**detail, "field_value": "___", "field_ordinal": 1})


def _report(level: float, random: np.random.Generator) -> str:
    chance = [1 / (1 + np.exp(-(slope * level - 0.4))) for _, _, slope in FINDINGS]
    present = random.random(len(FINDINGS)) < chance
    sentences = [yes if seen else no for (yes, no, _), seen in zip(FINDINGS, present, strict=True)]
    order = random.permutation(len(sentences))
    return f'EXAMINATION: {EXAM}\n\nFINDINGS: "' + " ".join(sentences[i] for i in order) + '"'
