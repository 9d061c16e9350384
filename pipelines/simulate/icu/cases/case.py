"""How an odd stay is written down: its rows, and beside them what a correct preparation makes of it.

Each case is a subject of its own. A stay has one usable heart rate unless said otherwise, so that a case shows one
thing. `expect` states outcomes by run; nothing here asks the preparation.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipelines.simulate.icu.codes import OTHER, code_rows
from pipelines.simulate.icu.expected import MORTALITY, PHENOTYPING, RUNS, StayExpected
from pipelines.simulate.icu.images import FilmFile, film_row, write_film, write_report
from pipelines.simulate.icu.notes import Note, note_row

UNIT, OTHER_UNIT = "Medical Intensive Care Unit (MICU)", "Surgical Intensive Care Unit (SICU)"
START = pd.Timestamp("2170-03-01 06:00:00")
PULSE = (220045, "80", 80.0)


@dataclass
class Cases:
    """Rows of every odd stay by table, and the expectations."""

    root: Path
    random: np.random.Generator
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    expected: list[StayExpected] = field(default_factory=list)
    number: int = 0

    def add(self, table: str, **row: Any) -> None:
        """Add a row to a table."""
        self.rows.setdefault(table, []).append(row)

    def next_number(self) -> int:
        """Return a number that no other row has."""
        self.number += 1
        return self.number

    def subject(self, age: int = 60, anchor_year: int = START.year, dod: str = "") -> "Subject":
        """Start a subject, of an age in the anchor year."""
        subject = Subject(self, 19_000_000 + self.next_number())
        patient = {"gender": "F", "anchor_age": age, "anchor_year": anchor_year, "anchor_year_group": "2011 - 2013"}
        self.add("hosp/patients", subject_id=subject.id, **patient, dod=dod)
        return subject

    def stay(self, name: str, hours: float = 60, **subject: Any) -> "Stay":
        """Add a subject with one ordinary admission and stay."""
        return self.subject(**subject).admission().stay(name, hours)


@dataclass
class Subject:
    """A patient."""

    cases: Cases
    id: int

    def admission(
        self,
        start: pd.Timestamp = START,
        days: float = 12,
        flag: int = 0,
        died: pd.Timestamp | None = None,
        codes: list[tuple[str, int]] | None = None,
    ) -> "Admission":
        """Add an admission, coded as of no phenotype unless codes are given."""
        admission = Admission(self, 29_000_000 + self.cases.next_number(), start, flag)
        end = start + pd.Timedelta(days=days)
        self.cases.add(
            "hosp/admissions",
            **{"subject_id": self.id, "hadm_id": admission.id, "admittime": start, "dischtime": end},
            **{"deathtime": died, "hospital_expire_flag": flag},
        )
        rows = code_rows(self.id, admission.id, [(OTHER[10], 10)] if codes is None else codes)
        for row in rows:
            self.cases.add("hosp/diagnoses_icd", **row)
        return admission


@dataclass
class Admission:
    """A hospital admission."""

    subject: Subject
    id: int
    start: pd.Timestamp
    flag: int

    def stay(
        self, name: str, hours: float | None = 60, after: float = 5, moved: bool = False, los: float | None = None
    ) -> "Stay":
        """Add a stay in the unit.

        Args:
            name: of the case.
            hours: length; None: no end.
            after: hours from admission to the hospital.
            moved: it ends in another unit.
            los: days in the table; NaN: none; None: those of `hours`.
        """
        cases = self.subject.cases
        intime = self.start + pd.Timedelta(hours=after)
        wanted = StayExpected(name, 39_000_000 + cases.next_number(), self.subject.id)
        cases.expected.append(wanted)
        length = los if los is not None else np.nan if hours is None else hours / 24
        cases.add(
            "icu/icustays",
            **{"subject_id": self.subject.id, "hadm_id": self.id, "stay_id": wanted.stay, "first_careunit": UNIT},
            **{"last_careunit": OTHER_UNIT if moved else UNIT, "intime": intime, "los": length},
            outtime=None if hours is None else (intime + pd.Timedelta(hours=hours)).round("s"),
            death=self.flag,
        )
        wanted.died.update(dict.fromkeys(MORTALITY, self.flag))
        wanted.groups.update({run: [] for run in PHENOTYPING})
        for reasons in (wanted.film_reason, wanted.text_reason):
            reasons.update(dict.fromkeys(RUNS, "not_recorded"))
        stay = Stay(cases, self, wanted, intime)
        stay.chart(0.5, *PULSE)
        if hours is not None and 0 < hours < 48:
            stay.drop("stay of 48 h", MORTALITY)
        return stay


@dataclass
class Stay:
    """A stay in the unit; hours count from its start."""

    cases: Cases
    admission: Admission
    wanted: StayExpected
    intime: pd.Timestamp

    def at(self, hour: float | None) -> pd.Timestamp | None:
        """Return the time of an hour."""
        return None if hour is None else (self.intime + pd.Timedelta(hours=hour)).round("s")

    def drop(self, step: str, runs: tuple[str, ...] = RUNS) -> "Stay":
        """Expect that a step leaves it out."""
        self.wanted.dropped.update(dict.fromkeys(runs, step))
        return self

    def no_events(self) -> "Stay":
        """Take the usable heart rate back."""
        self.cases.rows["icu/chartevents"] = [
            row for row in self.cases.rows["icu/chartevents"] if row["stay_id"] != self.wanted.stay
        ]
        return self

    def chart(
        self, hour: float, item: int, text: str, number: float | None, stored: float | None = None, own: str = "own"
    ) -> "Stay":
        """Add a bedside value; `own`: the stay that its row names, own, none or other."""
        stay = {"own": self.wanted.stay, "none": None, "other": 38_999_999}[own]
        ids = {"subject_id": self.admission.subject.id, "hadm_id": self.admission.id, "stay_id": stay}
        value = {"itemid": item, "value": text, "valuenum": number, "valueuom": "", "warning": 0}
        known = self.at(hour + 0.1 if stored is None else stored)
        self.cases.add("icu/chartevents", **ids, charttime=self.at(hour), storetime=known, **value)
        return self

    def lab(
        self, hour: float, item: int, text: str, number: float | None, stored: float | None = None, own: str = "own"
    ) -> "Stay":
        """Add a laboratory value; `own`: the admission that its row names, own, none or other."""
        admission = {"own": self.admission.id, "none": None, "other": 28_999_999}[own]
        known = self.at(hour + 1 if stored is None else stored)
        ids = {"subject_id": self.admission.subject.id, "hadm_id": admission, "itemid": item}
        times = {"charttime": self.at(hour), "storetime": known}
        self.cases.add("hosp/labevents", **ids, **times, value=text, valuenum=number, valueuom="")
        return self

    def cell(self, channel: str, place: int, value: float | None, runs: tuple[str, ...]) -> "Stay":
        """Expect a value in a bin, None: not observed."""
        self.wanted.cells.append({"runs": list(runs), "channel": channel, "bin": place, "value": value})
        return self

    def film(
        self,
        hour: float,
        view: str = "AP",
        file: FilmFile = "jpeg",
        report: str | None = None,
        study: int | None = None,
        time: float | None = None,
        labelled: bool = True,
        twice: bool = False,
    ) -> tuple[str, int]:
        """Add a film; returns its DICOM id (later films have larger ones) and study id.

        Args:
            hour: when it is taken.
            view: ViewPosition.
            file: what the file holds.
            report: of its study.
            study: that of another film; None: a new one.
            time: StudyTime as written, where not that of `hour`.
            labelled: whether the study has a CheXpert row.
            twice: whether its metadata row is repeated.
        """
        number, subject = self.cases.next_number(), self.admission.subject.id
        dicom = "-".join(f"{part:08x}" for part in (0xF0000000 + number, 1, 2, 3, 4))
        study = 59_000_000 + number if study is None else study
        write_film(self.cases.root, subject, study, dicom, 0.0, file, self.cases.random)
        write_report(self.cases.root, subject, study, report)
        taken = self.at(hour)
        assert taken is not None
        row = film_row(dicom, subject, study, view, taken) | ({} if time is None else {"StudyTime": time})
        for _ in range(2 if twice else 1):
            self.cases.add("metadata", **row)
        if labelled:
            self.cases.add("chexpert", subject_id=subject, study_id=study, Edema=-1.0)
        return dicom, study

    def note(self, note: Note, admission_known: bool = True) -> "Stay":
        """Add a radiology note."""
        subject, admission = self.admission.subject.id, self.admission.id if admission_known else None
        self.cases.add("notes", **note_row(note, subject, admission, self.intime, self.cases.next_number()))
        return self

    def expect_film(self, dicom: str, runs: tuple[str, ...]) -> "Stay":
        """Expect a film."""
        for run in runs:
            self.wanted.film[run] = dicom
            self.wanted.film_reason.pop(run, None)
        return self

    def expect_no_film(self, reason: str, runs: tuple[str, ...] = RUNS) -> "Stay":
        """Expect no film, for a reason."""
        self.wanted.film_reason.update(dict.fromkeys(runs, reason))
        return self

    def expect_text(self, text: str, runs: tuple[str, ...]) -> "Stay":
        """Expect a text."""
        for run in runs:
            self.wanted.text[run] = text
            self.wanted.text_reason.pop(run, None)
        return self

    def expect_no_text(self, reason: str, runs: tuple[str, ...]) -> "Stay":
        """Expect no text, for a reason."""
        self.wanted.text_reason.update(dict.fromkeys(runs, reason))
        return self
