"""The Ray engine: lost workers change nothing, and the bytes are those of the local engine."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cache.errors import UserError
from cache.store import TokenStore
from extract.engines.chunks import WorkQueue, chunk_samples, cut
from extract.engines.claims import Claims
from extract.engines.progress import Progress
from extract.engines.ray import EncodingActor, Pool
from extract.engines.worker import Job
from extract.extraction import Engine, choose_engine, extract_modality
from extract.samples import SamplesTable


class LostActor(Exception):
    """What the imitation raises where Ray raises RayActorError."""


class ImitationRay:
    """Actors in this process, answered in order; `dies(call number)` kills the actor that answers."""

    exceptions = SimpleNamespace(RayTaskError=ZeroDivisionError, RayActorError=LostActor)

    def __init__(self, dies: Any) -> None:
        self.dies, self.calls, self.actors = dies, 0, 0

    def start(self, job: Job) -> Any:
        self.actors += 1
        actor = EncodingActor(job)

        def later(method: Any) -> Any:
            return SimpleNamespace(remote=lambda *chunk: (id(actor), next(self.numbers), lambda: method(*chunk)))

        return SimpleNamespace(encode=later(actor.encode), publish=later(actor.publish))

    numbers = iter(range(10**9))

    def wait(self, answers: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        return answers[:num_returns], answers[num_returns:]

    def get(self, answer: Any) -> Any:
        self.calls += 1
        if self.dies(self.calls):
            raise LostActor
        return answer[2]()


def pool(tmp_path: Path, out: Path, dies: Any, toy: Any) -> tuple[ImitationRay, Any]:
    data, folder = SamplesTable.read(tmp_path / "samples"), tmp_path / "encoder"
    wanted = TokenStore.open(tmp_path / "alone.zarr").view()
    done = TokenStore.open(tmp_path / "alone.zarr")
    store = TokenStore.create(out, done.key, done.width, done.dtype)
    imitation = ImitationRay(dies)
    job = Job(data.root, "txt", folder, toy.SETTINGS, out).absolute()

    def run() -> None:
        with Claims(out) as claims:
            queue = WorkQueue(store, cut(wanted, chunk_samples(toy.SETTINGS)), claims)
            Pool(imitation, lambda: imitation.start(job), 2, queue, Progress("txt", len(wanted))).run()
            store.publish_view(wanted)

    return imitation, run


@pytest.mark.parametrize("lost", [[], [1], [2, 3, 7], [4, 5, 6, 9]])
def test_lost_workers_change_nothing(tmp_path: Path, alone: Path, lost: list[int], toy: Any) -> None:
    imitation, run = pool(tmp_path, tmp_path / "pool.zarr", lambda call: call in lost, toy)
    run()
    assert imitation.actors == 2 + len(lost)
    toy.assert_same_bytes(alone, tmp_path / "pool.zarr")
    assert sum(entry["samples"] for entry in TokenStore.open(tmp_path / "pool.zarr").entries()) == 199
    assert len(TokenStore.open(tmp_path / "pool.zarr").entries()) <= 6


def test_samples_that_kill_every_worker_end_the_run(tmp_path: Path, alone: Path, toy: Any) -> None:
    _, run = pool(tmp_path, tmp_path / "pool.zarr", lambda call: True, toy)
    with pytest.raises(UserError, match="died 3 times on the same 32 samples"):
        run()


def test_options_of_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_engine("local", None, None) == Engine()
    with pytest.raises(UserError, match="local, ray"):
        choose_engine("spark", None, None)
    with pytest.raises(UserError, match="--engine ray"):
        choose_engine("local", None, 2)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"selfmask\[ray\]"):
        choose_engine("ray", None, None)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ray_with_a_worker_killed_gives_the_bytes_of_the_local_engine(tmp_path: Path, toy: Any) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'selfmask[ray]')")
    import psutil

    data, folder = toy.table(tmp_path / "samples", 3000), toy.encoder(tmp_path / "encoder", toy.SLOW_ENCODER)
    extract_modality(data, "txt", folder, toy.SETTINGS, tmp_path / "alone.zarr")
    driver = toy.process(tmp_path, "ray.zarr", "ray")
    toy.wait_for_parts(tmp_path / "ray.zarr", 1, driver)
    below = psutil.Process(driver.pid).children(recursive=True)
    actors = [child for child in below if child.is_running() and "EncodingActor" in " ".join(child.cmdline())]
    assert actors
    actors[0].kill()
    text, error = driver.communicate()
    assert driver.returncode == 0, error
    assert "a worker was lost" in error
    assert "3000/3000 samples" in error
    assert "'encoded': 2999, 'samples': 3000, 'unreadable': 1" in text
    toy.assert_same_bytes(tmp_path / "alone.zarr", tmp_path / "ray.zarr")
