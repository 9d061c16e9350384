"""Extraction on a Ray cluster: one actor per GPU, or per CPU slot where there is no GPU.

The driver hands out chunks of sample ids as actors become free and never holds a value or a token: actors read the
table, the encoder and the raw files themselves, so all machines need the same paths and packages, and each publishes
its own parts. When an actor is lost, another takes its place and everything it had not published is encoded again.
"""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cache.errors import UserError
from extract.engines.chunks import Chunk, WorkQueue
from extract.engines.progress import Progress
from extract.engines.worker import Job, Worker

LOSSES_PER_CHUNK = 3  # the same samples in flight each time a worker died: they are the cause, for example of no memory


class EncodingActor:
    """A worker in a process of its own."""

    def __init__(self, job: Job) -> None:
        self.worker = Worker.load(job)
        self.preparation = self.worker.preparation().__enter__()  # its processes end with the actor's

    def encode(self, chunk: Chunk) -> tuple[int, int, bool, str | None]:
        """Encode a chunk: (samples, tokens, whether everything held was published, its part)."""
        before = self.worker.held_tokens
        full = self.worker.encode(self.preparation.begin(chunk), lambda samples, tokens: None)
        tokens = self.worker.held_tokens - before
        return len(chunk.samples), tokens, full, self.worker.publish() if full else None

    def publish(self) -> tuple[int, int, bool, str | None]:
        """Publish what is held."""
        return 0, 0, True, self.worker.publish()


@dataclass
class _Seat:
    """One actor: what it is computing, and the chunks that it holds without having published them."""

    actor: Any
    flying: Chunk | None = None
    held: list[Chunk] = field(default_factory=list)


class Pool:
    """Actors at work on a queue; `ray` is the module, `start` makes an actor."""

    def __init__(self, ray: Any, start: Any, workers: int, queue: WorkQueue, progress: Progress) -> None:
        self.ray, self.start, self.queue, self.progress = ray, start, queue, progress
        self.idle = [_Seat(start()) for _ in range(workers)]
        self.running: dict[Any, _Seat] = {}
        self.losses: Counter[str] = Counter()

    def run(self) -> None:
        """Work until every chunk is published.

        Raises:
            UserError: a worker's mistake in input or settings, or samples that kill every worker.
        """
        while self._hand_out():
            done, _ = self.ray.wait(list(self.running), num_returns=1)
            self._collect(done[0])

    def _hand_out(self) -> bool:
        """Give every idle actor a chunk, or let it publish; False when nothing is left."""
        for seat in list(self.idle):
            seat.flying = self.queue.next()
            if seat.flying is not None:
                self._send(seat, seat.actor.encode.remote(seat.flying))
            elif seat.held:
                self._send(seat, seat.actor.publish.remote())
        if not self.running and (chunk := self.queue.wait()) is not None:
            self.queue.retry(chunk)
            return self._hand_out()
        return bool(self.running)

    def _send(self, seat: _Seat, answer: Any) -> None:
        self.idle.remove(seat)
        self.running[answer] = seat

    def _collect(self, answer: Any) -> None:
        seat = self.running.pop(answer)
        try:
            count, tokens, published, part = self.ray.get(answer)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, UserError) else error from None
        except self.ray.exceptions.RayActorError:
            self._replace(seat)
            return
        if seat.flying is not None:
            seat.held.append(seat.flying)
        if published:
            self.queue.published(seat.held, part)
            seat.held = []
        self.idle.append(seat)
        self.progress.update(count, tokens)

    def _replace(self, seat: _Seat) -> None:
        """Let other actors do what a lost one had not published."""
        if seat.flying is not None:
            self.losses[seat.flying.name] += 1
            if self.losses[seat.flying.name] >= LOSSES_PER_CHUNK:
                raise UserError(
                    f"Workers died {LOSSES_PER_CHUNK} times on the same {len(seat.flying.samples)} samples. "
                    "Lower extract.batch_size, or give a worker more memory."
                )
        again = [*seat.held, *([seat.flying] if seat.flying is not None else [])]
        for chunk in again:
            self.queue.retry(chunk)
        lost = sum(len(chunk.samples) for chunk in seat.held)
        self.progress.done -= lost
        self.progress.say(f"a worker was lost; {sum(len(c.samples) for c in again)} samples go to others")
        self.idle.append(_Seat(self.start()))


def run_ray(job: Job, queue: WorkQueue, progress: Progress, address: str | None, workers: int | None) -> None:
    """Encode and publish every chunk of the queue on Ray.

    Args:
        job: the extraction.
        queue: its chunks.
        progress: printed here, for all workers.
        address: of a running cluster; None starts one on this machine, for as long as this runs.
        workers: actors; default one per GPU, or per CPU where the cluster has no GPU.

    Raises:
        UserError: ray is not installed, the cluster cannot be reached or is smaller than `workers`.
    """
    ray = import_ray()
    _connect(ray, address, workers)
    try:
        resource, available = _slots(ray)
        if workers is not None and workers > available:
            raise UserError(f"--workers {workers}: the cluster has {available} {resource}s. Ask for at most as many.")
        options = {"num_gpus": 1} if resource == "GPU" else {"num_cpus": 1}
        remote = ray.remote(EncodingActor).options(**options)
        plain = job.absolute()
        Pool(ray, lambda: remote.remote(plain), workers or available, queue, progress).run()
    finally:
        ray.shutdown()


def import_ray() -> Any:
    """Return the module.

    Raises:
        UserError: it is not installed.
    """
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise UserError(
            "--engine ray needs Ray, which is not installed. Run `pip install 'selfmask[ray]'`, or use --engine local."
        ) from error
    return ray


def _connect(ray: Any, address: str | None, workers: int | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # extraction reports to nobody
    root = str(Path(__file__).resolve().parents[2])  # this checkout's packages win in the workers, too
    cpus = None if address else max(workers or 1, os.cpu_count() or 1)
    try:
        ray.init(
            address=address or "local",
            num_cpus=cpus,
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level="ERROR",
            runtime_env={"env_vars": {"PYTHONPATH": root}},
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"Cannot reach a Ray cluster at {address or 'this machine'}: {error}") from error


def _slots(ray: Any) -> tuple[str, int]:
    resources = ray.cluster_resources()
    resource = "GPU" if resources.get("GPU") else "CPU"
    return resource, max(1, int(resources.get(resource, 1)))
