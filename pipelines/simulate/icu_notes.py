"""Radiology reports and discharge notes of the simulated cohort.

A report states findings whose chance depends on severity, never the outcome. Discharge notes state the outcome, and
carry a canary word: a preparation that lets either reach its text input leaks.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from pipelines.simulate.icu_tables import write_csv

CANARY = "canarydischarge"
# finding when present, when absent, slope of severity in its log odds
FINDINGS = (
    ("There is a large right pleural effusion.", "No pleural effusion is seen.", 1.3),
    ("Diffuse bilateral opacities are concerning for edema.", "The lungs are clear.", 1.2),
    ("Increasing consolidation in the left lower lobe.", "No focal consolidation.", 1.2),
    ("The cardiac silhouette is enlarged.", "Heart size is normal.", 0.8),
    ("Endotracheal tube terminates above the carina.", "No support devices.", 1.0),
    ("Findings have worsened since the prior study.", "Findings are unchanged since the prior study.", 1.1),
)


def write_notes(root: Path, stays: pd.DataFrame, severity: np.ndarray, random: np.random.Generator) -> None:
    """Write note/radiology, its detail table, and note/discharge."""
    rows = []
    for number, (stay, level) in enumerate(zip(stays.itertuples(), severity, strict=True)):
        if not stay.note:
            continue
        times = [random.uniform(2, 40)] + ([random.uniform(50, 80)] if number % 6 == 0 else [])
        for sequence, hour in enumerate(times, start=1):
            chart = (stay.intime + pd.Timedelta(hours=hour)).round("s")
            late = hour > 48  # a report after the prediction time: misleading on purpose
            text = _report(-level if late else level, random)
            note = f"{stay.subject_id}-RR-{number * 10 + sequence}"
            stored = chart + pd.Timedelta(hours=2)
            rows.append((note, stay.subject_id, stay.hadm_id, "RR", sequence, chart, stored, text))
    names = ["note_id", "subject_id", "hadm_id", "note_type", "note_seq", "charttime", "storetime", "text"]
    radiology = pd.DataFrame(rows, columns=names)
    write_csv(root / "note/radiology.csv.gz", dict(radiology.items()))
    detail = {"note_id": radiology["note_id"], "subject_id": radiology["subject_id"], "field_name": "exam_name"}
    write_csv(
        root / "note/radiology_detail.csv.gz", {**detail, "field_value": "CHEST (PORTABLE AP)", "field_ordinal": 1}
    )
    outcome = np.where(stays["death"] == 1, "Expired", "Home")
    discharge = {
        "note_id": stays["subject_id"].astype(str) + "-DS-" + stays["hadm_id"].astype(str),
        "subject_id": stays["subject_id"],
        "hadm_id": stays["hadm_id"],
        "note_type": "DS",
        "note_seq": 1,
        "charttime": stays["outtime"].dt.normalize(),
        "storetime": stays["outtime"].dt.normalize(),
        "text": [f"{CANARY} Discharge Disposition: {word}" for word in outcome],
    }
    write_csv(root / "note/discharge.csv.gz", discharge)


def _report(level: float, random: np.random.Generator) -> str:
    chance = [1 / (1 + np.exp(-(slope * level - 0.4))) for _, _, slope in FINDINGS]
    present = random.random(len(FINDINGS)) < chance
    sentences = [yes if seen else no for (yes, no, _), seen in zip(FINDINGS, present, strict=True)]
    order = random.permutation(len(sentences))
    return "EXAMINATION: CHEST (PORTABLE AP)\nFINDINGS: " + " ".join(sentences[i] for i in order)
