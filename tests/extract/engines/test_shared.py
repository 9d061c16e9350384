"""One cache, several processes: they share the work, survive each other, and give the bytes of one."""

import shutil
import signal
import threading
from collections import deque
from pathlib import Path
from typing import Any

import pytest

import extract.encoding as encoding
import extract.extraction as extraction
from cache.errors import StaleCacheError, UserError
from cache.store import TokenStore
from extract.engines.chunks import WorkQueue, chunk_samples, cut
from extract.engines.claims import Claims, require_no_writer
from extract.extraction import extract_modality


def test_two_extractions_at_once_share_the_chunks_and_give_the_bytes_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy: Any
) -> None:
    data, folder = toy.table(tmp_path / "samples", 200), toy.encoder(tmp_path / "encoder")
    alone = extract_modality(data, "txt", folder, toy.SETTINGS, tmp_path / "alone.zarr")
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
        threading.Thread(target=lambda: results.append(extract_modality(data, "txt", folder, toy.SETTINGS, out)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [alone, alone]
    assert len({name for name, _ in seen}) == 2
    assert sorted(i for _, i in seen) == sorted({i for _, i in seen}), "a sample was encoded twice"
    toy.assert_same_bytes(tmp_path / "alone.zarr", out)
    assert sum(entry["samples"] for entry in TokenStore.open(out).entries()) == 199
    assert not (out / ".claims").exists()


def test_a_cache_is_not_replaced_under_a_running_extraction(tmp_path: Path, toy: Any) -> None:
    data, out = toy.table(tmp_path / "samples", 12), tmp_path / "txt.zarr"
    extract_modality(data, "txt", toy.encoder(tmp_path / "one"), toy.SETTINGS, out)
    other = toy.encoder(tmp_path / "two", seed=1)
    with Claims(out), pytest.raises(UserError, match="running"):
        extract_modality(data, "txt", other, toy.SETTINGS, out, replace=True)
    require_no_writer(out)
    with pytest.raises(StaleCacheError):
        extract_modality(data, "txt", other, toy.SETTINGS, out)
    extract_modality(data, "txt", other, toy.SETTINGS, out, replace=True)


def test_two_processes_that_find_other_tokens_replace_them_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy: Any
) -> None:
    data, out = toy.table(tmp_path / "samples", 40), tmp_path / "txt.zarr"
    extract_modality(data, "txt", toy.encoder(tmp_path / "one"), toy.SETTINGS, out)
    folder, results, both = toy.encoder(tmp_path / "two", seed=1), [], threading.Barrier(2)
    alone = extract_modality(data, "txt", folder, toy.SETTINGS, tmp_path / "alone.zarr")
    claimed = extraction._claimed

    def together(*given: Any) -> Any:
        both.wait(60)
        return claimed(*given)

    monkeypatch.setattr(extraction, "_claimed", together)

    def run() -> None:
        results.append(extract_modality(data, "txt", folder, toy.SETTINGS, out, replace=True))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result["samples"] for result in results] == [alone["samples"]] * 2
    toy.assert_same_bytes(tmp_path / "alone.zarr", out)


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


def test_a_chunk_that_another_process_left_unfinished_is_taken_over(tmp_path: Path, toy: Any) -> None:
    data, folder, out = toy.table(tmp_path / "samples", 80), toy.encoder(tmp_path / "encoder"), tmp_path / "txt.zarr"
    extract_modality(data, "txt", folder, toy.SETTINGS, tmp_path / "alone.zarr")
    todo = dict(list(TokenStore.open(tmp_path / "alone.zarr").view().items()))
    first = next(cut(todo, chunk_samples(toy.SETTINGS)))
    other = Claims(out)
    assert other.take(first.name)
    threading.Timer(1.0, other.release, [first.name]).start()
    extract_modality(data, "txt", folder, toy.SETTINGS, out)
    toy.assert_same_bytes(tmp_path / "alone.zarr", out)


def test_a_half_finished_extraction_goes_on_with_the_parts_of_a_colleague(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy: Any
) -> None:
    data, folder, mine = toy.table(tmp_path / "samples", 200), toy.encoder(tmp_path / "encoder"), tmp_path / "mine.zarr"
    for out, parts in ((tmp_path / "alone.zarr", 99), (tmp_path / "theirs.zarr", 2), (mine, 1)):
        with monkeypatch.context() as patched:
            stop_after(parts, patched)
            try:
                extract_modality(data, "txt", folder, toy.SETTINGS, out)
            except KeyboardInterrupt:
                assert parts < 99
    with pytest.raises(UserError, match="not complete"):
        TokenStore.open(mine).view()
    for name in ("parts", "failures", "manifest"):  # the manifest last, as a writer would
        shutil.copytree(tmp_path / "theirs.zarr" / name, mine / name, dirs_exist_ok=True)
    assert sum(entry["samples"] for entry in TokenStore.open(mine).entries()) == 63 + 63 + 64
    again = extract_modality(data, "txt", folder, toy.SETTINGS, mine)
    assert (again["encoded"], again["samples"], again["unreadable"]) == (72, 200, 1)
    toy.assert_same_bytes(tmp_path / "alone.zarr", mine)


def stop_after(parts: int, patched: pytest.MonkeyPatch) -> None:
    append, count = TokenStore.append, [0]

    def stopping(store: TokenStore, samples: Any) -> Any:
        count[0] += 1
        if count[0] > parts:
            raise KeyboardInterrupt
        return append(store, samples)

    patched.setattr(TokenStore, "append", stopping)


@pytest.mark.slow
def test_two_processes_of_which_one_is_killed(tmp_path: Path, toy: Any) -> None:
    data, folder = toy.table(tmp_path / "samples", 1500), toy.encoder(tmp_path / "encoder", toy.SLOW_ENCODER)
    extract_modality(data, "txt", folder, toy.SETTINGS, tmp_path / "alone.zarr")
    both = deque(toy.process(tmp_path, "txt.zarr", "local") for _ in range(2))
    toy.wait_for_parts(tmp_path / "txt.zarr", 2, both[0])
    both[1].send_signal(signal.SIGKILL)
    assert both[1].wait() == -signal.SIGKILL
    text, error = both[0].communicate()
    assert both[0].returncode == 0, error
    assert "'samples': 1500" in text
    toy.assert_same_bytes(tmp_path / "alone.zarr", tmp_path / "txt.zarr")
