"""One rewriter of a cache at a time, and no view published while samples are being dropped.

Appending needs no lock: parts are independent. Removing does: two rewriters that drop duplicates on different
snapshots could each rely on the copy that the other removes. The lock is `flock` on the folder itself, so it leaves no
file behind and the kernel releases it when its holder is killed.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cache.errors import UserError


@contextmanager
def rewriting(store: Path) -> Iterator[None]:
    """Hold the cache's lock.

    Raises:
        UserError: another process holds it, or the file system has no locks.
    """
    with _opened(store) as descriptor:
        _lock(descriptor, store)
        yield


@contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Wait for whoever has the folder's lock, a rewriter for example, and keep others out."""
    with _opened(folder) as descriptor:
        with suppress(OSError):  # no locks here: then there is no rewriter either
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int, store: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(
            f"{store} is being changed by another process. Run the same command when it is done."
        ) from error
    except OSError as error:
        raise UserError(f"{store}: the file system has no locks ({error}). Compact a copy on a local disk.") from error
