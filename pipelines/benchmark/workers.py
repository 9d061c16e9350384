"""Processes that share the runs of a suite, one thread each.

A worker takes one run after another, so that tokens are loaded once, and all start from a server that has imported
torch. A run that fails by a mistake in the input costs its worker nothing; anything else (a bug, a kill for memory)
ends the worker, whose traceback is on standard error, and a fresh one takes the next run. Workers end when this
process does, however it ends, so that none goes on beside those of the next start.
"""

import os
import signal
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from threading import Thread

from cache.errors import UserError
from pipelines.benchmark.suite import BenchmarkRun

PROCESS_BYTES = 10**9
"""What a worker takes beside its tokens: torch, a model, its activations."""
HEAVY = ["torch", "pandas", "scipy.stats", "sklearn.metrics", "zarr"]
"""Imported once; not this project, since the server does not know the first process's import path."""
Execute = Callable[[BenchmarkRun], None]


def fitting_jobs(wanted: int, token_bytes: int) -> int:
    """Return how many workers fit the memory that is free now, at most `wanted` and at least one."""
    return max(1, min(wanted, _available_bytes() // (token_bytes + PROCESS_BYTES)))


def run_all(
    runs: Sequence[BenchmarkRun], jobs: int, execute: Execute, report: Callable[[BenchmarkRun, str | None], None]
) -> dict[str, str]:
    """Do every run; returns the reason of each that failed, by its name.

    Args:
        runs: in the order in which they start.
        jobs: workers.
        execute: does one run, in a worker; a function that can be imported there.
        report: called here with each run that ends, and the reason if it failed.
    """
    waiting, failed = deque(runs), dict[str, str]()
    workers = [_Worker(execute) for _ in range(min(jobs, len(runs)))]
    try:
        while waiting or any(worker.run for worker in workers):
            for worker in workers:
                if worker.run is None and waiting:
                    worker.start(waiting.popleft())
            busy = {worker.connection: worker for worker in workers if worker.run}
            for connection in wait(list(busy)):
                worker = busy[connection]  # type: ignore[index]
                run, reason = worker.finish()
                if reason is not None:
                    failed[run.name] = reason
                report(run, reason)
    finally:
        for worker in workers:
            worker.stop()
    return failed


class _Worker:
    """One process and what it is doing."""

    def __init__(self, execute: Execute) -> None:
        self.execute = execute
        self.run: BenchmarkRun | None = None
        self._spawn()

    def _spawn(self) -> None:
        context = get_context("forkserver")  # imports torch once; a fork of this process could copy held locks
        context.set_forkserver_preload(HEAVY)
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, self.execute), daemon=True)
        self.process.start()
        theirs.close()

    def start(self, run: BenchmarkRun) -> None:
        self.run = run
        self.connection.send(run)

    def finish(self) -> tuple[BenchmarkRun, str | None]:
        """Return the run that has ended, and why it failed."""
        assert self.run is not None
        run, self.run = self.run, None
        try:
            return run, self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            code = self.process.exitcode or 0
            self.connection.close()
            self._spawn()
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            return run, f"its process {how}; what it said is above"

    def stop(self) -> None:
        self.process.terminate()
        self.process.join()
        self.connection.close()


def _serve(connection: Connection, execute: Execute) -> None:
    """Do runs until the other end is gone."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends the others
    Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    while True:
        try:
            run = connection.recv()
        except EOFError:
            return
        connection.send(_attempt(run, execute))


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # in the middle of a run: what it has published is whole, and the next start goes on from it


def _attempt(run: BenchmarkRun, execute: Execute) -> str | None:
    try:
        execute(run)
    except UserError as error:
        return " ".join(str(error).split())
    return None


def _available_bytes() -> int:
    facts = Path("/proc/meminfo")
    if facts.exists():
        lines = dict(line.split(":", 1) for line in facts.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
