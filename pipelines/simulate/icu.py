"""A simulated ICU cohort in MIMIC-IV v2.2's raw layout, so that everything can be tried without credentials.

The plan (`icu_latent`) comes first; tables, X-rays and notes are written from it, and `expected.json` states from the
same plan, never from the preparation, what a correct preparation finds. Same seed, same bytes. 400 stays take a few
seconds.
"""

import shutil
import uuid
from pathlib import Path

import numpy as np
import pandas as pd

from cache.errors import UserError
from cache.publish import write_json
from pipelines.simulate.icu_images import write_images
from pipelines.simulate.icu_latent import EXCLUDED, PER_KIND, make_plan
from pipelines.simulate.icu_notes import write_notes
from pipelines.simulate.icu_tables import ODD_CELLS, write_csv, write_measurements

FEWEST = 20
UNIT, OTHER_UNIT = "Medical Intensive Care Unit (MICU)", "Surgical Intensive Care Unit (SICU)"
# rule of the preparation -> kinds that it removes
RULES = (
    ("no transfer", ("transfer",)),
    ("one stay per admission", ("two_stays",)),
    ("valid times", ("backwards", "no_outtime")),
    ("adult", ("minor",)),
    ("stay of 48 h", ("short",)),
    ("event in the window", ("no_event", "early_events")),
)


def simulate_icu(out: Path, stays: int, seed: int) -> None:
    """Write the cohort.

    Args:
        out: folder to write; replaced as a whole, once everything is there.
        stays: stays that the preparation keeps.
        seed: of everything, at least 0.

    Raises:
        UserError: too few stays for three splits, a negative seed, or `out` holds something else.
    """
    if stays < FEWEST or seed < 0:
        raise UserError(f"--stays must be at least {FEWEST}, for three splits, and --seed at least 0; "
                        f"given: {stays} and {seed}.")  # fmt: skip
    if out.exists() and not (out / "expected.json").is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there and is no simulated cohort; it would be replaced. Give another --out.")
    random = np.random.default_rng(seed)
    plan = make_plan(stays, random)
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex}.partial")
    try:
        _write_patients(temporary, plan.stays)
        _write_admissions(temporary, plan.stays)
        _write_stays(temporary, plan.stays)
        write_measurements(temporary, plan.stays, plan.severity["ehr"], random)
        films = write_images(temporary, plan.stays, plan.severity["cxr"], random)
        reports = write_notes(temporary, plan.stays, plan.severity["txt"], random)
        write_json(temporary / "expected.json", _expected(plan.stays, films, reports))
        _publish(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _publish(temporary: Path, out: Path) -> None:
    """Rename; without a flush of every small file, which takes longer than simulating them again."""
    old = out.with_name(f".{out.name}.{uuid.uuid4().hex}.old.partial")
    if out.exists():
        out.rename(old)
    temporary.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _write_patients(root: Path, stays: pd.DataFrame) -> None:
    died = stays["outtime"].where((stays["death"] == 1) | (stays["case"] == "died_after_discharge"))
    dod = died.groupby(stays["subject_id"]).max()
    first = stays.drop_duplicates("subject_id")
    columns = {
        "subject_id": first["subject_id"].to_numpy(),
        "gender": np.where(first["subject_id"] % 2 == 0, "F", "M"),
        "anchor_age": first["anchor_age"].to_numpy(),
        "anchor_year": first["anchor_year"].to_numpy(),
        "anchor_year_group": "2011 - 2013",
        "dod": dod.reindex(first["subject_id"]).dt.strftime("%Y-%m-%d").to_numpy(),
    }
    write_csv(root / "hosp/patients.csv.gz", columns)


def _write_admissions(root: Path, stays: pd.DataFrame) -> None:
    """Write admissions and their billing codes; the dead leave the hospital with the unit."""
    died = stays["death"] == 1
    known = stays["outtime"].fillna(stays["intime"] + pd.Timedelta(days=5))
    same_day = known + pd.Timedelta(minutes=1)  # discharged alive on the day of `dod`
    alive = (known + pd.Timedelta(hours=30)).where(stays["case"] != "died_after_discharge", same_day)
    columns = {
        "subject_id": stays["subject_id"],
        "hadm_id": stays["hadm_id"],
        "admittime": stays["admittime"],
        "dischtime": known.where(died, alive),
        "deathtime": known.where(died),
        "admission_type": "EW EMER.",
        "admit_provider_id": "P00SIM",
        "admission_location": "EMERGENCY ROOM",
        "discharge_location": np.where(died, "DIED", "HOME"),
        "insurance": "Other",
        "language": "ENGLISH",
        "marital_status": "",
        "race": "UNKNOWN",
        "edregtime": stays["admittime"] - pd.Timedelta(hours=4),
        "edouttime": stays["admittime"],
        "hospital_expire_flag": stays["death"],
    }
    write_csv(root / "hosp/admissions.csv.gz", columns)
    codes = {"subject_id": stays["subject_id"], "hadm_id": stays["hadm_id"], "seq_num": 1}
    write_csv(root / "hosp/diagnoses_icd.csv.gz", {**codes, "icd_code": "J9601", "icd_version": 10})


def _write_stays(root: Path, stays: pd.DataFrame) -> None:
    columns = stays[["subject_id", "hadm_id", "stay_id"]].copy()
    columns["first_careunit"] = UNIT
    columns["last_careunit"] = np.where(stays["kind"] == "transfer", OTHER_UNIT, UNIT)
    columns[["intime", "outtime", "los"]] = stays[["intime", "outtime", "los"]]
    both = columns[(stays["kind"] == "two_stays") | (stays["case"] == "transferred_sibling")].copy()
    both["stay_id"] += 1
    moved = both["hadm_id"].isin(stays.loc[stays["case"] == "transferred_sibling", "hadm_id"])
    both["last_careunit"] = np.where(moved, OTHER_UNIT, UNIT)
    both["intime"] = both["outtime"] + pd.Timedelta(hours=5)
    both["outtime"] = both["intime"] + pd.Timedelta(hours=60)
    both["los"] = 2.5
    write_csv(root / "icu/icustays.csv.gz", dict(pd.concat([columns, both]).items()))


def _expected(stays: pd.DataFrame, films: dict[str, str], reports: dict[str, int]) -> dict[str, object]:
    kept = stays[stays["kind"] == "kept"]
    names = kept["stay_id"].astype(str)
    removed = dict.fromkeys(EXCLUDED, PER_KIND)
    removed["transfer"] += int((stays["case"] == "transferred_sibling").sum())
    removed["two_stays"] *= 2
    left = len(kept) + sum(removed.values())
    steps: list[dict[str, object]] = [{"step": "ICU stays", "kept": left, "dropped": 0}]
    for step, kinds in RULES:
        lost = sum(removed[kind] for kind in kinds)
        left -= lost
        steps.append({"step": step, "kept": left, "dropped": lost})
    odd = str(names[kept["case"] == "odd_values"].iloc[0])
    return {
        "hours": 48,
        "steps": steps,
        "samples": len(kept),
        "deaths": int(kept["death"].sum()),
        "labels": dict(zip(names, kept["death"].tolist(), strict=True)),
        "subjects": dict(zip(names, kept["subject_id"].astype(str), strict=True)),
        "images": {stay: films[stay] for stay in sorted(set(films) & set(names))},
        "reports": {stay: reports[stay] for stay in sorted(set(reports) & set(names))},
        "cases": {case: str(stay) for case, stay in zip(kept["case"], names, strict=True) if case},
        "cells": [{"stay": odd, "channel": name, "bin": place, "value": value} for name, place, value in ODD_CELLS],
    }
