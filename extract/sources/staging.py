"""A samples table with many files is made beside its place and put there as a whole.

The folder beside it survives a kill; a stamp of the inputs says whether the next run may go on with what it holds. The
cost is the listing of the raw folder.
"""

import errno
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from cache.errors import UserError
from cache.publish import fingerprint, publish_folder, write_json
from extract.samples import SamplesTable

STAMP = "stamp.json"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_places(raw: Path, out: Path) -> None:
    """Refuse to replace what is no samples table.

    Raises:
        UserError: there is no `raw`, one lies in the other, or `out` holds something else.
    """
    if not raw.is_dir():
        raise UserError(f"There is no folder {raw}. --raw must name the folder of the raw data.")
    here, there = raw.resolve(), out.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise UserError(f"--raw {raw} and --out {out} must not lie in each other. Keep raw data outside {out}.")
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "samples.parquet").is_file())):
        raise UserError(f"{out} is there and is no samples table; it would be replaced. Give another --out.")


def stage(raw: Path, out: Path, settings: Mapping[str, Any]) -> Path:
    """Return the folder to work in: beside `out`, empty unless a run with the same inputs was cut off in it.

    Args:
        raw: folder whose files' names, sizes and times are the inputs,
        out: folder that it will become.
        settings: what else the result depends on.
    """
    partial = out.with_name(f".{out.name}.partial")
    files = sorted((p.relative_to(raw).as_posix(), p.stat().st_size, p.stat().st_mtime_ns) for p in _files(raw))
    stamp = fingerprint([dict(settings), files])
    if _stamp(partial) != stamp:
        shutil.rmtree(partial, ignore_errors=True)
        write_json(partial / STAMP, {"inputs": stamp})
    for half in partial.rglob(".*.partial"):  # what a kill left in the middle of a file
        half.unlink()
    return partial


def file_within(raw: Path, name: str, where: str) -> Path | None:
    """Return a file of the raw folder, None if it is not there.

    Raises:
        UserError: the path leaves the folder; `where` says who names it.
    """
    try:
        path = (raw / name).resolve()
        found = path.is_file()
    except (OSError, ValueError, RuntimeError):  # too long, a null byte, a loop of links
        return None
    if not path.is_relative_to(raw.resolve()):
        raise UserError(f"{where} names a file outside {raw}. Paths are relative to the table's folder.")
    return path if found else None


def set_missing(frame: pd.DataFrame, modality: str, rows: "pd.Series[bool]", reason: str) -> None:
    """Give rows a reason why they lack a modality."""
    name = f"{modality}_missing_reason"
    frame[name] = frame.get(name, pd.Series(None, index=frame.index, dtype=object)).astype(object)
    frame.loc[rows, name] = reason


def _files(raw: Path) -> list[Path]:
    return [path for path in raw.rglob("*") if path.is_file()]


def _stamp(partial: Path) -> str | None:
    try:
        return str(json.loads((partial / STAMP).read_text())["inputs"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def publish(partial: Path, out: Path, table: SamplesTable) -> SamplesTable:
    """Put a finished table in its place."""
    (partial / STAMP).unlink(missing_ok=True)
    publish_folder(partial, out)
    return SamplesTable(out, table.info, table.frame)


@contextmanager
def clear_when_full(out: Path) -> Iterator[None]:
    """Turn a full disk into one clear error.

    Raises:
        UserError: no space is left, or a quota or limit of file sizes is reached.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise UserError(
            f"No space is left for {out} ({error.strerror}). Free some and run the same command again; what is "
            "finished beside it is kept."
        ) from error
