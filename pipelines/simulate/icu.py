"""A simulated ICU cohort in MIMIC-IV v2.2's raw layout, so that everything can be tried without credentials.

A latent severity drives death, vitals, X-ray and report. Part of it is shared by all modalities and each also sees a
part of its own, so each alone predicts in-hospital mortality imperfectly and together they do clearly better. Images
and notes are missing for some stays. The cohort also holds stays that the preparation must leave out. `expected.json`
comes from the simulator's plan, never from the preparation. Same seed, same bytes.
"""

import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cache.errors import UserError
from cache.publish import publish_folder, write_json
from pipelines.simulate.icu_images import write_images
from pipelines.simulate.icu_notes import write_notes
from pipelines.simulate.icu_tables import write_csv, write_measurements

EXCLUDED = ("short", "transfer", "minor", "two_stays")
PER_KIND = 4  # stays of each kind that the preparation must leave out


@dataclass(frozen=True)
class Plan:
    """What is simulated: one row a stay."""

    stays: pd.DataFrame
    shared: np.ndarray
    """Latent severity that all modalities see, [N]."""
    own: dict[str, np.ndarray]
    """Latent severity that one modality alone sees, by modality, [N]."""


def simulate_icu(out: Path, stays: int, seed: int) -> None:
    """Write the cohort.

    Args:
        out: folder to write; replaced as a whole, once everything is there.
        stays: stays that the preparation keeps.
        seed: of everything.

    Raises:
        UserError: too few stays for three splits.
    """
    if stays < 20:
        raise UserError(f"--stays {stays} is too few for a train, valid and test split; at least 20.")
    random = np.random.default_rng(seed)
    plan = make_plan(stays, random)
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex}.partial")
    try:
        _write_admissions(temporary, plan)
        write_measurements(temporary, plan.stays, plan.shared + plan.own["ehr"], random)
        write_images(temporary, plan.stays, plan.shared + plan.own["cxr"], random)
        write_notes(temporary, plan.stays, plan.shared + plan.own["txt"], random)
        write_json(temporary / "expected.json", _expected(plan))
        publish_folder(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def make_plan(stays: int, random: np.random.Generator) -> Plan:
    """Draw latents, outcomes, missingness and times."""
    total = stays + len(EXCLUDED) * PER_KIND
    shared = random.normal(0, 0.8, total)
    own = {name: random.normal(0, 1.0, total) for name in ("ehr", "cxr", "txt")}
    severity = 1.3 * shared + sum(own.values())
    death = severity + random.logistic(0, 0.35, total) > np.quantile(severity, 0.7)
    kind = np.array(["kept"] * stays + [name for name in EXCLUDED for _ in range(PER_KIND)])
    hours = np.where(kind == "short", random.uniform(10, 47, total), random.uniform(50, 200, total))
    admitted = pd.Timestamp("2150-01-01") + pd.to_timedelta(random.integers(0, 3000, total), unit="D")
    intime = admitted + pd.to_timedelta(random.integers(60, 600, total), unit="m")
    frame = pd.DataFrame(
        {
            "subject_id": 10_000_000 + np.arange(total) // 2 * 7,  # some subjects have two admissions
            "hadm_id": 20_000_000 + np.arange(total) * 3,
            "stay_id": 30_000_000 + np.arange(total) * 5,
            "kind": kind,
            "death": death.astype(int),
            "admittime": admitted,
            "intime": intime,
            "outtime": (intime + pd.to_timedelta(hours, unit="h")).round("s"),
            "los": (hours / 24).round(4),
            "age": np.where(kind == "minor", 16, random.integers(30, 90, total)),
            "image": random.random(total) < 0.75 - 0.06 * np.clip(shared, -1, 1),
            "note": random.random(total) < 0.78 + 0.05 * np.clip(shared, -1, 1),
        }
    )
    frame.loc[kind == "minor", "subject_id"] = 15_000_000 + np.arange(PER_KIND)
    return Plan(frame, shared, own)


def _write_admissions(root: Path, plan: Plan) -> None:
    stays = plan.stays
    patients = stays.drop_duplicates("subject_id")
    discharged = stays["outtime"] + pd.Timedelta(hours=30)
    left = stays["outtime"].where(stays["death"] == 1, discharged)
    write_csv(
        root / "hosp/patients.csv.gz",
        {
            "subject_id": patients["subject_id"],
            "gender": np.where(patients["subject_id"] % 2 == 0, "F", "M"),
            "anchor_age": patients["age"],
            "anchor_year": patients["admittime"].dt.year,
            "anchor_year_group": "2011 - 2013",
            "dod": "",
        },
    )
    write_csv(
        root / "hosp/admissions.csv.gz",
        {
            "subject_id": stays["subject_id"],
            "hadm_id": stays["hadm_id"],
            "admittime": stays["admittime"],
            "dischtime": left,
            "deathtime": stays["outtime"].where(stays["death"] == 1),
            "admission_type": "EW EMER.",
            "race": "UNKNOWN",
            "hospital_expire_flag": stays["death"],
        },
    )
    codes = {"subject_id": stays["subject_id"], "hadm_id": stays["hadm_id"], "seq_num": 1}
    write_csv(root / "hosp/diagnoses_icd.csv.gz", {**codes, "icd_code": "J9601", "icd_version": 10})
    _write_stays(root, stays)


def _write_stays(root: Path, stays: pd.DataFrame) -> None:
    unit = "Medical Intensive Care Unit (MICU)"
    columns = pd.DataFrame(
        {
            "subject_id": stays["subject_id"],
            "hadm_id": stays["hadm_id"],
            "stay_id": stays["stay_id"],
            "first_careunit": unit,
            "last_careunit": np.where(stays["kind"] == "transfer", "Surgical Intensive Care Unit (SICU)", unit),
            "intime": stays["intime"],
            "outtime": stays["outtime"],
            "los": stays["los"],
        }
    )
    again = columns[stays["kind"].to_numpy() == "two_stays"].copy()
    again["stay_id"] += 1
    again["intime"] = again["outtime"] + pd.Timedelta(hours=5)
    again["outtime"] = again["intime"] + pd.Timedelta(hours=60)
    write_csv(root / "icu/icustays.csv.gz", dict(pd.concat([columns, again]).items()))


def _expected(plan: Plan) -> dict[str, object]:
    kept = plan.stays[plan.stays["kind"] == "kept"]
    return {
        "samples": len(kept),
        "excluded_stays": {kind: PER_KIND * (2 if kind == "two_stays" else 1) for kind in EXCLUDED},
        "deaths": int(kept["death"].sum()),
        "labels": {str(stay): int(death) for stay, death in zip(kept["stay_id"], kept["death"], strict=True)},
        "with_image": sorted(str(stay) for stay in kept.loc[kept["image"], "stay_id"]),
        "with_note": sorted(str(stay) for stay in kept.loc[kept["note"], "stay_id"]),
    }
