"""The text of a stay: radiology reports as known at the prediction time, or the report of the chosen film's study.

`notes`: reports of MIMIC-IV-Note charted in the window and stored by its end, in the order of their time, kept exactly.
Addenda are left out. A report without a time of storing counts as stored `report_delay_hours` after the examination;
so does a study's report, which has no time at all. Discharge summaries state the outcome and list the diagnoses: they
are opened behind `allow_leaky_text` only.
"""

from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl

from cache.errors import UserError
from extract.sources.mimic4.films import AFTER_CUTOFF, NOT_IN_SOURCE, NOT_RECORDED
from extract.sources.mimic4.layout import Layout
from extract.sources.mimic4.options import Mimic4Options
from extract.sources.mimic4.tables import read_blocks, timestamp

RADIOLOGY, DETAIL, DISCHARGE = "note/radiology", "note/radiology_detail", "note/discharge"
BLANK = " _\r\n\t"
EMPTY = "empty"
NAMES = dict.fromkeys(("note_id", "note_type", "charttime", "storetime", "text"), pl.String)


@dataclass
class Texts:
    """Texts found so far, and why the other stays have none."""

    found: dict[int, tuple[str, Any]] = field(default_factory=dict)
    """Text and the time at which it became known, by stay id."""
    reasons: dict[int, str] = field(default_factory=dict)

    def add(self, stay: int, text: str | None, known: Any) -> bool:
        """Append a text to a stay's; False where it has no words."""
        if text is None or not text.strip(BLANK):
            self.reasons[stay] = EMPTY
            return False
        before, time = self.found.get(stay, ("", known))
        self.found[stay] = (f"{before}\n\n{text}" if before else text, max(time, known))
        return True


def find_texts(
    layout: Layout, stays: pl.DataFrame, films: dict[int, dict[str, Any]], options: Mimic4Options, counts: Counter[str]
) -> Texts:
    """Return each stay's text.

    Raises:
        UserError: a table that is needed is absent, lacks a column or cannot be read.
    """
    texts = Texts()
    if options.allow_leaky_text:
        present = layout.find(DISCHARGE) is not None
        if present:
            _discharge(layout, stays, texts)
    elif options.text == "study":
        present = layout.reports is not None
        if present:
            _of_studies(layout, stays, films, options, texts)
    else:
        present = layout.find(RADIOLOGY) is not None
        if present:
            _notes(layout, stays, options, texts, counts)
    for stay in stays["stay_id"].to_list():
        if stay in texts.found:
            texts.reasons.pop(stay, None)
        else:
            texts.reasons.setdefault(stay, NOT_RECORDED if present else NOT_IN_SOURCE)
    return texts


def _notes(layout: Layout, stays: pl.DataFrame, options: Mimic4Options, texts: Texts, counts: Counter[str]) -> None:
    delay = pl.duration(seconds=round(options.report_delay_hours * 3600))
    chart, stored = timestamp("charttime"), timestamp("storetime")
    known = pl.when(pl.col("storetime").is_null()).then(chart + delay).otherwise(stored)
    cohort = stays.select("stay_id", "subject_id", "intime", "outtime", "prediction_time")
    parts = []
    for block in read_blocks(layout.require(RADIOLOGY), {"subject_id": pl.Int64, **NAMES}):
        notes = block.filter(pl.col("note_type") == "RR").with_columns(chart=chart, known=known)
        notes = notes.join(cohort, on="subject_id")
        parts.append(notes.filter(pl.col("chart").is_between(pl.col("intime"), pl.col("outtime"))))
    notes = pl.concat(parts) if parts else pl.DataFrame()
    if options.exams == "chest" and len(notes):
        notes = notes.join(_chest(layout), on="note_id", how="semi")
    if notes.is_empty():
        return
    in_time = (pl.col("known") >= pl.col("intime")) & (pl.max_horizontal("chart", "known") <= pl.col("prediction_time"))
    late = notes.filter(~in_time)
    texts.reasons.update(dict.fromkeys(late["stay_id"].to_list(), AFTER_CUTOFF))
    counts["radiology reports known too late, dropped"] += len(late)
    for row in notes.filter(in_time).sort("stay_id", "chart", "note_id").select("stay_id", "text", "known").iter_rows():
        counts["radiology reports without words, dropped"] += not texts.add(*row)


def _chest(layout: Layout) -> pl.DataFrame:
    """Return the ids of notes whose examination names the chest."""
    if layout.find(DETAIL) is None:
        raise UserError(f"exams: chest needs {DETAIL}.csv or .csv.gz beside {RADIOLOGY}. Add it, or set exams: all.")
    columns = dict.fromkeys(("note_id", "field_name", "field_value"), pl.String)
    chest = (pl.col("field_name") == "exam_name") & pl.col("field_value").str.to_uppercase().str.contains("CHEST")
    blocks = [block.filter(chest).select("note_id") for block in read_blocks(layout.require(DETAIL), columns)]
    return pl.concat([pl.DataFrame(schema={"note_id": pl.String}), *blocks])


def _of_studies(
    layout: Layout, stays: pl.DataFrame, films: dict[int, dict[str, Any]], options: Mimic4Options, texts: Texts
) -> None:
    assert layout.reports is not None
    end = dict(stays.select("stay_id", "prediction_time").iter_rows())
    for stay, film in films.items():
        patient = f"p{film['subject_id']}"
        path = layout.reports / "files" / patient[:3] / patient / f"s{film['study_id']}.txt"
        known = film["taken"] + timedelta(hours=0 if options.paper else options.report_delay_hours)
        if not options.paper and known > end[stay]:
            texts.reasons[stay] = AFTER_CUTOFF
        elif path.is_file():
            texts.add(stay, _read(path), known)


def _read(path: Path) -> str:
    return path.read_bytes().decode("utf-8", errors="replace")


def _discharge(layout: Layout, stays: pl.DataFrame, texts: Texts) -> None:
    cohort = stays.select("stay_id", "hadm_id")
    kept = [
        block.filter(pl.col("note_type") == "DS").join(cohort, on="hadm_id").with_columns(known=timestamp("charttime"))
        for block in read_blocks(layout.require(DISCHARGE), {"hadm_id": pl.Int64, **NAMES})
    ]
    if kept:
        for row in pl.concat(kept).sort("stay_id", "note_id").select("stay_id", "text", "known").iter_rows():
            texts.add(*row)
