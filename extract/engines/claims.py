"""Which process works on what, by file locks in `<cache>/.claims`.

The kernel drops the locks of a process that ends in any way, so a claim never outlives its owner and nothing has to
expire. Claims save work and protect nothing: where a file system has no locks, two processes do the same chunk, and
the cache keeps one of the results. The folder is removed when an extraction completes.
"""

import fcntl
import os
import shutil
from pathlib import Path
from types import TracebackType

from cache.errors import UserError

FOLDER = ".claims"
WRITERS = "writers"


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
        if kind is None:
            # Whoever still waits for a chunk keeps its open file and looks into the cache before it starts.
            shutil.rmtree(self.folder, ignore_errors=True)
        for name in list(self._held):
            self.release(name)

    def take(self, name: str, *, wait: bool = False) -> bool:
        """Claim a chunk; False when another process has it and `wait` is false."""
        return self._lock(name, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))

    def release(self, name: str) -> None:
        """Give up a claim."""
        os.close(self._held.pop(name))

    def _lock(self, name: str, how: int) -> bool:
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder / name, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            fcntl.flock(descriptor, how)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._held[name] = descriptor
        return True


def require_no_writer(store: Path) -> None:
    """Raise UserError when a process is extracting into this cache right now."""
    if not (store / FOLDER / WRITERS).exists():
        return
    with (store / FOLDER / WRITERS).open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{store} holds other tokens, and a running `selfmask extract` is adding to them. "
                "Stop it or wait for it, and run the same command."
            ) from error
