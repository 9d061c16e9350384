"""Engines: one job is shared by processes, survives lost workers, and has the same bytes wherever it ran."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import extract.encoding as encoding
import extract.extraction as extraction
from cache.errors import StaleCacheError, UserError
from cache.store import TokenStore
from extract.config import ExtractSettings, TextSettings
from extract.encoders.registry import save_encoder
from extract.encoders.text import TextEncoder
from extract.encoders.tokenizer import train_tokenizer
from extract.engines.chunks import WorkQueue, chunk_samples, cut
from extract.engines.claims import Claims, require_no_writer
from extract.engines.progress import Progress
from extract.engines.ray import EncodingActor, Pool
from extract.engines.worker import Job
from extract.extraction import Engine, choose_engine, extract_modality
from extract.samples import DatasetInfo, ModalitySpec, SamplesTable
from extract.task import LabelSpec

ROOT = Path(__file__).parents[2]
WORDS = (
    *("no", "effusion", "clear", "opacity", "left", "right", "lung", "mild"),
    *("oedema", "normal", "heart", "size", "unchanged", "small", "large"),
)
SETTINGS = ExtractSettings(
    batch_size=4,
    batch_tokens=1000,
    workers=0,
    compile=False,
    dtype="float32",
    compression="none",
    precision="float32",
    sorted_batches=8,
    part_megabytes=0.058,  # two chunks of the small encoder's tokens, not three
    part_minutes=15.0,
)
SLOW_ENCODER = {"width": 64, "layers": 4, "heads": 4, "dropout": 0.1}
SMALL_ENCODER = {"width": 8, "layers": 1, "heads": 2, "dropout": 0.1}


def notes(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, int(rng.integers(2, 30)))) for _ in range(count)]


def table(root: Path, count: int) -> SamplesTable:
    texts: list[str | None] = [*notes(count)]
    texts[5] = "   "  # unreadable: it must not be in the way of the others
    names = [f"s{n:05d}" for n in range(count)]
    split = (["train", "valid", "test"] * count)[:count]
    frame = pd.DataFrame({"sample_id": names, "group_id": names, "split": split, "label": 0.0, "txt_text": texts})
    info = DatasetInfo(
        name="toy",
        label=LabelSpec(kind="regression", names=("label",)),
        modalities=(ModalitySpec(name="txt", kind="text", column="txt_text"),),
    )
    return SamplesTable.write(root, info, frame, pd.DataFrame({"source_id": [], "step": [], "reason": []}))


def encoder(folder: Path, sizes: dict[str, Any] = SMALL_ENCODER, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    settings = TextSettings(type="bert", weights="scratch", revision=None, max_tokens=24, vocabulary=60, **sizes)
    save_encoder(TextEncoder(settings, train_tokenizer(notes(50), 60, 24)).eval(), folder, {"stage": "test"})
    return folder


def tokens(out: Path, ids: list[str]) -> list[np.ndarray]:
    return [sample.tokens for sample in TokenStore.open(out).read(ids)]


def assert_same_bytes(one: Path, two: Path) -> None:
    view = TokenStore.open(one).view()
    assert view == TokenStore.open(two).view()
    failed = TokenStore.open(one).failures()
    assert failed == TokenStore.open(two).failures()
    ids = [i for i in view if i not in failed]
    assert all(np.array_equal(a, b) for a, b in zip(tokens(one, ids), tokens(two, ids), strict=True))
    assert TokenStore.open(two).verify().problems == []


def test_two_extractions_at_once_share_the_chunks_and_give_the_bytes_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, folder = table(tmp_path / "samples", 200), encoder(tmp_path / "encoder")
    alone = extract_modality(data, "txt", folder, SETTINGS, tmp_path / "alone.zarr")
    encode, seen, meet = encoding.encode_items, [], threading.Barrier(2)

    def slowly(model: Any, items: Any, precision: str) -> Any:
        if not any(name == threading.get_ident() for name, _ in seen):
            meet.wait(60)  # so that both are at work before either goes on
        seen.extend((threading.get_ident(), item[0]) for item in items)
        return encode(model, items, precision)

    monkeypatch.setattr(encoding, "encode_items", slowly)
    results: list[Any] = []
    out = tmp_path / "shared.zarr"
    threads = [
        threading.Thread(target=lambda: results.append(extract_modality(data, "txt", folder, SETTINGS, out)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [alone, alone]
    assert len({name for name, _ in seen}) == 2
    assert sorted(i for _, i in seen) == sorted({i for _, i in seen}), "a sample was encoded twice"
    assert_same_bytes(tmp_path / "alone.zarr", out)
    assert sum(entry["samples"] for entry in TokenStore.open(out).entries()) == 199
    assert not (out / ".claims").exists()


def test_a_cache_is_not_replaced_under_a_running_extraction(tmp_path: Path) -> None:
    data, out = table(tmp_path / "samples", 12), tmp_path / "txt.zarr"
    extract_modality(data, "txt", encoder(tmp_path / "one"), SETTINGS, out)
    other = encoder(tmp_path / "two", seed=1)
    with Claims(out), pytest.raises(UserError, match="running"):
        extract_modality(data, "txt", other, SETTINGS, out, replace=True)
    require_no_writer(out)
    with pytest.raises(StaleCacheError):
        extract_modality(data, "txt", other, SETTINGS, out)
    extract_modality(data, "txt", other, SETTINGS, out, replace=True)


def test_two_processes_that_find_other_tokens_replace_them_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = table(tmp_path / "samples", 40), tmp_path / "txt.zarr"
    extract_modality(data, "txt", encoder(tmp_path / "one"), SETTINGS, out)
    folder, results, both = encoder(tmp_path / "two", seed=1), [], threading.Barrier(2)
    alone = extract_modality(data, "txt", folder, SETTINGS, tmp_path / "alone.zarr")
    claimed = extraction._claimed

    def together(*given: Any) -> Any:
        both.wait(60)
        return claimed(*given)

    monkeypatch.setattr(extraction, "_claimed", together)

    def run() -> None:
        results.append(extract_modality(data, "txt", folder, SETTINGS, out, replace=True))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result["samples"] for result in results] == [alone["samples"]] * 2
    assert_same_bytes(tmp_path / "alone.zarr", out)


def test_a_failed_sample_is_tried_again_though_another_process_publishes_meanwhile(tmp_path: Path, alone: Path) -> None:
    done = TokenStore.open(alone)
    store = TokenStore.create(tmp_path / "x.zarr", done.key, done.width, done.dtype)
    store.record_failures({"s00005": ("d", "disk was away")})
    with Claims(store.path) as claims:
        (chunk,) = cut({"s00005": "d"}, 1)
        for retry, expected in ((True, chunk), (False, None)):
            queue = WorkQueue(store, [chunk], claims, retry_failed=retry)
            store.append(done.read(["s00001" if retry else "s00002"]))
            assert queue.next() == expected
            if expected:
                queue.published([chunk], None)


def test_a_chunk_that_another_process_left_unfinished_is_taken_over(tmp_path: Path) -> None:
    data, folder, out = table(tmp_path / "samples", 80), encoder(tmp_path / "encoder"), tmp_path / "txt.zarr"
    extract_modality(data, "txt", folder, SETTINGS, tmp_path / "alone.zarr")
    todo = dict(list(TokenStore.open(tmp_path / "alone.zarr").view().items()))
    first = next(cut(todo, chunk_samples(SETTINGS)))
    other = Claims(out)
    assert other.take(first.name)
    threading.Timer(1.0, other.release, [first.name]).start()
    extract_modality(data, "txt", folder, SETTINGS, out)
    assert_same_bytes(tmp_path / "alone.zarr", out)


def test_a_half_finished_extraction_goes_on_with_the_parts_of_a_colleague(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, folder, mine = table(tmp_path / "samples", 200), encoder(tmp_path / "encoder"), tmp_path / "mine.zarr"
    for out, parts in ((tmp_path / "alone.zarr", 99), (tmp_path / "theirs.zarr", 2), (mine, 1)):
        with monkeypatch.context() as patched:
            stop_after(parts, patched)
            try:
                extract_modality(data, "txt", folder, SETTINGS, out)
            except KeyboardInterrupt:
                assert parts < 99
    with pytest.raises(UserError, match="not complete"):
        TokenStore.open(mine).view()
    for name in ("parts", "failures", "manifest"):  # the manifest last, as a writer would
        shutil.copytree(tmp_path / "theirs.zarr" / name, mine / name, dirs_exist_ok=True)
    assert sum(entry["samples"] for entry in TokenStore.open(mine).entries()) == 63 + 63 + 64
    again = extract_modality(data, "txt", folder, SETTINGS, mine)
    assert (again["encoded"], again["samples"], again["unreadable"]) == (72, 200, 1)
    assert_same_bytes(tmp_path / "alone.zarr", mine)


def stop_after(parts: int, patched: pytest.MonkeyPatch) -> None:
    append, count = TokenStore.append, [0]

    def stopping(store: TokenStore, samples: Any) -> Any:
        count[0] += 1
        if count[0] > parts:
            raise KeyboardInterrupt
        return append(store, samples)

    patched.setattr(TokenStore, "append", stopping)


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


def pool(tmp_path: Path, out: Path, dies: Any) -> tuple[ImitationRay, Any]:
    data, folder = SamplesTable.read(tmp_path / "samples"), tmp_path / "encoder"
    wanted = TokenStore.open(tmp_path / "alone.zarr").view()
    done = TokenStore.open(tmp_path / "alone.zarr")
    store = TokenStore.create(out, done.key, done.width, done.dtype)
    imitation = ImitationRay(dies)
    job = Job(data.root, "txt", folder, SETTINGS, out).absolute()

    def run() -> None:
        with Claims(out) as claims:
            queue = WorkQueue(store, cut(wanted, chunk_samples(SETTINGS)), claims)
            Pool(imitation, lambda: imitation.start(job), 2, queue, Progress("txt", len(wanted))).run()
            store.publish_view(wanted)

    return imitation, run


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    data, folder = table(tmp_path / "samples", 200), encoder(tmp_path / "encoder")
    extract_modality(data, "txt", folder, SETTINGS, tmp_path / "alone.zarr")
    return tmp_path / "alone.zarr"


@pytest.mark.parametrize("lost", [[], [1], [2, 3, 7], [4, 5, 6, 9]])
def test_lost_workers_change_nothing(tmp_path: Path, alone: Path, lost: list[int]) -> None:
    imitation, run = pool(tmp_path, tmp_path / "pool.zarr", lambda call: call in lost)
    run()
    assert imitation.actors == 2 + len(lost)
    assert_same_bytes(alone, tmp_path / "pool.zarr")
    assert sum(entry["samples"] for entry in TokenStore.open(tmp_path / "pool.zarr").entries()) == 199
    assert len(TokenStore.open(tmp_path / "pool.zarr").entries()) <= 6


def test_samples_that_kill_every_worker_end_the_run(tmp_path: Path, alone: Path) -> None:
    _, run = pool(tmp_path, tmp_path / "pool.zarr", lambda call: True)
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


EXTRACT = """
import sys
from pathlib import Path
from extract.config import ExtractSettings
from extract.extraction import Engine, extract_modality
from extract.samples import SamplesTable
root, out, engine = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
settings = ExtractSettings.model_validate_json(sys.argv[4])
workers = 2 if engine == "ray" else None
table = SamplesTable.read(root / "samples")
print(extract_modality(table, "txt", root / "encoder", settings, out, engine=Engine(engine, None, workers)))
"""


def process(tmp_path: Path, out: str, engine: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", EXTRACT, str(tmp_path), str(tmp_path / out), engine, SETTINGS.model_dump_json()]
    quiet = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(words, env={**os.environ, **quiet}, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True)


def wait_for_parts(out: Path, count: int, running: subprocess.Popen[str]) -> None:
    while len(list((out / "manifest").glob("*.json"))) < count:
        assert running.poll() is None, running.communicate()[1]
        time.sleep(0.01)


@pytest.mark.slow
def test_two_processes_of_which_one_is_killed(tmp_path: Path) -> None:
    data, folder = table(tmp_path / "samples", 1500), encoder(tmp_path / "encoder", SLOW_ENCODER)
    extract_modality(data, "txt", folder, SETTINGS, tmp_path / "alone.zarr")
    both = deque(process(tmp_path, "txt.zarr", "local") for _ in range(2))
    wait_for_parts(tmp_path / "txt.zarr", 2, both[0])
    both[1].send_signal(signal.SIGKILL)
    assert both[1].wait() == -signal.SIGKILL
    text, error = both[0].communicate()
    assert both[0].returncode == 0, error
    assert "'samples': 1500" in text
    assert_same_bytes(tmp_path / "alone.zarr", tmp_path / "txt.zarr")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ray_with_a_worker_killed_gives_the_bytes_of_the_local_engine(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'selfmask[ray]')")
    import psutil

    data, folder = table(tmp_path / "samples", 3000), encoder(tmp_path / "encoder", SLOW_ENCODER)
    extract_modality(data, "txt", folder, SETTINGS, tmp_path / "alone.zarr")
    driver = process(tmp_path, "ray.zarr", "ray")
    wait_for_parts(tmp_path / "ray.zarr", 1, driver)
    below = psutil.Process(driver.pid).children(recursive=True)
    actors = [child for child in below if child.is_running() and "EncodingActor" in " ".join(child.cmdline())]
    assert actors
    actors[0].kill()
    text, error = driver.communicate()
    assert driver.returncode == 0, error
    assert "a worker was lost" in error
    assert "3000/3000 samples" in error
    assert "'encoded': 2999, 'samples': 3000, 'unreadable': 1" in text
    assert_same_bytes(tmp_path / "alone.zarr", tmp_path / "ray.zarr")
