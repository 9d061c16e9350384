"""Which ICU stays count, their labels and splits, with every rule's losses.

The rules are those of the public benchmarks in their order, which decides which stay of an admission is left. `fixed`
takes the age at admission and the hospital's own flag of death; `paper` the age of the anchor year and a date of death
between admission and discharge, which misses deaths on the day of admission and counts some who left alive.
"""

from collections import Counter
from dataclasses import dataclass, field

import polars as pl

from cache.errors import UserError
from extract.samples import CountStep
from extract.sources.mimic4.layout import Layout
from extract.sources.mimic4.options import Mimic4Options
from extract.sources.mimic4.tables import read_table, timestamp

ADULT_YEARS = 18
EPSILON_HOURS = 1e-6
TIMES = ("intime", "outtime", "admittime", "dischtime", "deathtime")
IDS = {"subject_id": pl.Int64, "hadm_id": pl.Int64, "stay_id": pl.Int64}


@dataclass
class Funnel:
    """Steps of the cohort so far, and the stays that they left out."""

    steps: list[CountStep] = field(default_factory=list)
    dropped: list[pl.DataFrame] = field(default_factory=list)

    def keep(self, stays: pl.DataFrame, step: str, reason: str, rule: pl.Expr) -> pl.DataFrame:
        """Keep the stays that a rule is known to hold for; log the others."""
        marked = stays.with_columns(_keep=rule.fill_null(False))
        kept, out = marked.filter("_keep").drop("_keep"), marked.filter(~pl.col("_keep"))
        source = pl.col("stay_id").cast(pl.String).alias("source_id")
        self.dropped.append(out.select(source, pl.lit(step).alias("step"), pl.lit(reason).alias("reason")))
        self.steps.append(CountStep(step=step, kept=len(kept), dropped=len(out)))
        return kept


def read_cohort(layout: Layout, options: Mimic4Options, funnel: Funnel, counts: Counter[str]) -> pl.DataFrame:
    """Return the stays that pass every rule that needs no events.

    Returns:
        subject_id, hadm_id, stay_id, intime, outtime, window_end (events up to it), prediction_time, died (0 or 1).

    Raises:
        UserError: a table or column is absent, an id repeats, or a flag of death is unknown.
    """
    stays = _join_tables(layout)
    funnel.steps.append(CountStep(step="ICU stays", kept=len(stays), dropped=0))
    for step, reason, rule in _rules(options):
        stays = funnel.keep(stays, step, reason, rule)
    _check_flags(layout, stays, counts)
    own = pl.col("intime") + pl.duration(seconds=(pl.col("hours") * 3600).round())
    end = own if options.window is None else pl.min_horizontal(own, pl.col("intime") + options.window)
    died = _died_between() if options.paper else pl.col("hospital_expire_flag") == 1
    stays = stays.with_columns(window_end=end, died=died.fill_null(False).cast(pl.Int8))
    return stays.with_columns(prediction_time="window_end")


def _join_tables(layout: Layout) -> pl.DataFrame:
    """Return every stay with its admission and patient; unknown ones stay, with nulls, so that they are counted."""
    texts = dict.fromkeys(("first_careunit", "last_careunit", "intime", "outtime"), pl.String)
    admission = {"hadm_id": pl.Int64, **dict.fromkeys(TIMES[2:], pl.String), "hospital_expire_flag": pl.Int64}
    patient = {"subject_id": pl.Int64, "anchor_age": pl.Int64, "anchor_year": pl.Int64, "dod": pl.String}
    tables = (
        ("icu/icustays", "stay_id", {**IDS, **texts, "los": pl.Float64}),
        ("hosp/admissions", "hadm_id", admission),
        ("hosp/patients", "subject_id", patient),
    )
    loaded = []
    for name, key, columns in tables:
        table = read_table(layout.require(name), columns)
        if table[key].n_unique() != len(table) or table[key].null_count():
            raise UserError(f"{layout.find(name)} repeats or lacks a {key}; it must be unique. Download it again.")
        loaded.append(table)
    stays = loaded[0].join(loaded[1], on="hadm_id", how="left").join(loaded[2], on="subject_id", how="left")
    died = pl.col("dod").str.slice(0, 10).str.strptime(pl.Datetime("us"), "%Y-%m-%d", strict=False)
    stays = stays.with_columns(*(timestamp(c).alias(c) for c in TIMES), dod=died).sort("stay_id")
    length = (pl.col("outtime") - pl.col("intime")).dt.total_seconds() / 3600
    return stays.with_columns(hours=pl.when(pl.col("los").is_not_null()).then(length))


def _rules(options: Mimic4Options) -> list[tuple[str, str, pl.Expr]]:
    hours = pl.col("hours")
    age = pl.col("anchor_age")
    if not options.paper:
        age = age + pl.col("admittime").dt.year() - pl.col("anchor_year")
    rules = [
        ("no transfer", "moved between care units", pl.col("first_careunit") == pl.col("last_careunit")),
        ("one stay per admission", "another stay in the admission", pl.len().over("hadm_id") == 1),
        ("valid times", "outtime or length missing, or outtime before intime", hours > 0),
        ("adult", f"younger than {ADULT_YEARS}, or age unknown", age >= ADULT_YEARS),
    ]
    if options.task == "mortality":
        assert options.hours is not None
        rules.append((f"stay of {options.hours:g} h", "stay too short", hours >= options.hours - EPSILON_HOURS))
    return rules


def _check_flags(layout: Layout, stays: pl.DataFrame, counts: Counter[str]) -> None:
    unknown = stays["hospital_expire_flag"].is_in([0, 1]).not_().fill_null(True).sum()
    if unknown:
        where = layout.find("hosp/admissions")
        raise UserError(f"{where} has no hospital_expire_flag of 0 or 1 for {unknown} stays. Download it again.")
    differs = (stays["hospital_expire_flag"] == 1) != stays["deathtime"].is_not_null()
    counts["stays whose flag and time of death disagree"] = int(differs.sum())


def _died_between() -> pl.Expr:
    inside = [pl.col(name).is_between(pl.col("admittime"), pl.col("dischtime")) for name in ("dod", "deathtime")]
    return inside[0].fill_null(False) | inside[1].fill_null(False)
