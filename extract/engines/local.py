"""Extraction in this process: one chunk after another, sharing them with other processes on the same cache."""

from collections.abc import Callable, Iterator

from extract.engines.chunks import Chunk, WorkQueue
from extract.engines.preparing import Preparation, Prepared
from extract.engines.worker import Worker


def run_local(worker: Worker, queue: WorkQueue, progress: Callable[[int, int], None]) -> None:
    """Encode and publish every chunk of the queue."""
    held: list[Chunk] = []

    def publish() -> None:
        queue.published(held, worker.publish())
        held.clear()

    with worker.preparation() as preparation:
        _encode_own(worker, queue, preparation, held, publish, progress)
        while (chunk := queue.wait()) is not None:
            worker.encode(preparation.begin(chunk), progress)
            held.append(chunk)
            publish()


def _encode_own(
    worker: Worker,
    queue: WorkQueue,
    preparation: Preparation,
    held: list[Chunk],
    publish: Callable[[], None],
    progress: Callable[[int, int], None],
) -> None:
    """Encode what can be claimed at once; with workers, the values of the next chunk are prepared meanwhile."""
    ahead = 1 if preparation.workers else 0
    begun: list[tuple[Chunk, Iterator[Prepared]]] = []
    while True:
        while len(begun) <= ahead and (chunk := queue.next()) is not None:
            begun.append((chunk, preparation.begin(chunk)))
        if not begun:
            return publish()
        chunk, prepared = begun.pop(0)
        full = worker.encode(prepared, progress)
        held.append(chunk)
        if full:
            publish()
