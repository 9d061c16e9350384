"""Which process works on what, by file locks in `<cache>/.claims`.

The kernel drops the locks of a process that ends in any way, so a claim never outlives its owner and nothing has to
expire. Claims save work and protect nothing: where a file system has no locks, two processes do the same chunk, and
the cache keeps one of the results. The folder is removed when the last extraction completes.
"""

import errno
import fcntl
import os
import shutil
from pathlib import Path
from types import TracebackType

from cache.errors import UserError

FOLDER = ".claims"
WRITERS = "writers"
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


class Claims:
    """Exclusive claims on named chunks, and a shared one on the cache as a whole; use it in a `with`."""

    def __init__(self, store: Path) -> None:
        self.folder = store / FOLDER
        self._held: dict[str, int] = {}

    def __enter__(self) -> "Claims":
        self._lock(WRITERS, fcntl.LOCK_SH)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in list(self._held):
            self.release(name)
        if kind is None and not _is_written_to(self.folder):
            shutil.rmtree(self.folder, ignore_errors=True)

    def take(self, name: str, *, wait: bool = False) -> bool:
        """Claim a chunk; False when another process has it and `wait` is false."""
        return self._lock(name, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))

    def release(self, name: str) -> None:
        """Give up a claim."""
        os.close(self._held.pop(name))

    def _lock(self, name: str, how: int) -> bool:
        descriptor = self._open(name)
        if not _flock(descriptor, how):
            os.close(descriptor)
            return False
        self._held[name] = descriptor
        return True

    def _open(self, name: str) -> int:
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                return os.open(self.folder / name, os.O_CREAT | os.O_RDWR, 0o666)
            except FileNotFoundError:  # a process that completed has just removed the folder
                continue


def _flock(descriptor: int, how: int) -> bool:
    """Lock a file; False when another process has it, True also where files cannot be locked."""
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True


def _is_written_to(folder: Path) -> bool:
    if not (folder / WRITERS).exists():
        return False
    with (folder / WRITERS).open("rb+") as stream:
        return not _flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


def require_no_writer(store: Path) -> None:
    """Raise UserError when a process is extracting into this cache right now."""
    if _is_written_to(store / FOLDER):
        raise UserError(
            f"{store} holds other tokens, and a running `selfmask extract` is adding to them. "
            "Stop it or wait for it, and run the same command."
        )
