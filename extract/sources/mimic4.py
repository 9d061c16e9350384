"""MIMIC-IV with chest X-rays and radiology reports: in-hospital mortality from the first hours of an ICU stay.

Cohort rules of the public benchmarks in their order, counted step by step; units repaired; nothing later than the
prediction time; subjects split by a salted hash, never by the X-ray project's own split. Reads v2.x layouts, `.csv` or
`.csv.gz`; notes and images are optional. One streaming pass over each large table.
"""

import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import polars as pl
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cache.errors import UserError
from cache.publish import publish_folder
from extract.samples import CountStep, DatasetInfo, ModalitySpec, SamplesTable
from extract.sources.mimic4_events import collect, find, hourly_series, scan, timestamp
from extract.sources.mimic4_links import METADATA, RADIOLOGY, copy_films, last_films, reports
from extract.sources.mimic4_variables import CHANNELS
from extract.sources.splits import hash_fraction
from extract.task import LabelSpec

SHARES = (("train", 0.70), ("valid", 0.85), ("test", 1.0))  # upper ends of the hash
ADULT_YEARS = 18
EPSILON_HOURS = 1e-6
NOT_IN_SOURCE, NOT_RECORDED = "not_in_source", "not_recorded"


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    task: Literal["mortality"]
    hours: float = Field(gt=0)
    bin_hours: float = Field(gt=0)


@dataclass
class _Funnel:
    """Steps of the cohort so far, and the stays that they left out."""

    steps: list[CountStep] = field(default_factory=list)
    dropped: list[pl.DataFrame] = field(default_factory=list)

    def keep(self, stays: pl.DataFrame, step: str, reason: str, rule: pl.Expr) -> pl.DataFrame:
        """Keep the stays that a rule is known to hold for; log the others."""
        marked = stays.with_columns(_keep=rule.fill_null(False))
        kept, out = marked.filter("_keep").drop("_keep"), marked.filter(~pl.col("_keep"))
        source = pl.col("stay_id").cast(pl.String).alias("source_id")
        self.dropped.append(out.select(source, pl.lit(step).alias("step"), pl.lit(reason).alias("reason")))
        self.steps.append(CountStep(step=step, kept=len(kept), dropped=len(out)))
        return kept


def prepare_mimic4(raw: Path, out: Path, options: Mapping[str, Any]) -> SamplesTable:
    """Write the samples table of a MIMIC-IV folder.

    Args:
        raw: folder with hosp/ and icu/; note/ and mimic-cxr-jpg/ where the user has them.
        out: folder to write.
        options: task (`mortality`), hours (window and prediction time), bin_hours.

    Returns:
        The table: `ehr` (series [hours / bin_hours, 15]), `cxr` (grey image), `txt` (radiology reports).

    Raises:
        UserError: unknown option or task; a required table or column is absent; nothing is left.
    """
    chosen = _parse_options(options)
    funnel, counts = _Funnel(), Counter[str]()
    stays = _cohort(raw, chosen.hours, funnel)
    counts["death flag and time of death disagree"] = _disagreements(stays)
    series = hourly_series(raw, stays, chosen.hours, chosen.bin_hours, counts)
    has_events = pl.col("stay_id").is_in(list(series))
    stays = funnel.keep(stays, "event in the window", "no usable event in the window", has_events)
    if stays.is_empty():
        steps = ", ".join(f"{step.step} {step.kept}" for step in funnel.steps)
        raise UserError(f"No stay of {raw} passes the cohort rules; stays left after each: {steps}. Check the files.")
    frame = _frame(stays, series)
    _add_reports(raw, stays, frame, counts)
    _add_images(raw, out, stays, frame)
    removed = pl.concat(funnel.dropped).sort("source_id").to_pandas()
    return SamplesTable.write(out, _info(chosen, funnel, counts), frame, removed)


def _parse_options(options: Mapping[str, Any]) -> _Options:
    try:
        chosen = _Options.model_validate(dict(options))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UserError(f"Options of mimic4: {problems}. They are {', '.join(_Options.model_fields)}.") from error
    bins = chosen.hours / chosen.bin_hours
    if abs(bins - round(bins)) > 1e-6 or bins < 1:
        raise UserError(f"hours {chosen.hours:g} is not a whole number of bin_hours {chosen.bin_hours:g}.")
    return chosen


def _cohort(raw: Path, hours: float, funnel: _Funnel) -> pl.DataFrame:
    """Apply the rules that need no events, in the benchmarks' order: it decides which stay of an admission is left."""
    stays = _join_tables(raw)
    funnel.steps.append(CountStep(step="ICU stays", kept=len(stays), dropped=0))
    length = (pl.col("outtime") - pl.col("intime")).dt.total_seconds() / 3600
    age = pl.col("anchor_age") + pl.col("admittime").dt.year() - pl.col("anchor_year")
    rules = (
        ("no transfer", "moved between care units", pl.col("first_careunit") == pl.col("last_careunit")),
        ("one stay per admission", "another stay in the admission", pl.len().over("hadm_id") == 1),
        ("valid times", "outtime missing or before intime", (length > 0) & pl.col("los").is_not_null()),
        ("adult", f"younger than {ADULT_YEARS}, or age unknown", age >= ADULT_YEARS),
        (f"stay of {hours:g} h", "stay too short", length >= hours - EPSILON_HOURS),
    )
    for step, reason, rule in rules:
        stays = funnel.keep(stays, step, reason, rule)
    unknown = stays["hospital_expire_flag"].is_in([0, 1]).not_().fill_null(True).sum()
    if unknown:
        raise UserError(
            f"hosp/admissions has no hospital_expire_flag of 0 or 1 for {unknown} stays. Download it again."
        )
    return stays.with_columns(prediction_time=pl.col("intime") + pl.duration(seconds=round(hours * 3600)))


def _join_tables(raw: Path) -> pl.DataFrame:
    """Return every ICU stay with its admission and patient; unknown ones stay, with nulls, so that they are counted."""
    texts = dict.fromkeys(("first_careunit", "last_careunit", "intime", "outtime"), pl.String)
    ids = {"subject_id": pl.Int64, "hadm_id": pl.Int64, "stay_id": pl.Int64}
    times = {"admittime": pl.String, "deathtime": pl.String}
    tables = {
        "icu/icustays": scan(raw, "icu/icustays", {**ids, **texts, "los": pl.Float64}),
        "hosp/admissions": scan(
            raw, "hosp/admissions", {"hadm_id": pl.Int64, **times, "hospital_expire_flag": pl.Int64}
        ),
        "hosp/patients": scan(
            raw, "hosp/patients", {"subject_id": pl.Int64, "anchor_age": pl.Int64, "anchor_year": pl.Int64}
        ),
    }
    loaded = {name: collect(table, str(raw / name)) for name, table in tables.items()}
    for (name, table), key in zip(loaded.items(), ("stay_id", "hadm_id", "subject_id"), strict=True):
        if table[key].n_unique() != len(table) or table[key].null_count():
            raise UserError(f"{raw / name} repeats or lacks a {key}; it must be unique. Download it again.")
    stays, admissions, patients = loaded.values()
    stays = stays.join(admissions, on="hadm_id", how="left").join(patients, on="subject_id", how="left")
    return stays.with_columns(timestamp(c).alias(c) for c in ("intime", "outtime", *times)).sort("stay_id")


def _disagreements(stays: pl.DataFrame) -> int:
    return int(((stays["hospital_expire_flag"] == 1) != stays["deathtime"].is_not_null()).sum())


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
    """Write `out/images` as a whole and name each stay's film."""
    present = find(raw, METADATA) is not None
    films = {film["stay_id"]: film for film in last_films(raw, stays).iter_rows(named=True)} if present else {}
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=out) as partial:
        unreadable = copy_films(raw, Path(partial) / "images", list(films.values()))
        (out / "dataset.json").unlink(missing_ok=True)  # an older table must not outlive its files
        publish_folder(Path(partial) / "images", out / "images")
    ids = stays["stay_id"].to_list()
    used: list[dict[str, Any] | None] = [None if i in unreadable else films.get(i) for i in ids]
    otherwise = NOT_RECORDED if present else NOT_IN_SOURCE
    reasons = [None if film else unreadable.get(i, otherwise) for i, film in zip(ids, used, strict=True)]
    frame["cxr_path"] = _column(f"images/{film['stay_id']}.png" if film else None for film in used)
    frame["cxr_dicom_id"] = _column(film["dicom_id"] if film else None for film in used)
    frame["cxr_available_time"] = pd.Series([film["taken"] if film else None for film in used], dtype="datetime64[us]")
    frame["cxr_missing_reason"] = _column(reasons)


def _add_reports(raw: Path, stays: pl.DataFrame, frame: pd.DataFrame, counts: Counter[str]) -> None:
    present = find(raw, RADIOLOGY) is not None
    texts = reports(raw, stays, counts) if present else {}
    found = [texts.get(stay, (None, None)) for stay in stays["stay_id"].to_list()]
    reason = NOT_RECORDED if present else NOT_IN_SOURCE
    frame["txt_text"] = _column(text for text, _ in found)
    frame["txt_available_time"] = pd.Series([time for _, time in found], dtype="datetime64[us]")
    frame["txt_missing_reason"] = _column(None if text else reason for text, _ in found)


def _column(values: Iterable[str | None]) -> "pd.Series[Any]":
    return pd.Series(list(values), dtype="object")


def _info(options: _Options, funnel: _Funnel, counts: Counter[str]) -> DatasetInfo:
    return DatasetInfo(
        name="mimic4",
        label=LabelSpec(kind="binary", names=("in_hospital_mortality",)),
        modalities=(
            ModalitySpec(
                name="ehr", kind="timeseries", column="ehr_array", channels=CHANNELS, bin_hours=options.bin_hours
            ),
            ModalitySpec(name="cxr", kind="image", column="cxr_path"),
            ModalitySpec(name="txt", kind="text", column="txt_text"),
        ),
        source={"name": "MIMIC-IV", "cxr_window": f"{options.hours:g}h", "rules": dict(sorted(counts.items()))},
        options=options.model_dump(),
        counts=tuple(funnel.steps),
    )
