"""Chest X-rays of the simulated cohort: two dark lung fields that whiten with severity, as small grey JPEGs.

The film to use is the last AP film of the window. Others are misleading on purpose, whether or not there is one to use:
earlier AP films, lateral ones, those before admission to the unit and after the first two days, and one of the same
second. Each study has a report in free text where its stay has notes.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from PIL import Image

from pipelines.simulate.icu.expected import MF, RUNS, StayExpected
from pipelines.simulate.icu.notes import report

HEIGHT, WIDTH = 72, 80
DESCRIPTION = "CHEST (PORTABLE AP)"
FilmFile = Literal["jpeg", "truncated", "empty", "absent", "png", "rgb"]


@dataclass(frozen=True)
class Film:
    """One film of a stay, taken `hour` hours after admission to the unit."""

    view: str
    hour: float
    level: float


def bulk_films(
    root: Path, stays: pd.DataFrame, severity: np.ndarray, expected: list[StayExpected], random: np.random.Generator
) -> pd.DataFrame:
    """Write the JPEG files and study reports; returns the metadata rows and fills in what is expected."""
    rows: list[dict[str, Any]] = []
    plan: list[Any] = list(stays.itertuples())
    for number, (stay, level, wanted) in enumerate(zip(plan, severity, expected, strict=True)):
        films = _films(stay, number, float(level), random)
        hours = sorted({film.hour for film in films})
        names = sorted("-".join(f"{part:08x}" for part in random.integers(0, 2**32, 5)) for _ in films)
        studies = [50_000_000 + number * 10 + hours.index(film.hour) for film in films]
        texts = [report(film.level, random) if stay.note else None for film in films]
        for film, dicom, study, text in zip(films, names, studies, texts, strict=True):
            write_film(root, stay.subject_id, study, dicom, film.level, "jpeg", random)
            write_report(root, stay.subject_id, study, text)
            taken = (stay.intime + pd.Timedelta(hours=film.hour)).round("s")
            rows.append(film_row(dicom, stay.subject_id, study, film.view, taken))
        _expect(wanted, films, names, dict(zip(names, texts, strict=True)), studies, stay.hours)
    return pd.DataFrame(rows)


def _expect(
    wanted: StayExpected,
    films: list[Film],
    names: list[str],
    texts: dict[str, str | None],
    studies: list[int],
    hours: float,
) -> None:
    """State the film of each run; of one study the last report written is the one that is there."""
    by_study = {study: texts[name] for study, name in zip(studies, names, strict=True)}
    stay = [
        (f.hour, name, s)
        for f, name, s in zip(films, names, studies, strict=True)
        if f.view == "AP" and 0 <= f.hour <= hours
    ]
    for run in RUNS:
        usable = [film for film in stay if film[0] <= (48 if run == MF else hours)]
        if not usable:
            wanted.film_reason[run] = "after_cutoff" if stay else "not_recorded"
            continue
        _, wanted.film[run], study = max(usable)
        if run.endswith("paper") and by_study[study]:
            wanted.text[run] = str(by_study[study])
    for run in RUNS:
        if run.endswith("paper") and run not in wanted.text:
            wanted.text_reason[run] = "not_recorded"


def _films(stay: Any, number: int, level: float, random: np.random.Generator) -> list[Film]:
    """List a stay's films; the later of two in the list has the larger DICOM id."""
    hour = round(random.uniform(2, 46), 3)
    films = []
    if stay.image and number % 3 == 0:
        films.append(Film("AP", hour / 2, -level))
    if stay.image and number % 11 == 0:
        films.append(Film("AP", hour, -level))  # the same second and study: the larger DICOM id counts
    if stay.image:
        films.append(Film("AP", hour, level))
    if number % 5 == 0:
        films.append(Film("LATERAL", 47.0, 0.0))
    if number % 7 == 0:
        films.append(Film("AP", round(random.uniform(48.01, 90), 3), -level))
    if number % 7 == 3:
        films.append(Film("AP", round(random.uniform(-20, -0.1), 3), -level))
    if number % 13 == 0:
        films.append(Film("", 46.9, 0.0))
    return films


def film_row(dicom: str, subject: int, study: int, view: str, taken: pd.Timestamp) -> dict[str, Any]:
    """Return a metadata row; StudyTime is a number whose leading zeros are lost, in the real file too."""
    return {
        "dicom_id": dicom,
        "subject_id": subject,
        "study_id": study,
        "PerformedProcedureStepDescription": DESCRIPTION,
        "ViewPosition": view,
        "Rows": HEIGHT,
        "Columns": WIDTH,
        "StudyDate": f"{taken:%Y%m%d}",
        "StudyTime": float(f"{taken:%H%M%S}") + 0.14,
        "ProcedureCodeSequence_CodeMeaning": DESCRIPTION,
        "ViewCodeSequence_CodeMeaning": "antero-posterior",
        "PatientOrientationCodeSequence_CodeMeaning": "Erect",
    }


def write_film(
    root: Path, subject: int, study: int, dicom: str, opacity: float, kind: FilmFile, random: np.random.Generator
) -> None:
    """Write one film, or what a broken download leaves of it."""
    if kind == "absent":
        return
    image = Image.fromarray(_picture(opacity, random))
    data = io.BytesIO()
    (image.convert("RGB") if kind == "rgb" else image).save(data, format="PNG" if kind == "png" else "JPEG", quality=90)
    content = data.getvalue()[: {"truncated": 400, "empty": 0}.get(kind)]
    patient = f"p{subject}"
    path = root / "mimic-cxr-jpg/files" / patient[:3] / patient / f"s{study}" / f"{dicom}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def write_report(root: Path, subject: int, study: int, text: str | None) -> None:
    """Write a study's free-text report of MIMIC-CXR."""
    if text is None:
        return
    patient = f"p{subject}"
    path = root / "mimic-cxr/files" / patient[:3] / patient / f"s{study}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")


def _picture(opacity: float, random: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    y, x = y / HEIGHT, x / WIDTH
    picture = np.full(y.shape, 150.0)
    for centre in (0.3, 0.7):
        lung = np.exp(-(((x - centre) / 0.16) ** 2 + ((y - 0.5) / 0.3) ** 2))
        picture -= 100 * lung
        shadow = np.exp(-(((x - centre) / 0.12) ** 2 + ((y - random.uniform(0.55, 0.75)) / 0.15) ** 2))
        picture += (35 + 20 * opacity + random.normal(0, 12)) * shadow
    grain = 12 * np.exp(0.12 * opacity)  # the texture tells as well
    picture += random.normal(0, grain, picture.shape) + random.normal(0, 6)
    return picture.clip(0, 255).astype(np.uint8)
