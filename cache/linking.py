"""Copies of immutable parts that cost no space where the file system can share it.

A clone (reflink) first: it shares blocks, not the file. Then a hard link, except to a read-only file: that one belongs
to somebody else, such as DVC's cache, whose protection a link would inherit. Then bytes. The source is never touched;
its checksums are read first, so that damage does not travel.
"""

import errno
import fcntl
import os
import shutil
import stat
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from cache.errors import UserError
from cache.manifest import write_sealed
from cache.publish import publish_folder
from cache.verify import part_problems, require_whole

FICLONE = 0x40049409  # linux/fs.h; the fcntl module has no name for it before Python 3.12


def copy_part(source: Path, target: Path, entry: dict[str, Any]) -> bool:
    """Publish a copy of a part under its own id; False if the target has it.

    Raises:
        CorruptCacheError: a file of the part is absent or damaged.
        UserError: the disk is full or cannot be written.
    """
    part_id = entry["part"]
    document, final = target / "manifest" / f"{part_id}.json", target / "parts" / part_id
    if document.exists():
        return False
    require_whole(source, entry)
    temporary = target / "parts" / f".{part_id}.{uuid.uuid4().hex}.partial"
    try:
        # A folder without manifest entry is that of a merge killed, or running, between the two.
        if not final.exists() or part_problems(target, entry):
            _link_files(source / "parts" / part_id, temporary, entry["files"])
            _publish(temporary, final)
        write_sealed(document, entry)
    except OSError as error:
        raise UserError(
            f"{target}: cannot write a part ({error}). Free disk space and run the same command."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


def _publish(temporary: Path, final: Path) -> None:
    try:
        publish_folder(temporary, final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another merge was first, with the same bytes
            raise


def _link_files(source: Path, target: Path, names: Iterable[str]) -> None:
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        link_file(source / name, target / name)


def link_file(source: Path, target: Path) -> None:
    """Make `target`, which must not exist, hold the bytes of `source`, sharing space where possible."""
    if _clone(source, target):
        return
    if source.stat().st_mode & stat.S_IWUSR:
        with suppress(OSError):  # another file system, or one without links
            os.link(source, target)
            return
    shutil.copyfile(source, target)


def _clone(source: Path, target: Path) -> bool:
    with source.open("rb") as read, target.open("xb") as write:
        try:
            fcntl.ioctl(write, FICLONE, read.fileno())
        except OSError:
            target.unlink()
            return False
    return True
