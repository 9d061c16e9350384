"""Extraction in this process: one chunk after another, sharing them with other processes on the same cache."""

from collections.abc import Callable

from extract.engines.chunks import Chunk, WorkQueue
from extract.engines.worker import Worker


def run_local(worker: Worker, queue: WorkQueue, progress: Callable[[int], None]) -> None:
    """Encode and publish every chunk of the queue."""
    held: list[Chunk] = []

    def publish() -> None:
        queue.published(held, worker.publish())
        held.clear()

    while (chunk := queue.next()) is not None:
        full = worker.encode(chunk, progress)
        held.append(chunk)
        if full:
            publish()
    publish()
    while (chunk := queue.wait()) is not None:
        worker.encode(chunk, progress)
        held.append(chunk)
        publish()
