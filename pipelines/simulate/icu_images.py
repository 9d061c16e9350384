"""Chest X-rays of the simulated cohort: two dark lung fields that whiten with severity, as small grey JPEGs.

Every imaged stay has an AP film in its first two days; some have a lateral film, and some an AP film after the
prediction time, that must not be used.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from pipelines.simulate.icu_tables import write_csv

SIDE = 72


def write_images(root: Path, stays: pd.DataFrame, severity: np.ndarray, random: np.random.Generator) -> None:
    """Write the JPEG files and their metadata table."""
    rows = []
    for number, (stay, level) in enumerate(zip(stays.itertuples(), severity, strict=True)):
        if not stay.image:
            continue
        films = [("AP", random.uniform(1, 46), level)]
        if number % 5 == 0:
            films.append(("LATERAL", random.uniform(1, 46), 0.0))
        if number % 7 == 0:
            films.append(("AP", random.uniform(49, 90), -level))  # after the prediction time: misleading on purpose
        for film, (view, hour, opacity) in enumerate(films):
            taken = (stay.intime + pd.Timedelta(hours=hour)).round("s")
            study = 50_000_000 + number * 10 + film
            dicom = "-".join(f"{random.integers(0, 2**32):08x}" for _ in range(5))
            folder = f"files/p{str(stay.subject_id)[:2]}/p{stay.subject_id}/s{study}"
            _write_film(root / "mimic-cxr-jpg" / folder / f"{dicom}.jpg", opacity, random)
            rows.append((dicom, stay.subject_id, study, view, SIDE, SIDE, f"{taken:%Y%m%d}", f"{taken:%H%M%S}.0"))
    names = ["dicom_id", "subject_id", "study_id", "ViewPosition", "Rows", "Columns", "StudyDate", "StudyTime"]
    frame = pd.DataFrame(rows, columns=names)
    frame["StudyTime"] = frame["StudyTime"].astype(float)  # leading zeros are lost in the real file, too
    write_csv(root / "mimic-cxr-jpg/mimic-cxr-2.0.0-metadata.csv.gz", dict(frame.items()))


def _write_film(path: Path, opacity: float, random: np.random.Generator) -> None:
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    picture = np.full((SIDE, SIDE), 150.0)
    for centre in (0.3, 0.7):
        lung = np.exp(-(((x - centre) / 0.16) ** 2 + ((y - 0.5) / 0.3) ** 2))
        picture -= 100 * lung
        shadow = np.exp(-(((x - centre) / 0.12) ** 2 + ((y - random.uniform(0.55, 0.75)) / 0.15) ** 2))
        picture += (28 + 20 * opacity) * shadow
    picture += random.normal(0, 14, picture.shape) + random.normal(0, 6)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path, quality=90)
