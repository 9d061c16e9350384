"""Chest X-rays and radiology reports of a stay, as known at the prediction time.

Image: the last AP film between admission to the ICU and the prediction time. Text: the radiology reports of that time
that were stored by then, of every examination. Addenda are left out; discharge notes are never opened: they state the
outcome.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
from PIL import Image, UnidentifiedImageError

from extract.sources.mimic4_events import collect, scan, timestamp

METADATA = "mimic-cxr-jpg/mimic-cxr-2.0.0-metadata"
RADIOLOGY = "note/radiology"
LARGEST = 256  # pixels of the longer side that is kept


def last_films(raw: Path, stays: pl.DataFrame) -> pl.DataFrame:
    """Return stay_id, subject_id, study_id, dicom_id, taken of the last AP film up to `prediction_time`.

    Films of the same second are ordered by study and DICOM id.
    """
    columns = {"dicom_id": pl.String, "subject_id": pl.Int64, "study_id": pl.Int64, "ViewPosition": pl.String}
    films = scan(raw, METADATA, {**columns, "StudyDate": pl.Int64, "StudyTime": pl.Float64})
    clock = pl.col("StudyTime").floor().cast(pl.Int64).cast(pl.String).str.zfill(6)  # 213.14 is 00:02:13
    taken = (pl.col("StudyDate").cast(pl.String) + clock).str.strptime(pl.Datetime("us"), "%Y%m%d%H%M%S", strict=False)
    films = films.filter(pl.col("ViewPosition") == "AP").with_columns(taken=taken)
    films = films.join(stays.lazy().select("stay_id", "subject_id", "intime", "prediction_time"), on="subject_id")
    films = films.filter(pl.col("taken").is_between(pl.col("intime"), pl.col("prediction_time")))
    found = collect(films, str(raw / METADATA)).sort("stay_id", "taken", "study_id", "dicom_id")
    return found.unique("stay_id", keep="last", maintain_order=True)


def copy_films(raw: Path, folder: Path, films: Iterable[Mapping[str, Any]]) -> dict[int, str]:
    """Copy the films, grey and resized, into `folder` as `<stay_id>.png`; returns the reasons of failures by stay id.

    PNG loses nothing a second time, and its bytes depend on the pixels alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    reasons: dict[int, str] = {}
    for film in films:
        patient = f"p{film['subject_id']}"
        study = raw / "mimic-cxr-jpg/files" / patient[:3] / patient / f"s{film['study_id']}"
        reason = _copy(study / f"{film['dicom_id']}.jpg", folder / f"{film['stay_id']}.png")
        if reason is not None:
            reasons[film["stay_id"]] = reason
    return reasons


def _copy(source: Path, target: Path) -> str | None:
    if not source.is_file():
        return "unreadable: file not found"
    try:
        with Image.open(source) as image:
            image.draft("L", (LARGEST, LARGEST))  # a full-size film is decoded at a fraction of its size
            grey = image.convert("L")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return f"unreadable: {type(error).__name__}"
    grey.thumbnail((LARGEST, LARGEST), Image.Resampling.BILINEAR)
    grey.save(target, format="PNG")
    return None


def reports(raw: Path, stays: pl.DataFrame, counts: Counter[str]) -> Mapping[int, tuple[str, Any]]:
    """Return, by stay id, the radiology reports in the order of their time, and when the last became known.

    Args:
        raw: folder with note/.
        stays: cohort with subject_id, stay_id, intime, prediction_time.
        counts: reports without words are added here.
    """
    names = ("note_id", "note_type", "charttime", "storetime", "text")
    notes = scan(raw, RADIOLOGY, {"subject_id": pl.Int64, **dict.fromkeys(names, pl.String)})
    chart = timestamp("charttime")
    known = pl.when(pl.col("storetime").is_null()).then(chart).otherwise(timestamp("storetime"))
    notes = notes.filter(pl.col("note_type") == "RR").with_columns(chart=chart, known=known)
    notes = notes.join(stays.lazy().select("stay_id", "subject_id", "intime", "prediction_time"), on="subject_id")
    for time in ("chart", "known"):
        notes = notes.filter(pl.col(time).is_between(pl.col("intime"), pl.col("prediction_time")))
    found = collect(notes, str(raw / RADIOLOGY)).sort("stay_id", "chart", "note_id")
    texts: dict[int, list[str]] = {}
    times: dict[int, Any] = {}
    for stay, text, time in found.select("stay_id", "text", "known").iter_rows():
        if text is None or not text.strip(" _\r\n\t"):
            counts["report without words"] += 1
            continue
        texts.setdefault(stay, []).append(text.strip())
        times[stay] = max(times.get(stay, time), time)
    return {stay: ("\n\n".join(parts), times[stay]) for stay, parts in texts.items()}
