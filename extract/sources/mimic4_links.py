"""Chest X-rays and radiology reports of a stay, as known at the prediction time.

Image: the last AP film between admission to the ICU and the prediction time. Text: the radiology reports stored by
then. Discharge notes are never opened: they state the outcome.
"""

from collections import Counter
from pathlib import Path

import polars as pl
from PIL import Image, UnidentifiedImageError

from cache.publish import replacing
from extract.sources.mimic4_events import collect, scan, timestamp

METADATA = "mimic-cxr-jpg/mimic-cxr-2.0.0-metadata"
LARGEST = 256  # pixels of the longer side that is kept


def last_films(raw: Path, stays: pl.DataFrame) -> pl.DataFrame:
    """Return stay_id, subject_id, study_id, dicom_id, taken of the last AP film up to `prediction_time`."""
    columns = {"dicom_id": pl.String, "subject_id": pl.Int64, "study_id": pl.Int64, "ViewPosition": pl.String}
    films = scan(raw, METADATA, {**columns, "StudyDate": pl.Int64, "StudyTime": pl.Float64})
    clock = pl.col("StudyTime").floor().cast(pl.Int64).cast(pl.String).str.zfill(6)  # 213.14 is 00:02:13
    taken = (pl.col("StudyDate").cast(pl.String) + clock).str.strptime(pl.Datetime("us"), "%Y%m%d%H%M%S", strict=False)
    films = films.filter(pl.col("ViewPosition") == "AP").with_columns(taken=taken)
    films = films.join(stays.lazy().select("stay_id", "subject_id", "intime", "prediction_time"), on="subject_id")
    films = films.filter(pl.col("taken").is_between(pl.col("intime"), pl.col("prediction_time")))
    ordered = films.unique(["stay_id", "dicom_id"]).sort("stay_id", "taken", "study_id", "dicom_id")
    return collect(ordered.group_by("stay_id", maintain_order=True).last(), METADATA)


def copy_films(raw: Path, out: Path, films: pl.DataFrame) -> tuple[dict[int, str], dict[int, str]]:
    """Copy the films, resized, below `out/images`; returns paths and reasons of failures by stay id."""
    paths, reasons = {}, {}
    for film in films.iter_rows(named=True):
        patient = f"p{film['subject_id']}"
        source = (
            raw / "mimic-cxr-jpg/files" / patient[:3] / patient / f"s{film['study_id']}" / f"{film['dicom_id']}.jpg"
        )
        name = f"images/{film['stay_id']}.png"
        reason = _copy(source, out / name)
        if reason is None:
            paths[film["stay_id"]] = name
        else:
            reasons[film["stay_id"]] = reason
    return paths, reasons


def _copy(source: Path, target: Path) -> str | None:
    if not source.is_file():
        return "file not found"
    try:
        with Image.open(source) as image:
            grey = image.convert("L")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        return f"unreadable ({type(error).__name__})"
    grey.thumbnail((LARGEST, LARGEST), Image.Resampling.BILINEAR)
    with replacing(target) as temporary:
        grey.save(temporary, format="PNG")
    return None


def reports(raw: Path, stays: pl.DataFrame, counts: Counter[str]) -> dict[int, str]:
    """Return, by stay id, the radiology reports known at the prediction time, in the order of their time."""
    columns = ("note_type", "charttime", "storetime", "text")
    notes = scan(
        raw, "note/radiology", {"note_id": pl.String, "subject_id": pl.Int64, **dict.fromkeys(columns, pl.String)}
    )
    chart = timestamp("charttime")
    known = pl.coalesce(timestamp("storetime"), chart)  # a report without a store time counts from its chart time
    notes = notes.filter(pl.col("note_type") == "RR").with_columns(chart=chart, known=known)
    notes = notes.join(stays.lazy().select("stay_id", "subject_id", "intime", "prediction_time"), on="subject_id")
    notes = notes.filter(pl.col("chart") >= pl.col("intime"), pl.col("known") <= pl.col("prediction_time"))
    found = collect(notes.sort("stay_id", "chart", "note_id"), "note/radiology")
    texts: dict[int, list[str]] = {}
    for stay, text in found.select("stay_id", "text").iter_rows():
        if text is None or not text.strip(" _\n\t"):
            counts["empty report"] += 1
            continue
        texts.setdefault(stay, []).append(text.strip())
    return {stay: "\n\n".join(parts) for stay, parts in texts.items()}
