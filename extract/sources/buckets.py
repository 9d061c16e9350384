"""Rows of a large table that are kept, in files by sample: one pass writes them, each bucket then fits in memory.

A step is published by rename with a stamp of what it was made from; run again after an interruption it is taken as it
is if the stamp still holds. Costs the kept rows on disk (16 bytes each before compression), removed at the end.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from cache.publish import fingerprint, publish_folder, write_json

MOST, STAYS_EACH = 64, 1000
FLUSH_ROWS = 1 << 20
STAMP = "stamp.json"


def stamp_of(path: Path, code: Path, *depends: Any) -> str:
    """Return a digest of a file's name, size and time, of the code in a folder and this one, and what else counts."""
    sources = (*sorted(code.glob("*.*")), *sorted(Path(__file__).parent.glob("*.*")))
    texts = [source.read_text() for source in sources if source.suffix in (".py", ".csv")]
    stat = path.stat()
    return fingerprint([path.name, stat.st_size, stat.st_mtime_ns, texts, *depends])


def frame_digest(frame: pl.DataFrame) -> str:
    """Return a digest of a table's rows, in their order."""
    return fingerprint([frame.columns, frame.hash_rows(seed=0).to_list()])


def bucket_count(stays: int) -> int:
    """Return how many buckets a cohort gets: each file costs a flush, each bucket is in memory at once."""
    return min(MOST, 1 + stays // STAYS_EACH)


def fill_buckets(
    folder: Path, stamp: str, frames: Iterable[pl.DataFrame], key: str, buckets: int, counts: Counter[str]
) -> None:
    """Write `<folder>/<bucket>.parquet` from frames, or keep those of an earlier run with this stamp.

    Args:
        folder: of this step alone.
        stamp: what the rows depend on.
        frames: same columns each; read only where it is needed.
        key: their column of whole numbers, a sample each; a sample's rows lie in one bucket.
        buckets: how many.
        counts: what `frames` counts while it is read; of an earlier run, what it had counted.
    """
    done = folder / STAMP
    if done.is_file() and (content := json.loads(done.read_text()))["stamp"] == stamp:
        counts.update(content["counts"])
        return
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    before = Counter(counts)
    with ExitStack() as stack:
        writers: dict[int, pq.ParquetWriter] = {}
        for frame in _batches(frames):
            for (bucket,), rows in (
                frame.with_columns(_b=pl.col(key) % buckets).partition_by("_b", as_dict=True).items()
            ):
                table = rows.drop("_b").to_arrow()
                if bucket not in writers:
                    writers[bucket] = stack.enter_context(pq.ParquetWriter(partial / f"{bucket}.parquet", table.schema))
                writers[bucket].write_table(table)
    found = {name: counts[name] - before[name] for name in counts}
    write_json(partial / STAMP, {"stamp": stamp, "counts": found})
    publish_folder(partial, folder)


def read_buckets(folders: Iterable[Path]) -> Iterator[pl.DataFrame]:
    """Yield the rows of one bucket after the other, those of all folders together."""
    paths = [path for folder in folders for path in folder.glob("*.parquet")]
    for bucket in sorted({path.name for path in paths}):
        yield pl.concat([pl.read_parquet(path) for path in paths if path.name == bucket])


def _batches(frames: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Join frames to some size, so that a bucket's row groups are not tiny."""
    waiting: list[pl.DataFrame] = []
    for frame in frames:
        waiting.append(frame)
        if sum(map(len, waiting)) >= FLUSH_ROWS:
            yield pl.concat(waiting)
            waiting = []
    if waiting:
        yield pl.concat(waiting)
