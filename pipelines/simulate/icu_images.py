"""Chest X-rays of the simulated cohort: two dark lung fields that whiten with severity, as small grey JPEGs.

The film to use is the last AP film of the first two days. Others are misleading on purpose, whether or not there is one
to use: earlier AP films, lateral ones, those before admission to the unit and after the prediction time, and one of the
same second. Two films cannot be read.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from pipelines.simulate.icu_tables import write_csv

SIDE = 72
UNREADABLE = ("truncated_film", "absent_film")
DESCRIPTION = "CHEST (PORTABLE AP)"


@dataclass(frozen=True)
class Film:
    """One film of a stay, taken `hour` hours after admission to the unit."""

    view: str
    hour: float
    level: float
    usable: bool = False


def write_images(root: Path, stays: pd.DataFrame, severity: np.ndarray, random: np.random.Generator) -> dict[str, str]:
    """Write the JPEG files and their metadata table; returns the film to use, its DICOM id by stay id."""
    rows: list[tuple[Any, ...]] = []
    chosen = {}
    plan: list[Any] = list(stays.itertuples())
    for number, (stay, level) in enumerate(zip(plan, severity, strict=True)):
        films = _films(stay, number, float(level), random)
        hours = sorted({film.hour for film in films})
        names = sorted("-".join(f"{part:08x}" for part in random.integers(0, 2**32, 5)) for _ in films)
        for place, (film, dicom) in enumerate(zip(films, names, strict=True)):
            taken = (stay.intime + pd.Timedelta(hours=film.hour)).round("s")
            study = 50_000_000 + number * 10 + hours.index(film.hour)
            folder = f"files/p{str(stay.subject_id)[:2]}/p{stay.subject_id}/s{study}"
            path = root / "mimic-cxr-jpg" / folder / f"{dicom}.jpg"
            _write_film(path, film.level, random, str(stay.case) if place == 0 else "")
            rows.append((dicom, stay.subject_id, study, film.view, f"{taken:%Y%m%d}", float(f"{taken:%H%M%S}")))
            if film.usable:
                chosen[str(stay.stay_id)] = dicom
    names = ["dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate", "StudyTime"]
    _write_metadata(root, pd.DataFrame(rows, columns=names))
    return chosen


def _films(stay: Any, number: int, level: float, random: np.random.Generator) -> list[Film]:
    """List a stay's films; the later of two in the list has the larger DICOM id."""
    if stay.case in UNREADABLE:
        return [Film("AP", 20.0, level)]
    hour = random.uniform(2, 46)
    films = []
    if stay.image and number % 3 == 0:
        films.append(Film("AP", hour / 2, -level))
    if stay.image and number % 11 == 0:
        films.append(Film("AP", hour, -level))  # the same second and study: the larger DICOM id counts
    if stay.image:
        films.append(Film("AP", hour, level, usable=True))
    if number % 5 == 0:
        films.append(Film("LATERAL", 47.0, 0.0))
    if number % 7 == 0:
        films.append(Film("AP", random.uniform(48.01, 90), -level))
    if number % 7 == 3:
        films.append(Film("AP", random.uniform(-20, -0.1), -level))
    if number % 13 == 0:
        films.append(Film("", 46.9, 0.0))
    return films


def _write_metadata(root: Path, frame: pd.DataFrame) -> None:
    # StudyTime is a number: its leading zeros are lost, in the real file too
    columns = {
        "dicom_id": frame["dicom_id"],
        "subject_id": frame["subject_id"],
        "study_id": frame["study_id"],
        "PerformedProcedureStepDescription": DESCRIPTION,
        "ViewPosition": frame["ViewPosition"],
        "Rows": SIDE,
        "Columns": SIDE,
        "StudyDate": frame["StudyDate"],
        "StudyTime": frame["StudyTime"] + 0.14,
        "ProcedureCodeSequence_CodeMeaning": DESCRIPTION,
        "ViewCodeSequence_CodeMeaning": "antero-posterior",
        "PatientOrientationCodeSequence_CodeMeaning": "Erect",
    }
    write_csv(root / "mimic-cxr-jpg/mimic-cxr-2.0.0-metadata.csv.gz", columns)


def _write_film(path: Path, opacity: float, random: np.random.Generator, case: str) -> None:
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    picture = np.full((SIDE, SIDE), 150.0)
    for centre in (0.3, 0.7):
        lung = np.exp(-(((x - centre) / 0.16) ** 2 + ((y - 0.5) / 0.3) ** 2))
        picture -= 100 * lung
        shadow = np.exp(-(((x - centre) / 0.12) ** 2 + ((y - random.uniform(0.55, 0.75)) / 0.15) ** 2))
        picture += (35 + 20 * opacity + random.normal(0, 12)) * shadow
    grain = 12 * np.exp(0.12 * opacity)  # the texture tells as well
    picture += random.normal(0, grain, picture.shape) + random.normal(0, 6)
    data = io.BytesIO()
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(data, format="JPEG", quality=90)
    content = data.getvalue()[: 400 if case == "truncated_film" else None]
    if case != "absent_film":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
