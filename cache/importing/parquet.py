"""Parquet: a row per sample, its values a list of lists, or a flat list with `<key>_shape`.

Reads some rows at a time.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cache.errors import UserError
from cache.importing.raw import Layout, RawSample, as_text, files_of

ROWS = 64


def read_parquet(source: Path, layout: Layout) -> Iterator[RawSample]:
    """Yield the samples of a file or folder; a row whose values are null is a missing modality, so it is left out.

    Raises:
        UserError: not parquet, or no such columns.
    """
    key = layout.key or "tokens"
    optional = (f"{key}_shape", "maskable", "digest")
    for _, path in files_of(source, (".parquet",)):
        try:
            file = pq.ParquetFile(path)
            names = file.schema_arrow.names
            absent = [name for name in (layout.ids, key) if name not in names]
            if absent:
                raise UserError(
                    f"{path} has no column {' or '.join(absent)}; it has {', '.join(names)}. Use `--key` and `--ids`."
                )
            columns = [layout.ids, key, *(name for name in optional if name in names)]
            for batch in file.iter_batches(batch_size=ROWS, columns=columns):
                yield from (_sample(row, layout.ids, key) for row in _rows(batch) if row[key].is_valid)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path} is not readable parquet. Check `--format`.") from error


def _rows(batch: Any) -> Iterator[dict[str, Any]]:
    return ({name: batch.column(name)[i] for name in batch.schema.names} for i in range(batch.num_rows))


def _sample(row: dict[str, Any], ids: str, key: str) -> RawSample:
    sample_id, shape, maskable, digest = as_text(row[ids].as_py()), row.get(f"{key}_shape"), None, ""
    if "maskable" in row and row["maskable"].is_valid:
        maskable = np.asarray(row["maskable"].as_py(), bool)
    if "digest" in row and row["digest"].is_valid:
        digest = as_text(row["digest"].as_py())
    try:
        values = _values(row[key])
        values = values if shape is None or not shape.is_valid else values.reshape(shape.as_py())
    except (ValueError, TypeError):
        return RawSample(sample_id, None, "its lists have different lengths, no numbers, or do not fit the shape")
    return RawSample(sample_id, values, maskable=maskable, digest=digest)


def _values(scalar: Any) -> np.ndarray:
    """Return [D] of a list, [T, D] of a list of lists; null in a list is NaN."""
    inner = scalar.values
    if pa.types.is_nested(inner.type):
        return np.asarray(scalar.as_py(), np.float32)
    return np.asarray(inner.to_numpy(zero_copy_only=False))
