"""The work of an extraction, cut into chunks, and which of them this process may take.

Chunks are consecutive samples of what the cache lacks, a few batches each. Every engine forms its batches inside one
chunk, in the same order, so the bytes of a sample don't depend on the engine, on the number of workers or on which of
them died. Chunks are published whole, so a run that goes on after a kill cuts the rest as the first one did.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from cache.publish import fingerprint
from cache.store import TokenStore
from extract.config import ExtractSettings
from extract.engines.claims import Claims


@dataclass(frozen=True)
class Chunk:
    """Samples that are encoded together, id to digest of the raw value; the name is what a process claims."""

    name: str
    samples: dict[str, str]


def chunk_samples(extract: ExtractSettings) -> int:
    """Return the number of samples in a chunk."""
    return extract.sorted_batches * extract.batch_size


def cut(samples: Mapping[str, str], size: int) -> Iterator[Chunk]:
    """Cut `samples` (id to digest) into chunks of `size`, in order."""
    items = list(samples.items())
    for start in range(0, len(items), size):
        own = items[start : start + size]
        yield Chunk(fingerprint(own), dict(own))


class WorkQueue:
    """The chunks that are left; processes that extract into the same cache share them by claims."""

    def __init__(
        self, store: TokenStore, chunks: Iterable[Chunk], claims: Claims, *, retry_failed: bool = False
    ) -> None:
        self.store, self.claims, self.retry_failed = store, claims, retry_failed
        self._left = deque(chunks)
        self._lost: deque[Chunk] = deque()
        self._elsewhere: deque[Chunk] = deque()
        self._known_parts = self._parts()

    def next(self) -> Chunk | None:
        """Claim the next chunk; None when every chunk left is another process's."""
        if self._lost:
            return self._lost.popleft()
        while self._left:
            chunk = self._left.popleft()
            if not self.claims.take(chunk.name):
                self._elsewhere.append(chunk)
            elif (rest := self._rest(chunk)) is not None:
                return rest
        return None

    def wait(self) -> Chunk | None:
        """Claim a chunk that another process had and did not finish, once that process is done with it.

        Publish what you hold before: two processes that wait for each other's chunks would wait for ever.
        """
        while self._elsewhere:
            chunk = self._elsewhere.popleft()
            self.claims.take(chunk.name, wait=True)
            if (rest := self._rest(chunk)) is not None:
                return rest
        return None

    def retry(self, chunk: Chunk) -> None:
        """Put a claimed chunk back in front: its worker is lost."""
        self._lost.append(chunk)

    def published(self, chunks: Iterable[Chunk], part: str | None) -> None:
        """Give up the claims on chunks that lie in the cache now."""
        self._known_parts |= {part} if part else set()
        for chunk in chunks:
            self.claims.release(chunk.name)

    def _rest(self, chunk: Chunk) -> Chunk | None:
        """What of a claimed chunk no other process has published since this one looked."""
        if not self._parts() - self._known_parts:
            return chunk
        missing = self.store.missing_from(chunk.samples, retry_failed=self.retry_failed)
        if not missing:
            self.claims.release(chunk.name)
            return None
        return Chunk(chunk.name, {i: chunk.samples[i] for i in missing})

    def _parts(self) -> set[str]:
        return {path.stem for path in (self.store.path / "manifest").glob("*.json")}
