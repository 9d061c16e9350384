"""MIMIC's tables: their columns in each release, and how one is written.

Bytes depend on the content alone: gzip without a time stamp, rows in a stated order.
"""

import gzip
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

Release = Literal["1.0", "2.0", "2.2", "3.1"]
NOTE = "note_id subject_id hadm_id note_type note_seq charttime storetime text"
DETAIL = "note_id subject_id field_name field_value field_ordinal"
FINDINGS = (
    *("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture"),
    *("Lung Lesion", "Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other", "Pneumonia"),
    *("Pneumothorax", "Support Devices"),
)
METADATA, CHEXPERT = "mimic-cxr-jpg/mimic-cxr-2.0.0-metadata", "mimic-cxr-jpg/mimic-cxr-2.0.0-chexpert"
COLUMNS: dict[str, tuple[str, ...]] = {
    name: tuple(columns.split())
    for name, columns in {
        "hosp/patients": "subject_id gender anchor_age anchor_year anchor_year_group dod",
        "hosp/admissions": "subject_id hadm_id admittime dischtime deathtime admission_type admit_provider_id "
        "admission_location discharge_location insurance language marital_status race edregtime edouttime "
        "hospital_expire_flag",
        "hosp/diagnoses_icd": "subject_id hadm_id seq_num icd_code icd_version",
        "hosp/d_icd_diagnoses": "icd_code icd_version long_title",
        "hosp/d_labitems": "itemid label fluid category",
        "hosp/labevents": "labevent_id subject_id hadm_id specimen_id itemid order_provider_id charttime storetime "
        "value valuenum valueuom ref_range_lower ref_range_upper flag priority comments",
        "icu/icustays": "subject_id hadm_id stay_id first_careunit last_careunit intime outtime los",
        "icu/chartevents": "subject_id hadm_id stay_id caregiver_id charttime storetime itemid value valuenum "
        "valueuom warning",
        "icu/d_items": "itemid label abbreviation linksto category unitname param_type lownormalvalue highnormalvalue",
        "note/radiology": NOTE,
        "note/radiology_detail": DETAIL,
        "note/discharge": NOTE,
        "note/discharge_detail": DETAIL,
        METADATA: "dicom_id subject_id study_id PerformedProcedureStepDescription ViewPosition Rows Columns StudyDate "
        "StudyTime ProcedureCodeSequence_CodeMeaning ViewCodeSequence_CodeMeaning "
        "PatientOrientationCodeSequence_CodeMeaning",
    }.items()
}
COLUMNS[CHEXPERT] = ("subject_id", "study_id", *FINDINGS)
NEW_IN_2_2 = ("caregiver_id", "order_provider_id", "admit_provider_id")
WHOLE = ("hadm_id", "stay_id", "hospital_expire_flag", "icd_version")  # ids may be unknown, yet are whole numbers


@dataclass(frozen=True)
class Writer:
    """Writes tables as a release has them."""

    root: Path
    release: Release
    plain: bool
    """`.csv`, not `.csv.gz`."""

    def path(self, name: str) -> Path:
        """Return the path of a table."""
        if self.release == "1.0" and name in ("hosp/patients", "hosp/admissions"):
            name = name.replace("hosp", "core")
        return self.root / f"{name}.csv{'' if self.plain else '.gz'}"

    def columns(self, name: str) -> tuple[str, ...]:
        """Return a table's columns."""
        old = self.release in ("1.0", "2.0")
        names = [c for c in COLUMNS[name] if not (old and c in NEW_IN_2_2)]
        return tuple("ethnicity" if c == "race" and self.release == "1.0" else c for c in names)

    def write(self, name: str, parts: Iterable[pd.DataFrame], order: list[str]) -> None:
        """Join the parts, put the rows in order and write the release's columns; those without values are empty."""
        frame = pd.concat([part for part in parts if len(part)], ignore_index=True)
        frame = frame.sort_values(order, kind="stable").reset_index(drop=True)
        if "labevent_id" in COLUMNS[name]:
            frame["labevent_id"] = frame["specimen_id"] = np.arange(1, len(frame) + 1)
        for column in [c for c in WHOLE if c in frame]:
            frame[column] = frame[column].astype("Int64")
        for column in map(str, frame.select_dtypes("datetime")):
            frame[column] = frame[column].dt.strftime("%Y-%m-%d %H:%M:%S")
        text = io.BytesIO()
        frame.rename(columns={"race": "ethnicity"} if self.release == "1.0" else {}).reindex(
            columns=list(self.columns(name))
        ).to_csv(text, index=False)
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.getvalue() if self.plain else gzip.compress(text.getvalue(), compresslevel=5, mtime=0))
