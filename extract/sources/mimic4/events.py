"""Chart and laboratory events of the cohort's stays in their windows, out of tables of hundreds of millions of rows.

One pass over each table: first the mapped items, which leaves about a tenth of the rows, then the join with the cohort.
`fixed` takes an event that was known by the prediction time (stored by then; charted by then where no time of storing
is given) and assigns laboratory rows without an admission, half of them, by subject and time. `paper` goes by the time
of charting and drops rows without an admission.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from extract.sources.buckets import bucket_count, fill_buckets, frame_digest, stamp_of
from extract.sources.mimic4 import variables as v
from extract.sources.mimic4.layout import Layout
from extract.sources.mimic4.options import Mimic4Options
from extract.sources.mimic4.tables import Types, read_blocks, timestamp

PRESSURES = r"^\s*(\d+)\s*/\s*(\d+)\s*$"  # 120/80
TABLES = {"chart": "icu/chartevents", "lab": "hosp/labevents"}
TEXTS = dict.fromkeys(("charttime", "storetime", "value"), pl.String)
COLUMNS: dict[str, Types] = {
    "chart": {"hadm_id": pl.Int64, "stay_id": pl.Int64, "itemid": pl.Int64, **TEXTS, "valuenum": pl.Float64},
    "lab": {"subject_id": pl.Int64, "hadm_id": pl.Int64, "itemid": pl.Int64, **TEXTS, "valuenum": pl.Float64},
}


def collect_events(
    layout: Layout, stays: pl.DataFrame, options: Mimic4Options, work: Path, counts: Counter[str]
) -> None:
    """Fill `work/chart` and `work/lab` with stay_id, item, second (since admission to the unit), number.

    Raises:
        UserError: a table or column is absent, or a file cannot be read to its end.
    """
    cohort = stays.select("subject_id", "hadm_id", "stay_id", "intime", "window_end", "prediction_time")
    for kind, name in TABLES.items():
        path = layout.require(name)
        stamp = stamp_of(path, Path(__file__).parent, kind, options.mode, frame_digest(cohort))
        rows = _kept(path, kind, cohort, options.paper, counts)
        fill_buckets(work / kind, stamp, rows, "stay_id", bucket_count(len(cohort)), counts)


def _kept(path: Path, kind: str, cohort: pl.DataFrame, paper: bool, counts: Counter[str]) -> Iterator[pl.DataFrame]:
    places = v.chart_places(paper=paper) if kind == "chart" else v.lab_places(paper=paper)
    number = _number(paper)
    for block in read_blocks(path, COLUMNS[kind]):
        counts[f"{kind} rows"] += len(block)
        events = block.filter(pl.col("itemid").is_in(list(places)))
        counts[f"{kind} rows of the variables"] += len(events)
        own = _charted(events, cohort, counts) if kind == "chart" else _drawn(events, cohort, paper, counts)
        yield _in_window(own, kind, paper, counts).select(
            pl.col("stay_id"), pl.col("itemid").cast(pl.Int32).alias("item"), "second", number.alias("number")
        )


def _charted(events: pl.DataFrame, cohort: pl.DataFrame, counts: Counter[str]) -> pl.DataFrame:
    """Join by admission, which has one stay: a row without a stay belongs to it, one of another stay is dropped."""
    joined = events.rename({"stay_id": "own"}).join(cohort, on="hadm_id")
    right = (pl.col("own") == pl.col("stay_id")).fill_null(True)
    kept = joined.filter(right)
    counts["chart rows outside the cohort"] += len(events) - len(joined)
    counts["chart rows without a stay, recovered"] += kept["own"].null_count()
    counts["chart rows of another stay, dropped"] += len(joined) - len(kept)
    return kept


def _drawn(events: pl.DataFrame, cohort: pl.DataFrame, paper: bool, counts: Counter[str]) -> pl.DataFrame:
    if paper:
        counts["lab rows without an admission, dropped"] += events["hadm_id"].null_count()
        return events.join(cohort.drop("subject_id"), on="hadm_id")
    joined = events.rename({"hadm_id": "own"}).join(cohort, on="subject_id")
    kept = joined.filter((pl.col("own") == pl.col("hadm_id")).fill_null(True))
    inside = timestamp("charttime").is_between(pl.col("intime"), pl.col("window_end"))
    counts["lab rows without an admission, recovered"] += len(kept.filter(pl.col("own").is_null() & inside))
    return kept


def _in_window(events: pl.DataFrame, kind: str, paper: bool, counts: Counter[str]) -> pl.DataFrame:
    at = timestamp("charttime")
    events = events.with_columns(at=at).filter(pl.col("at").is_between(pl.col("intime"), pl.col("window_end")))
    if not paper:
        late = (timestamp("storetime") > pl.col("prediction_time")).fill_null(False)
        known = events.filter(~late)
        counts[f"{kind} rows stored after the prediction time, dropped"] += len(events) - len(known)
        events = known
    return events.with_columns(second=(pl.col("at") - pl.col("intime")).dt.total_seconds().cast(pl.Int32))


def _number(paper: bool) -> pl.Expr:
    """Return the number as recorded, else one read from the text; in `paper` mode a coma text's rank as category."""
    item, text = pl.col("itemid"), pl.col("value").str.strip_chars()
    upper, lower = (text.str.extract(PRESSURES, group).cast(pl.Float64, strict=False) for group in (1, 2))
    pressure = pl.when(item.is_in(v.SYSTOLIC)).then(upper).when(item.is_in(v.DIASTOLIC)).then(lower)
    number = pl.coalesce(pressure, "valuenum", text.cast(pl.Float64, strict=False))
    if not paper:
        return pl.coalesce(pressure, "valuenum", _looked_up(item, text.str.to_lowercase(), v.SCORES), number)
    coma = [i for name in v.COMA_PARTS for i in v.VARIABLES[v.PLACE[name]].chart_items]
    return pl.when(item.is_in(coma)).then(_looked_up(item, text, v.category_ranks())).otherwise(number)


def _looked_up(item: pl.Expr, text: pl.Expr, table: dict[str, float]) -> pl.Expr:
    return pl.concat_str(item.cast(pl.String), pl.lit(":"), text).replace_strict(
        table, default=None, return_dtype=pl.Float64
    )
