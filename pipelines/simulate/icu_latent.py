"""What the simulated ICU cohort is: latent severities, outcomes, missingness, times, and the stays to leave out.

Each modality sees its own severity: a part shared by all and a part of its own. Death follows the sum of the three, so
one modality predicts it imperfectly and all together clearly better. About a quarter of the stays end in death, more
than in reality, so that a few hundred stays suffice for training.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

MODALITIES = ("ehr", "cxr", "txt")
SHARED_SD, NOISE_SCALE, DEATHS = 0.5, 0.45, 0.25
# kinds of stays that the preparation must leave out, in the order of its rules
EXCLUDED = ("transfer", "two_stays", "backwards", "no_outtime", "minor", "short", "no_event", "early_events")
PER_KIND = 3
# the first kept stays are one of each of these oddities, which must not lead to a loss
CASES = (
    *("odd_values", "exact_window", "turned_18", "transferred_sibling"),
    *("truncated_film", "absent_film", "blank_report", "died_after_discharge"),
)
EARLIEST = pd.Timestamp("2150-01-01")


@dataclass(frozen=True)
class Plan:
    """What is simulated."""

    stays: pd.DataFrame
    """One row a stay; those of kind `kept` pass every cohort rule."""
    severity: dict[str, np.ndarray]
    """What each modality sees of the severity, [N]."""


def make_plan(stays: int, random: np.random.Generator) -> Plan:
    """Draw `stays` stays to keep and `PER_KIND` of each kind to leave out."""
    kind = np.array(["kept"] * stays + [name for name in EXCLUDED for _ in range(PER_KIND)])
    case = np.array([*CASES, *[""] * (len(kind) - len(CASES))])
    shared = random.normal(0, SHARED_SD, len(kind))
    severity = {name: shared + random.normal(0, 1, len(kind)) for name in MODALITIES}
    score = np.sum([severity[name] for name in MODALITIES], axis=0) + random.logistic(0, NOISE_SCALE, len(kind))
    death = (score > np.quantile(score, 1 - DEATHS)) & (case != "died_after_discharge")
    frame = pd.DataFrame({"kind": kind, "case": case, "death": death.astype(int)})
    number = _draw_subjects(frame)
    frame["subject_id"] = 10_000_000 + number * 7
    frame["hadm_id"] = 20_000_000 + np.arange(len(kind)) * 3
    frame["stay_id"] = 30_000_000 + np.arange(len(kind)) * 5
    _draw_times(frame, random)
    _draw_ages(frame, random)
    # whether a film is taken, and a report written, depends weakly on how ill the patient is
    broken = np.isin(case, ("truncated_film", "absent_film"))
    frame["image"] = (random.random(len(kind)) < 0.70 + 0.06 * np.clip(shared, -1, 1)) & ~broken
    frame["note"] = (random.random(len(kind)) < 0.75 + 0.05 * np.clip(shared, -1, 1)) & (case != "blank_report")
    return Plan(frame, severity)


def _draw_subjects(frame: pd.DataFrame) -> np.ndarray:
    """Every fourth plain stay is a second admission of the subject before it, who survived the first."""
    plain = (frame["kind"] == "kept") & (frame["case"] == "")
    survived = (frame["death"] == 0) & plain
    second = plain & survived.shift(1, fill_value=False) & (np.arange(len(frame)) % 4 == 1)
    frame["second"] = second
    return np.cumsum(~second.to_numpy()) - 1


def _draw_times(frame: pd.DataFrame, random: np.random.Generator) -> None:
    total = len(frame)
    days = random.integers(0, 3000, total)
    later = random.integers(400, 700, total)  # admissions of a subject never overlap
    days = np.where(frame["second"], np.roll(days, 1) + later, days)
    frame["admittime"] = EARLIEST + pd.to_timedelta(days * 86400 + random.integers(0, 80_000, total), unit="s")
    frame["intime"] = frame["admittime"] + pd.to_timedelta(random.integers(3600, 36_000, total), unit="s")
    hours = np.where(frame["kind"] == "short", random.uniform(10, 47.9, total), random.uniform(50, 200, total))
    hours[frame["case"] == "exact_window"] = 48
    hours[frame["kind"] == "backwards"] = -3
    hours[np.flatnonzero(frame["kind"] == "short")[:1]] = 47.99
    frame["outtime"] = (frame["intime"] + pd.to_timedelta(hours, unit="h")).dt.round("s")
    frame.loc[frame["kind"] == "no_outtime", "outtime"] = pd.NaT
    frame["los"] = (frame["outtime"] - frame["intime"]).dt.total_seconds() / 86400


def _draw_ages(frame: pd.DataFrame, random: np.random.Generator) -> None:
    """Set the age in the anchor year, which is the year of a subject's first admission but for one stay."""
    frame["anchor_year"] = frame["admittime"].dt.year
    frame["anchor_age"] = np.where(frame["kind"] == "minor", 16, random.integers(30, 91, len(frame)))
    adult_now = frame["case"] == "turned_18"
    frame.loc[adult_now, "anchor_age"] = 17
    frame.loc[adult_now, "anchor_year"] -= 1
