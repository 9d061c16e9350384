"""CMU-MOSEI: sentiment and emotions of opinion videos from text, sound, film and published features.

Two kinds of raw folder: what the authors distribute (computational sequences, `.csd`, with or without the Raw folders
of transcripts, wav files and films beside them) and MMSA's (label.csv, clips, pickles). A segment is a video and an
interval, and everything else is found by it. A video lies in one split, by the standard folds, given as a file.

Clips are cut by threads into a folder beside `out`, which a killed run leaves and the next one goes on with. The real
corpus, sound and text alone, makes 23,000 small files of 6 GB.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cache.errors import UserError
from extract.samples import DatasetInfo, SamplesTable
from extract.sources.mosei.columns import Column, make_column
from extract.sources.mosei.inputs import Inputs, open_mmsa, open_sdk
from extract.sources.mosei.options import Options, parse_options
from extract.sources.mosei.sdk import read_folds
from extract.sources.mosei.segments import Funnel, Segment, in_folds, with_lengths, without_duplicates
from extract.sources.mosei.targets import label_spec, targets, usable
from extract.sources.staging import check_places, clear_when_full, publish, stage

LAYOUTS = "CMU_MOSEI_Labels.csd, Labels/*.csv of the annotators with Transcript/, or MMSA's label.csv (docs/mosei.md)"


def prepare_mosei(raw: Path, out: Path, options: Mapping[str, Any]) -> SamplesTable:
    """Write the samples table with its clips and series.

    Args:
        raw: folder of one layout; files are found below it by name, whatever the levels between.
        out: folder to write: table, a folder per modality with files.
        options: see `Options`; all are needed.

    Raises:
        UserError: an option is unknown or out of range; a needed file is absent or damaged; no space is left.
    """
    chosen = parse_options(options)
    check_places(raw, out)
    with clear_when_full(out):
        settings = chosen.model_dump(mode="json", exclude={"workers"})
        funnel = Funnel()
        segments, inputs = _open(raw, chosen, funnel)
        segments = _chosen_segments(segments, raw, chosen, funnel)
        partial = stage(raw, out, settings)
        columns = [make_column(name, segments, inputs, chosen, partial) for name in chosen.modalities]
        frame = _frame(segments, columns, chosen, funnel)
        info = _info(inputs, columns, chosen, settings, funnel)
        return publish(partial, out, SamplesTable.write(partial, info, frame, funnel.table()))


def _open(raw: Path, options: Options, funnel: Funnel) -> tuple[list[Segment], Inputs]:
    found = open_sdk(raw, options, funnel) or open_mmsa(raw)
    if found is None:
        raise UserError(f"{raw} holds no labels. It needs {LAYOUTS}.")
    absent = [name for name in options.modalities if name not in found[1].modalities]
    if absent:
        there = ",".join(sorted(found[1].modalities))
        raise UserError(
            f"{raw} holds nothing for {', '.join(absent)}. Prepare what it has: --set "
            f"'datasets.mosei.options.modalities=[{there}]', or name fewer of them."
        )
    return found


def _chosen_segments(segments: Sequence[Segment], raw: Path, options: Options, funnel: Funnel) -> list[Segment]:
    """Apply the rules in order; each logs what it leaves out."""
    funnel.keep(segments, "labelled segments", "", lambda segment: True)
    kept = with_lengths(without_duplicates(segments, funnel), funnel)
    if not all(segment.split for segment in kept):  # MMSA's label.csv has its own folds
        if options.folds is None:
            raise UserError(f"{raw} names no folds: options.folds must name their file, such as folds.json.")
        unlisted = None if options.unlisted == "drop" else options.unlisted
        kept = in_folds(kept, read_folds(raw / options.folds), unlisted, funnel)
    kept = usable(kept, options.task, options.binary, options.out_of_range, funnel)
    if not kept:
        steps = ", ".join(f"{step.step} {step.kept}" for step in funnel.steps)
        raise UserError(f"No segment of {raw} is left; after each step: {steps}. Check labels, folds and options.")
    return kept


def _frame(segments: Sequence[Segment], columns: Sequence[Column], options: Options, funnel: Funnel) -> pd.DataFrame:
    """Return the rows of the segments that have any modality."""
    some = {name for column in columns for name in column.cells}
    kept = funnel.keep(segments, "modality", "no modality at all", lambda s: s.id in some)
    rows = []
    for s in kept:
        row = {"sample_id": s.id, "group_id": s.video, "split": s.split, **targets(s, options.task)}
        row |= {"sentiment": s.sentiment, "start_seconds": s.start, "end_seconds": s.end}
        for column in columns:
            row[column.spec.column] = column.cells.get(s.id)
            row[f"{column.spec.name}_missing_reason"] = column.reasons.get(s.id)
        rows.append(row)
    frame = pd.DataFrame(rows)
    names = [name for c in columns for name in (c.spec.column, f"{c.spec.name}_missing_reason")]
    return frame.astype(dict.fromkeys(names, object))  # a column of nothing but nulls keeps its type


def _info(
    inputs: Inputs, columns: Sequence[Column], options: Options, settings: dict[str, Any], funnel: Funnel
) -> DatasetInfo:
    rules = {name: count for name, count in sorted(funnel.counts.items()) if count}
    return DatasetInfo(
        name="mosei",
        label=label_spec(options.task, options.binary),
        modalities=tuple(column.spec for column in columns),
        source={"name": "CMU-MOSEI", "labels": inputs.source, "rules": rules},
        options=settings,
        counts=tuple(funnel.steps),
    )
