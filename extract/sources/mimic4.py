"""MIMIC-IV with chest X-rays and radiology reports: in-hospital mortality from the first hours of an ICU stay.

Cohort rules of the public benchmarks, counted step by step; units repaired; nothing later than the prediction time;
subjects split by a salted hash. Reads v2.x layouts, `.csv` or `.csv.gz`; notes and images are optional.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl

from cache.errors import UserError
from extract.samples import CountStep, DatasetInfo, ModalitySpec, SamplesTable
from extract.sources.mimic4_events import collect, hourly_series, scan, timestamp
from extract.sources.mimic4_links import METADATA, copy_films, last_films, reports
from extract.sources.mimic4_variables import CHANNELS
from extract.sources.splits import hash_fraction
from extract.task import LabelSpec

OPTIONS = {"task", "hours", "bin_hours"}
SHARES = (("train", 0.70), ("valid", 0.85), ("test", 1.0))
ADULT_YEARS = 18
EPSILON_HOURS = 1e-6 * 24


def prepare_mimic4(raw: Path, out: Path, options: Mapping[str, Any]) -> SamplesTable:
    """Write the samples table of a MIMIC-IV folder.

    Args:
        raw: folder with hosp/ and icu/; note/ and mimic-cxr-jpg/ where the user has them.
        out: folder to write.
        options: task (`mortality`), hours (window and prediction time), bin_hours.

    Raises:
        UserError: unknown option or task; a required table or column is absent; nothing is left.
    """
    if set(options) != OPTIONS or options["task"] != "mortality":
        raise UserError(f"Options of mimic4 are {sorted(OPTIONS)}, task 'mortality'; given: {dict(options)}.")
    steps: list[CountStep] = []
    dropped: list[pl.DataFrame] = []
    counts: Counter[str] = Counter()
    stays = _cohort(raw, options["hours"], steps, dropped)
    series = hourly_series(raw, stays, options["hours"], options["bin_hours"], counts)
    stays = _keep(stays, pl.col("stay_id").is_in(list(series)), "event in the window", "no event", steps, dropped)
    if stays.is_empty():
        raise UserError(f"No stay of {raw} passes the cohort rules: {[(s.step, s.kept) for s in steps]}.")
    frame = _frame(stays, series)
    _add_images(raw, out, stays, frame)
    _add_reports(raw, stays, frame, counts)
    info = DatasetInfo(
        name="mimic4",
        label=LabelSpec(kind="binary", names=("in_hospital_mortality",)),
        modalities=(
            ModalitySpec(
                name="ehr",
                kind="timeseries",
                column="ehr_array",
                channels=CHANNELS,
                bin_hours=options["bin_hours"],
            ),
            ModalitySpec(name="cxr", kind="image", column="cxr_path"),
            ModalitySpec(name="txt", kind="text", column="txt_text"),
        ),
        source={"rules": dict(sorted(counts.items()))},
        options=dict(options),
        counts=tuple(steps),
    )
    removed = pl.concat(dropped).sort("source_id").to_pandas()
    return SamplesTable.write(out, info, frame, removed)


def _cohort(raw: Path, hours: float, steps: list[CountStep], dropped: list[pl.DataFrame]) -> pl.DataFrame:
    ids = {"subject_id": pl.Int64, "hadm_id": pl.Int64, "stay_id": pl.Int64}
    texts = dict.fromkeys(("first_careunit", "last_careunit", "intime", "outtime"), pl.String)
    admissions = scan(
        raw, "hosp/admissions", {"hadm_id": pl.Int64, "admittime": pl.String, "hospital_expire_flag": pl.Int64}
    )
    patients = scan(raw, "hosp/patients", {"subject_id": pl.Int64, "anchor_age": pl.Int64, "anchor_year": pl.Int64})
    query = scan(raw, "icu/icustays", {**ids, **texts}).join(admissions, on="hadm_id").join(patients, on="subject_id")
    query = query.with_columns(timestamp(c).alias(c) for c in ("intime", "outtime", "admittime"))
    stays = collect(query.sort("stay_id"), "icustays, admissions or patients")
    steps.append(CountStep(step="ICU stays", kept=len(stays), dropped=0))
    length = (pl.col("outtime") - pl.col("intime")).dt.total_seconds() / 3600
    age = pl.col("anchor_age") + pl.col("admittime").dt.year() - pl.col("anchor_year")
    rules = (
        ("valid times", "outtime missing or before intime", (length > 0).fill_null(False)),
        ("no transfer", "moved between care units", pl.col("first_careunit") == pl.col("last_careunit")),
        ("one stay per admission", "another stay in the admission", pl.len().over("hadm_id") == 1),
        ("adult", f"younger than {ADULT_YEARS}", age >= ADULT_YEARS),
        (f"stay of {hours} h", "stay too short", length >= hours - EPSILON_HOURS),
    )
    for name, reason, rule in rules:
        stays = _keep(stays, rule, name, reason, steps, dropped)
    return stays.with_columns(prediction_time=pl.col("intime") + pl.duration(seconds=round(hours * 3600)))


def _keep(
    stays: pl.DataFrame,
    rule: pl.Expr,
    step: str,
    reason: str,
    steps: list[CountStep],
    dropped: list[pl.DataFrame],
) -> pl.DataFrame:
    marked = stays.with_columns(_keep=rule)
    kept, out = marked.filter("_keep").drop("_keep"), marked.filter(~pl.col("_keep"))
    rows = pl.col("stay_id").cast(pl.String).alias("source_id")
    dropped.append(out.select(rows, pl.lit(step).alias("step"), pl.lit(reason).alias("reason")))
    steps.append(CountStep(step=step, kept=len(kept), dropped=len(out)))
    return kept


def _frame(stays: pl.DataFrame, series: Mapping[int, np.ndarray]) -> pd.DataFrame:
    ids = stays["stay_id"].to_list()
    subjects = [str(subject) for subject in stays["subject_id"].to_list()]
    return pd.DataFrame(
        {
            "sample_id": [str(i) for i in ids],
            "group_id": subjects,
            "split": [_split(subject) for subject in subjects],
            "label": stays["hospital_expire_flag"].to_numpy(),
            "prediction_time": stays["prediction_time"].to_pandas(),
            "ehr_array": [series[i].ravel() for i in ids],
            "ehr_shape": [list(series[i].shape) for i in ids],
        }
    )


def _split(subject: str) -> str:
    fraction = hash_fraction(subject, "mimic4")
    return next(name for name, end in SHARES if fraction < end)


def _add_images(raw: Path, out: Path, stays: pl.DataFrame, frame: pd.DataFrame) -> None:
    paths: dict[int, str] = {}
    reasons: dict[int, str] = {}
    available: dict[int, Any] = {}
    if any((raw / f"{METADATA}{end}").is_file() for end in (".csv", ".csv.gz")):
        films = last_films(raw, stays)
        paths, reasons = copy_films(raw, out, films)
        available = dict(films.select("stay_id", "taken").iter_rows())
    ids = stays["stay_id"].to_list()
    frame["cxr_path"] = pd.Series([paths.get(i) for i in ids], dtype="object")
    frame["cxr_available_time"] = pd.to_datetime([available.get(i) if i in paths else None for i in ids])
    missing = [None if i in paths else reasons.get(i, "not recorded") for i in ids]
    frame["cxr_missing_reason"] = pd.Series(missing, dtype="object")


def _add_reports(raw: Path, stays: pl.DataFrame, frame: pd.DataFrame, counts: Counter[str]) -> None:
    present = any((raw / f"note/radiology{end}").is_file() for end in (".csv", ".csv.gz"))
    texts = reports(raw, stays, counts) if present else {}
    found = [texts.get(i) for i in stays["stay_id"].to_list()]
    frame["txt_text"] = pd.Series(found, dtype="object")
    frame["txt_missing_reason"] = pd.Series([None if t else "not recorded" for t in found], dtype="object")
