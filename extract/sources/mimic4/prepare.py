"""MIMIC-IV to a samples table: in-hospital mortality or 25 phenotypes from series, chest X-ray and report.

Cohort, one pass over each large table into buckets, series, films, texts, table. What a pass has written is kept beside
the output until the end, so that an interrupted run goes on from there. Reads v1.0, v2.x and v3.x; notes and films are
optional. Same input, same bytes, whatever the order of rows.
"""

import errno
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa

from cache.errors import UserError
from cache.publish import fingerprint, publish_folder
from extract.samples import DatasetInfo, ModalitySpec, SamplesTable
from extract.sources.mimic4 import variables as v
from extract.sources.mimic4.cohort import Funnel, read_cohort
from extract.sources.mimic4.events import collect_events
from extract.sources.mimic4.films import find_films, store_films
from extract.sources.mimic4.layout import Layout, open_layout
from extract.sources.mimic4.options import Mimic4Options, parse_options
from extract.sources.mimic4.phenotypes import NAMES, read_phenotypes
from extract.sources.mimic4.published import PUBLISHED, own_counts
from extract.sources.mimic4.reports import Texts, find_texts
from extract.sources.mimic4.series import bin_events, column_names, discretise, observed_moments, standardise
from extract.sources.mimic4.subjects import assign_splits
from extract.task import LabelSpec


def prepare_mimic4(raw: Path, out: Path, options: Mapping[str, Any]) -> SamplesTable:
    """Write the samples table of a MIMIC-IV folder.

    Args:
        raw: folder with hosp/ and icu/ (v1.0: also core/); note/ and mimic-cxr-jpg/ where the user has them.
        out: folder to write; `.<name>.work` beside it holds what an interrupted run has finished.
        options: see `Mimic4Options`.

    Returns:
        The table: `ehr` (series [bins, 17], in `paper` mode [bins, 76]), `cxr` (grey image), `txt` (reports).

    Raises:
        UserError: unknown option; a required table or column is absent; nothing is left; the disk is full.
    """
    chosen = parse_options(options)
    layout = open_layout(raw)
    work = out.with_name(f".{out.name}.work")
    with _disk_errors(out):
        table = _prepare(layout, out, work, chosen)
        shutil.rmtree(work)
    return table


@contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException, pl.exceptions.PolarsError) as error:
        if getattr(error, "errno", None) != errno.ENOSPC and "No space left" not in str(error):
            raise
        raise UserError(
            f"No space is left where {out} is written. Free disk space and run the same command again."
        ) from error


def _prepare(layout: Layout, out: Path, work: Path, options: Mimic4Options) -> SamplesTable:
    funnel, counts = Funnel(), Counter[str]()
    stays = read_cohort(layout, options, funnel, counts)
    collect_events(layout, stays, options, work, counts)
    series = bin_events(work, _bins(stays, options), options.bin_hours, paper=options.paper, counts=counts)
    has_events = pl.col("stay_id").is_in(list(series))
    stays = funnel.keep(stays, "event in the window", "no usable event in the window", has_events)
    if stays.is_empty():
        steps = ", ".join(f"{step.step} {step.kept}" for step in funnel.steps)
        raise UserError(
            f"No stay of {layout.tables} passes the cohort rules; stays left after each: {steps}. Check the files."
        )
    frame = _frame(layout, stays, options, counts)
    moments = _add_series(frame, stays, series, options)
    films, no_film = find_films(layout, stays, paper=options.paper)
    no_film.update(_add_images(layout, out, work, films, options))
    _add_film_columns(frame, stays, films, no_film)
    _add_texts(frame, stays, find_texts(layout, stays, films, options, counts))
    source = _source(layout, frame, options, counts, moments)
    removed = pl.concat(funnel.dropped).sort("source_id").to_pandas()
    return SamplesTable.write(out, _info(options, source, funnel), frame, removed)


def _bins(stays: pl.DataFrame, options: Mimic4Options) -> dict[int, int]:
    hours = (stays["window_end"] - stays["intime"]).dt.total_seconds() / 3600
    count = np.maximum(np.ceil(hours.to_numpy() / options.bin_hours - 1e-9), 1).astype(int)
    return dict(zip(stays["stay_id"].to_list(), count.tolist(), strict=True))


def _frame(layout: Layout, stays: pl.DataFrame, options: Mimic4Options, counts: Counter[str]) -> pd.DataFrame:
    subjects = [str(subject) for subject in stays["subject_id"].to_list()]
    if options.task == "mortality":
        labels = {"label": stays["died"].to_numpy()}
    else:
        values = read_phenotypes(layout, stays, paper=options.paper, counts=counts)
        labels = {f"label_{name}": values[:, i] for i, name in enumerate(NAMES)}
    return pd.DataFrame(
        {
            "sample_id": [str(i) for i in stays["stay_id"].to_list()],
            "group_id": subjects,
            "split": assign_splits(subjects, options, counts),
            **labels,
            "prediction_time": stays["prediction_time"].to_pandas(),
        }
    )


def _add_series(
    frame: pd.DataFrame, stays: pl.DataFrame, series: dict[int, np.ndarray], options: Mimic4Options
) -> Mapping[str, Any]:
    """Add the series' columns; returns mean and deviation by channel over the training split."""
    ids = stays["stay_id"].to_list()
    train = {stay for stay, split in zip(ids, frame["split"], strict=True) if split == "train"}
    moments: Mapping[str, Any]
    if options.paper:
        series = {stay: discretise(series.pop(stay)) for stay in ids}
        moments = standardise(series, train)
    else:
        moments = observed_moments(series, train)
    frame["ehr_array"] = pd.Series([series[i].ravel() for i in ids], dtype="object")
    frame["ehr_shape"] = pd.Series([list(series[i].shape) for i in ids], dtype="object")
    return moments


def _add_images(
    layout: Layout, out: Path, work: Path, films: Mapping[int, Mapping[str, Any]], options: Mimic4Options
) -> dict[int, str]:
    """Write `out/images` as a whole; returns the reasons of unreadable films."""
    choice = [options.image_pixels, {str(stay): film["dicom_id"] for stay, film in films.items()}]
    folder = work / f"images-{fingerprint(choice)[:16]}"  # what an interrupted run with other films left is not taken
    unreadable = store_films(layout, folder, films, options.image_pixels)
    out.mkdir(parents=True, exist_ok=True)
    (out / "dataset.json").unlink(missing_ok=True)  # an older table must not outlive its files
    publish_folder(folder, out / "images")
    return unreadable


def _add_film_columns(
    frame: pd.DataFrame, stays: pl.DataFrame, films: Mapping[int, Mapping[str, Any]], reasons: Mapping[int, str]
) -> None:
    ids = stays["stay_id"].to_list()
    used = [None if i in reasons else films[i] for i in ids]
    frame["cxr_path"] = _column(f"images/{film['stay_id']}.png" if film else None for film in used)
    frame["cxr_dicom_id"] = _column(film["dicom_id"] if film else None for film in used)
    frame["cxr_available_time"] = pd.Series([film["taken"] if film else None for film in used], dtype="datetime64[us]")
    frame["cxr_missing_reason"] = _column(reasons.get(i) for i in ids)


def _add_texts(frame: pd.DataFrame, stays: pl.DataFrame, texts: Texts) -> None:
    ids = stays["stay_id"].to_list()
    found = [texts.found.get(i, (None, None)) for i in ids]
    frame["txt_text"] = _column(text for text, _ in found)
    frame["txt_available_time"] = pd.Series([time for _, time in found], dtype="datetime64[us]")
    frame["txt_missing_reason"] = _column(texts.reasons.get(i) for i in ids)


def _column(values: Iterable[str | None]) -> "pd.Series[Any]":
    return pd.Series(list(values), dtype="object")


def _source(
    layout: Layout, frame: pd.DataFrame, options: Mimic4Options, counts: Counter[str], moments: Mapping[str, Any]
) -> dict[str, Any]:
    leaks = ["text: discharge summary"] if options.allow_leaky_text else []
    if options.paper and options.task == "mortality":
        leaks.append("film: until the end of the stay")
        leaks += ["text: report of that film, which has no time"] if options.text == "study" else []
    return {
        "name": "MIMIC-IV",
        "version": layout.version,
        "leaks": leaks,
        "rules": {name: number for name, number in sorted(counts.items()) if number},
        "train_moments": moments,
        "samples": own_counts(frame, options.task),
        "published": PUBLISHED[options.task],
    }


def _info(options: Mimic4Options, source: dict[str, Any], funnel: Funnel) -> DatasetInfo:
    mortality = LabelSpec(kind="binary", names=("in_hospital_mortality",))
    channels = column_names() if options.paper else v.CHANNELS
    return DatasetInfo(
        name="mimic4",
        label=mortality if options.task == "mortality" else LabelSpec(kind="multilabel", names=NAMES),
        modalities=(
            ModalitySpec(
                name="ehr", kind="timeseries", column="ehr_array", channels=channels, bin_hours=options.bin_hours
            ),
            ModalitySpec(name="cxr", kind="image", column="cxr_path"),
            ModalitySpec(name="txt", kind="text", column="txt_text"),
        ),
        source=source,
        options=options.model_dump(mode="json", exclude={"test_subjects", "valid_subjects"}),
        counts=tuple(funnel.steps),
    )
