"""Files with a row a measurement, block by block: their columns' types, and why a row does not count.

csv (also gzip) and parquet are read once, by pyarrow; memory is a few blocks whatever the file. A row that does not
count is counted under the first reason that applies. Messages name columns and types, never a cell.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from cache.errors import UserError

FORMS = (".csv", ".csv.gz", ".parquet")
BLOCK = 8 << 20  # bytes of csv
BATCH = 1 << 18  # rows of parquet
ON_A_BORDER = 1e-9  # bins; 0.3 s in bins of 0.1 s is 2.9999999999999996 in floating point, and means 3
MINUTE, SECOND = "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S%.f"
TEXTS = (pl.String, pl.Categorical, pl.Enum)


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    """Yield blocks of the named columns; those of a csv are text, an empty cell is null.

    Raises:
        UserError: the file is not in its form, or does not have each column once.
    """
    try:
        if path.suffix == ".parquet":
            yield from _parquet(path, columns)
        else:
            yield from _csv(path, columns)
    except (OSError, ValueError, pa.ArrowException) as error:  # its text may quote a row
        raise UserError(
            f"{path} cannot be read to its end ({type(error).__name__}). It must be UTF-8 csv with as many cells in "
            "every row as its header has, or parquet. Correct it and run the same command again."
        ) from error


def _csv(path: Path, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    parsing = pa.csv.ParseOptions(newlines_in_values=True)
    with pa.csv.open_csv(path, parse_options=parsing) as stream:
        _require(path, columns, stream.schema.names)
    texts = pa.csv.ConvertOptions(
        include_columns=columns, column_types=dict.fromkeys(columns, pa.string()), null_values=[""],
        strings_can_be_null=True,
    )  # fmt: skip
    reading = pa.csv.ReadOptions(block_size=BLOCK)
    with pa.csv.open_csv(path, read_options=reading, parse_options=parsing, convert_options=texts) as stream:
        for batch in stream:
            yield cast(pl.DataFrame, pl.from_arrow(batch))


def _parquet(path: Path, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    with pa.parquet.ParquetFile(path) as file:
        _require(path, columns, file.schema_arrow.names)
        yield cast(pl.DataFrame, pl.from_arrow(file.schema_arrow.empty_table().select(columns)))
        for batch in file.iter_batches(BATCH, columns=list(columns)):
            yield cast(pl.DataFrame, pl.from_arrow(batch))


def _require(path: Path, columns: Sequence[str], there: Sequence[str]) -> None:
    absent = [column for column in columns if there.count(column) != 1]
    if absent:
        raise UserError(
            f"{path} must have the columns {absent} once each; it has {list(there)}. Correct the file, or the roles "
            'under "long" in dataset.json.'
        )


def check_types(path: Path, rows: pl.DataFrame, names: Sequence[str], values: str, time: str, *, stamped: bool) -> None:
    """Refuse columns of a type that cannot play their role.

    Args:
        path: the file, for the message.
        rows: a block of it.
        names: columns that hold names: text or whole numbers.
        values: column of the values: numbers or text.
        time: column of the times: timestamps without a time zone or text if `stamped`, else numbers or text.
        stamped: whether times are timestamps.

    Raises:
        UserError: names the column, its type and what is allowed.
    """
    text = {name: isinstance(kind, TEXTS) for name, kind in rows.schema.items()}
    at, kinds = rows.schema[time], rows.schema
    wrong = {name: "text or whole numbers" for name in names if not (text[name] or kinds[name].is_integer())}
    if not (text[values] or kinds[values].is_numeric() or kinds[values] == pl.Boolean):
        wrong[values] = "numbers"
    if stamped and not (text[time] or (isinstance(at, pl.Datetime) and at.time_zone is None)):
        wrong[time] = 'timestamps without a time zone, as "start" is declared'
    if not stamped and not (text[time] or at.is_numeric()):
        wrong[time] = 'numbers in the declared unit; for timestamps declare "start" instead of "unit"'
    for name, allowed in wrong.items():
        raise UserError(f"{path}: column '{name}' is of type {kinds[name]}; it must hold {allowed}.")


def timestamps(column: str, kind: pl.DataType) -> pl.Expr:
    """Parse timestamps without a time zone, to the minute or finer; null where it is none.

    A date alone is none: at midnight it would lie before the measurement, and before a prediction time that the
    measurement came after.
    """
    if isinstance(kind, pl.Datetime):
        return pl.col(column).cast(pl.Datetime("us"))
    text = pl.col(column).cast(pl.String).str.strip_chars().str.replace("T", " ", literal=True)
    return pl.coalesce(*(text.str.strptime(pl.Datetime("us"), form, strict=False) for form in (SECOND, MINUTE)))


def number(column: str, kind: pl.DataType) -> pl.Expr:
    """Parse numbers; null where it is none."""
    cells = pl.col(column)
    text = isinstance(kind, TEXTS)
    return (cells.cast(pl.String).str.strip_chars() if text else cells).cast(pl.Float64, strict=False)


def in_bins(hours: pl.Expr, bin_hours: float) -> pl.Expr:
    """Return times in bins, those within rounding of a border on it."""
    place = hours / bin_hours
    return pl.when((place - place.round()).abs() < ON_A_BORDER).then(place.round()).otherwise(place)


def usable(rows: pl.DataFrame, bins: int, channels: Sequence[str], counts: Counter[str]) -> pl.DataFrame:
    """Return the rows that are measurements of the table's samples in the window.

    Args:
        rows: row (of the sample, null: unknown), variable, at (in bins), value, begun (its sample's start is known).
        bins: length of the window.
        channels: variables that count; empty: all.
        counts: rows left out are added by reason.
    """
    other = ~pl.col("variable").is_in(list(channels)) if channels else pl.lit(False)
    reasons = {
        "of no sample of the table": pl.col("row").is_null(),
        "without a variable": pl.col("variable").is_null(),
        "of no declared channel": other,
        "of a sample without a start": ~pl.col("begun"),
        "without a readable time": pl.col("at").is_null() | ~pl.col("at").is_finite(),
        "with no number as value": pl.col("value").is_null(),
        "with a value NaN, infinite or beyond float32": ~pl.col("value").cast(pl.Float32).is_finite(),
        "before the window": pl.col("at") < 0,
        "after the window": pl.col("at") > bins,
    }
    first = pl.coalesce(*(pl.when(applies).then(pl.lit(reason)) for reason, applies in reasons.items()))
    judged = rows.with_columns(reason=first)
    left_out = judged.filter(pl.col("reason").is_not_null())
    counts.update(dict(left_out["reason"].value_counts().iter_rows()))
    return judged.filter(pl.col("reason").is_null()).drop("reason")
