"""The chest X-ray of a stay: the last AP film of its window, resized once to a small grey PNG.

`fixed` looks until the prediction time; `paper` until the end of the stay, as MedFuse did when it published its counts,
and only at films with a CheXpert row. A film that cannot be read leaves the modality missing with a reason. PNG loses
nothing a second time, and its bytes depend on the pixels alone. A full-size film is decoded at a fraction of its size.
"""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl
from PIL import Image, UnidentifiedImageError

from extract.sources.mimic4.layout import CHEXPERT, METADATA, Layout
from extract.sources.mimic4.tables import read_table

NOT_RECORDED, NOT_IN_SOURCE, AFTER_CUTOFF = "not_recorded", "not_in_source", "after_cutoff"


def find_films(layout: Layout, stays: pl.DataFrame, *, paper: bool) -> tuple[dict[int, dict[str, Any]], dict[int, str]]:
    """Return each stay's film (stay_id, subject_id, study_id, dicom_id, taken), and why other stays have none.

    Films of the same second are ordered by study and DICOM id.

    Raises:
        UserError: a table that is needed is absent, lacks a column or cannot be read.
    """
    if layout.find(METADATA) is None:
        return {}, dict.fromkeys(stays["stay_id"].to_list(), NOT_IN_SOURCE)
    films = _frontal(layout).join(
        stays.select("stay_id", "subject_id", "intime", "outtime", "prediction_time"), on="subject_id"
    )
    if paper:
        labelled = read_table(layout.require(CHEXPERT), {"study_id": pl.Int64})
        films = films.join(labelled, on="study_id", how="semi")
    films = films.filter(pl.col("taken").is_between(pl.col("intime"), pl.col("outtime")))
    end = "outtime" if paper else "prediction_time"
    films = films.sort("stay_id", "taken", "study_id", "dicom_id")
    last = films.filter(pl.col("taken") <= pl.col(end)).unique("stay_id", keep="last", maintain_order=True)
    chosen = {film["stay_id"]: film for film in last.iter_rows(named=True)}
    later = set(films["stay_id"].to_list())
    others = [stay for stay in stays["stay_id"].to_list() if stay not in chosen]
    return chosen, {stay: AFTER_CUTOFF if stay in later else NOT_RECORDED for stay in others}


def _frontal(layout: Layout) -> pl.DataFrame:
    """Return every AP film once, with the time at which it was taken."""
    names = {"dicom_id": pl.String, "subject_id": pl.Int64, "study_id": pl.Int64, "ViewPosition": pl.String}
    films = read_table(layout.require(METADATA), {**names, "StudyDate": pl.String, "StudyTime": pl.Float64})
    clock = pl.col("StudyTime").floor().cast(pl.Int64).cast(pl.String).str.zfill(6)  # 213.14 is 00:02:13
    taken = (pl.col("StudyDate") + clock).str.strptime(pl.Datetime("us"), "%Y%m%d%H%M%S", strict=False)
    return films.filter(pl.col("ViewPosition") == "AP").with_columns(taken=taken).unique(list(names))


def store_films(layout: Layout, folder: Path, films: Mapping[int, Mapping[str, Any]], pixels: int) -> dict[int, str]:
    """Write each film as `<stay_id>.png`, its shorter side at most `pixels`; those already there are kept.

    Returns:
        Reasons of the films that cannot be read, by stay id.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def store(film: Mapping[str, Any]) -> str | None:
        target = folder / f"{film['stay_id']}.png"
        return None if target.is_file() else _store(_source(layout, film), target, pixels)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding and resizing release the interpreter's lock
        reasons = list(pool.map(store, films.values()))
    return {stay: reason for stay, reason in zip(films, reasons, strict=True) if reason}


def _source(layout: Layout, film: Mapping[str, Any]) -> Path:
    assert layout.films is not None
    patient = f"p{film['subject_id']}"
    return layout.films / "files" / patient[:3] / patient / f"s{film['study_id']}" / f"{film['dicom_id']}.jpg"


def _store(source: Path, target: Path, pixels: int) -> str | None:
    if not source.is_file():
        return "unreadable: file not found"
    try:
        with Image.open(source) as image:
            image.draft("L", (pixels, pixels))
            grey = image.convert("L")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return f"unreadable: {type(error).__name__}"
    scale = min(pixels / min(grey.size), 1)
    size = (max(1, round(grey.width * scale)), max(1, round(grey.height * scale)))
    partial = target.with_name(f"{target.name}.partial")  # one name a film: a later run replaces what a kill left
    grey.resize(size, Image.Resampling.BILINEAR).save(partial, format="PNG")
    partial.replace(target)
    return None
