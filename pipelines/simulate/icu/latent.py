"""What the ordinary stays of the simulated cohort are: latent severities, outcomes, missingness, times.

Each modality sees its own severity: a part shared by all and a part of its own. Death follows the sum of the three, so
one modality predicts it imperfectly and all together clearly better. About a quarter of the stays end in death, more
than in reality, so that a few hundred stays suffice for training.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

MODALITIES = ("ehr", "cxr", "txt")
SHARED_SD, NOISE_SCALE, DEATHS = 0.5, 0.45, 0.25
EARLIEST = pd.Timestamp("2150-01-01")


@dataclass(frozen=True)
class Plan:
    """What is simulated."""

    stays: pd.DataFrame
    """One row a stay; each passes every cohort rule."""
    severity: dict[str, np.ndarray]
    """What each modality sees of the severity, [N]."""


def make_plan(stays: int, random: np.random.Generator) -> Plan:
    """Draw the stays."""
    shared = random.normal(0, SHARED_SD, stays)
    severity = {name: shared + random.normal(0, 1, stays) for name in MODALITIES}
    score = np.sum([severity[name] for name in MODALITIES], axis=0) + random.logistic(0, NOISE_SCALE, stays)
    death = score > np.quantile(score, 1 - DEATHS)
    frame = pd.DataFrame({"death": death.astype(int)})
    number = _draw_subjects(frame)
    frame["subject_id"] = 10_000_000 + number * 7
    frame["hadm_id"] = 20_000_000 + np.arange(stays) * 3
    frame["stay_id"] = 30_000_000 + np.arange(stays) * 5
    _draw_times(frame, random)
    frame["anchor_year"] = frame["admittime"].dt.year
    frame["anchor_age"] = random.integers(30, 91, stays)
    # whether a film is taken, and a report written, depends weakly on how ill the patient is
    frame["image"] = random.random(stays) < 0.70 + 0.06 * np.clip(shared, -1, 1)
    frame["note"] = random.random(stays) < 0.75 + 0.05 * np.clip(shared, -1, 1)
    return Plan(frame, severity)


def _draw_subjects(frame: pd.DataFrame) -> np.ndarray:
    """Every fourth stay is a second admission of the subject before it, who survived the first."""
    survived = frame["death"] == 0
    second = survived.shift(1, fill_value=False) & (np.arange(len(frame)) % 4 == 1)
    frame["second"] = second
    return np.cumsum(~second.to_numpy()) - 1


def _draw_times(frame: pd.DataFrame, random: np.random.Generator) -> None:
    total = len(frame)
    days = random.integers(0, 3000, total)
    later = random.integers(400, 700, total)  # admissions of a subject never overlap
    days = np.where(frame["second"], np.roll(days, 1) + later, days)
    frame["admittime"] = EARLIEST + pd.to_timedelta(days * 86400 + random.integers(0, 80_000, total), unit="s")
    frame["intime"] = frame["admittime"] + pd.to_timedelta(random.integers(3600, 36_000, total), unit="s")
    frame["hours"] = random.uniform(50, 200, total).round(2)
    frame["outtime"] = (frame["intime"] + pd.to_timedelta(frame["hours"], unit="h")).dt.round("s")
    frame["los"] = (frame["outtime"] - frame["intime"]).dt.total_seconds() / 86400
