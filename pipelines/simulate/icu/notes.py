"""Radiology reports and discharge summaries of the simulated cohort.

A report states findings whose chance depends on severity, never the outcome. Misleading on purpose are reports from
before admission to the unit, reports stored after the first two days, addenda and examinations of the head. Discharge
summaries state the outcome and carry a canary word: a preparation that lets them reach its text input leaks.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pipelines.simulate.icu.expected import MF, PF, StayExpected

CANARY = "canarydischarge"
CHEST, HEAD = "CHEST (PORTABLE AP)", "CT HEAD W/O CONTRAST"
DELAY_HOURS = 24  # until a report without a time of storing counts as known
# finding when present, when absent, slope of severity in its log odds
FINDINGS = (
    ("There is a large right pleural effusion.", "No pleural effusion is seen.", 1.4),
    ("Diffuse bilateral opacities are concerning for edema.", "The lungs are clear.", 1.3),
    ("Increasing consolidation in the left lower lobe.", "No focal consolidation.", 1.3),
    ("The cardiac silhouette is enlarged.", "Heart size is normal.", 1.0),
    ("Endotracheal tube terminates above the carina.", "No support devices.", 1.2),
    ("Findings have worsened since the prior study.", "Findings are unchanged since the prior study.", 1.3),
)


@dataclass(frozen=True)
class Note:
    """One radiology note, charted and stored so many hours after admission to the unit."""

    hour: float
    stored: float | None
    text: str | None
    kind: str = "RR"
    exam: str = CHEST

    def used(self, hours: float) -> bool:
        """Whether it is a chest report of the first hours, known by their end."""
        known = self.hour + DELAY_HOURS if self.stored is None else self.stored
        return self.kind == "RR" and self.exam == CHEST and self.hour >= 0 and known <= hours


def bulk_notes(
    stays: pd.DataFrame, severity: np.ndarray, expected: list[StayExpected], random: np.random.Generator
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return radiology notes and their details; fills in what is expected."""
    rows: list[dict[str, Any]] = []
    plan: list[Any] = list(stays.itertuples())
    for number, (stay, level, wanted) in enumerate(zip(plan, severity, expected, strict=True)):
        notes = [*_usable(stay, number, float(level), random), *_misleading(number, float(level), random)]
        for sequence, note in enumerate(notes, start=1):
            admission = None if number % 4 == 2 else stay.hadm_id  # often unknown in the real table
            rows.append(note_row(note, stay.subject_id, admission, stay.intime, number * 10 + sequence))
        for run, hours in ((MF, 48.0), (PF, stay.hours)):
            texts = [note.text for note in sorted(notes, key=lambda note: note.hour) if note.used(hours)]
            late = [n for n in notes if n.kind == "RR" and n.exam == CHEST and 0 <= n.hour <= stay.hours]
            if texts:
                wanted.text[run] = "\n\n".join(map(str, texts))
            else:
                wanted.text_reason[run] = "after_cutoff" if late else "not_recorded"
    return note_frames(rows)


def note_row(note: Note, subject: int, admission: int | None, intime: pd.Timestamp, sequence: int) -> dict[str, Any]:
    """Return a row of the radiology table, with the examination for the table of details."""
    stored = None if note.stored is None else (intime + pd.Timedelta(hours=note.stored)).round("s")
    return {
        "note_id": f"{subject}-{note.kind}-{sequence}",
        "subject_id": subject,
        "hadm_id": admission,
        "note_type": note.kind,
        "note_seq": sequence,
        "charttime": (intime + pd.Timedelta(hours=note.hour)).round("s"),
        "storetime": stored,
        "text": note.text,
        "exam": note.exam,
    }


def note_frames(rows: list[dict[str, Any]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the radiology table and its details."""
    frame = pd.DataFrame(rows)
    frame["storetime"] = pd.to_datetime(frame["storetime"])
    detail = pd.DataFrame({"note_id": frame["note_id"], "subject_id": frame["subject_id"], "field_name": "exam_name"})
    return frame, detail.assign(field_value=frame["exam"], field_ordinal=1)


def _usable(stay: Any, number: int, level: float, random: np.random.Generator) -> list[Note]:
    """Return reports known at the prediction time."""
    if not stay.note:
        return []
    hour = round(random.uniform(2, 22 if number % 9 == 0 else 42), 3)
    notes = [Note(hour, None if number % 9 == 0 else hour + 2, report(level, random))]
    if number % 5 == 1:
        notes.append(Note(hour / 2, hour / 2 + 1, report(level, random)))
    return notes


def _misleading(number: int, level: float, random: np.random.Generator) -> list[Note]:
    late = round(random.uniform(48.01, 80), 3)
    text = report(-level, random)
    return [
        [Note(late, 90.0, text)],
        [Note(47.0, 49.0, text)],
        [Note(30.0, 31.0, "ADDENDUM: " + text, kind="AR")],
        [Note(-5.0, -4.0, text)],
        [Note(25.0, None, text)],  # counts as known an hour after the prediction time
        [Note(20.0, 21.0, text.replace(CHEST, HEAD), exam=HEAD)],
    ][number % 6]


def discharge_frames(stays: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the discharge summaries and their details, of stays with subject_id, hadm_id, intime, outtime, death."""
    stays = stays.drop_duplicates("hadm_id")
    left = stays["outtime"].fillna(stays["intime"]).dt.normalize()
    outcome = np.where(stays["death"] == 1, "Expired", "Home")
    frame = stays[["subject_id", "hadm_id"]].assign(
        note_id=stays["subject_id"].astype(str) + "-DS-" + stays["hadm_id"].astype(str),
        note_type="DS",
        note_seq=1,
        charttime=left,
        storetime=left,
        text=[f"{CANARY}\nDischarge Disposition: {word}" for word in outcome],
    )
    detail = frame[["note_id", "subject_id"]].assign(field_name="author", field_value="___", field_ordinal=1)
    return frame, detail


def report(level: float, random: np.random.Generator) -> str:
    """Return a chest report of a severity."""
    chance = [1 / (1 + np.exp(-(slope * level - 0.4))) for _, _, slope in FINDINGS]
    present = random.random(len(FINDINGS)) < chance
    sentences = [yes if seen else no for (yes, no, _), seen in zip(FINDINGS, present, strict=True)]
    order = random.permutation(len(sentences))
    return f'EXAMINATION: {CHEST}\n\nFINDINGS: "' + " ".join(sentences[i] for i in order) + '"'
