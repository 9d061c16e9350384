"""Streaming against the resident bank: the same samples and values, every sample once, in an order that repeats."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from cache.bank import TokenBank, TokenBatch
from cache.errors import CorruptCacheError, UserError
from cache.key import CacheKey
from cache.parts import TOKENS
from cache.store import SampleTokens, TokenStore
from cache.streaming import StreamingBank, open_banks

N = 60
IDS = [f"s{i:02}" for i in range(N)]
LABELS = np.arange(N, dtype=np.float32)
MEMORY = 1500
"""Bytes; the three modalities have about eight thousand."""


@pytest.fixture(scope="module")
def stores(
    tmp_path_factory: pytest.TempPathFactory,
    make_key: Callable[..., CacheKey],
    make_samples: Callable[..., list[SampleTokens]],
) -> dict[str, TokenStore]:
    """Three modalities with gaps, each in other parts and another order; one sample has none."""
    opened, folder = {}, tmp_path_factory.mktemp("stores")
    for seed, (name, width) in enumerate({"ehr": 8, "cxr": 24, "txt": 3}.items()):
        store = TokenStore.create(folder / f"{name}.zarr", make_key(encoder=name), width)
        random = np.random.default_rng(seed)
        present = [i for i in random.permutation(IDS).tolist() if i != "s07" and random.random() < 0.8]
        samples = make_samples(present, seed=seed, width=width)
        for start in range(0, len(samples), 7 + seed):
            store.append(samples[start : start + 7 + seed])
        store.publish_view({s.sample_id: s.digest for s in samples})
        opened[name] = store
    return opened


@pytest.fixture
def streaming(stores: dict[str, TokenStore]) -> StreamingBank:
    return StreamingBank.open(stores, IDS, LABELS, MEMORY)


def rows_of(batches: list[TokenBatch]) -> list[list[int]]:
    """The labels are the row numbers."""
    return [batch.labels.long().tolist() for batch in batches if batch.labels is not None]


def flat(lists: list[list[int]]) -> list[int]:
    return [row for rows in lists for row in rows]


def assert_same(got: TokenBatch, expected: TokenBatch) -> None:
    assert got.modalities == expected.modalities
    assert torch.equal(got.observed, expected.observed)
    for name in expected.modalities:
        assert torch.equal(got.tokens[name], expected.tokens[name])
        assert torch.equal(got.valid[name], expected.valid[name])
        assert torch.equal(got.maskable[name], expected.maskable[name])


def test_an_epoch_has_every_sample_once_with_the_resident_values(
    stores: dict[str, TokenStore], streaming: StreamingBank
) -> None:
    resident = TokenBank.load(stores, IDS, LABELS)
    assert sum(tokens.tokens.nbytes for tokens in resident._flats.values()) > 5 * MEMORY
    batches = list(streaming.epoch(0, 0, 4))
    assert Counter(flat(rows_of(batches))) == Counter(range(N))
    for batch, rows in zip(batches, rows_of(batches), strict=True):
        assert_same(batch, resident.batch(torch.tensor(rows)))


def test_single_batches_are_the_resident_bank_s(stores: dict[str, TokenStore], streaming: StreamingBank) -> None:
    resident = TokenBank.load(stores, IDS, LABELS)
    assert streaming.widths == resident.widths
    assert torch.equal(streaming.observed, resident.observed)
    for rows in ([], [7], [3, 3, 0], list(range(N))):
        assert_same(streaming.batch(torch.tensor(rows).long()), resident.batch(torch.tensor(rows).long()))


def test_the_order_is_that_of_seed_and_epoch(stores: dict[str, TokenStore], streaming: StreamingBank) -> None:
    orders = {case: rows_of(list(streaming.epoch(*case, 4))) for case in ((0, 0), (0, 1), (1, 0))}
    assert orders[0, 0] != orders[0, 1] != orders[1, 0] != orders[0, 0]
    again = StreamingBank.open(stores, IDS, LABELS, MEMORY)
    assert rows_of(list(again.epoch(0, 1, 4))) == orders[0, 1]


def test_an_epoch_goes_on_from_any_minibatch(streaming: StreamingBank) -> None:
    whole = rows_of(list(streaming.epoch(3, 5, 4)))
    for start in range(len(whole) + 2):
        assert rows_of(list(streaming.epoch(3, 5, 4, start=start))) == whole[start:]


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_every_minibatch_and_read_their_share_only(
    streaming: StreamingBank, world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = rows_of(list(streaming.epoch(0, 2, 6)))
    read: list[int] = []
    own_read = StreamingBank._read
    monkeypatch.setattr(
        StreamingBank,
        "_read",
        lambda self, window, memory: (read.extend(np.concatenate(window.batches)), own_read(self, window, memory))[1],
    )
    shares = []
    for rank in range(world_size):
        read.clear()
        shares.append(rows_of(list(streaming.epoch(0, 2, 6, rank=rank, world_size=world_size))))
        assert sorted(read) == sorted(flat(shares[-1]))
    for number, batch in enumerate(whole):
        assert flat([own[number] for own in shares]) == batch
    order = [rows for rows, _ in streaming.shares(0, 2, 6, rank=1, world_size=world_size)]
    assert [rows.tolist() for rows in order] == whole


def test_a_rank_that_gets_nothing_of_a_small_minibatch_computes_one_sample(streaming: StreamingBank) -> None:
    rows = torch.tensor([4])
    assert [rows_of(list(streaming.epoch(0, 0, 6, rows=rows, rank=r, world_size=3))) for r in range(3)] == [[[4]]] * 3


def test_chosen_rows_alone_are_used(streaming: StreamingBank) -> None:
    rows = torch.tensor([5, 40, 7, 11, 23])
    assert sorted(flat(rows_of(list(streaming.epoch(0, 0, 2, rows=rows))))) == sorted(rows.tolist())
    assert list(streaming.epoch(0, 0, 2, rows=rows[:0])) == []


def test_memory_stays_within_the_budget(streaming: StreamingBank, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pieces of memory take turns; beyond the budget they hold a padding row a modality, aligned."""
    seen: dict[int, Any] = {}
    own_read = StreamingBank._read

    def watched(self: StreamingBank, window: Any, memory: Any) -> Any:
        seen[id(memory)] = memory
        return own_read(self, window, memory)

    monkeypatch.setattr(StreamingBank, "_read", watched)
    assert len(list(streaming.epoch(0, 0, 1))) == N
    assert len(seen) == 2
    assert sum(len(memory.storage) for memory in seen.values()) <= MEMORY + 2 * 3 * 128


def test_leaving_an_epoch_early_stops_the_reading(streaming: StreamingBank) -> None:
    batches = streaming.epoch(0, 0, 4)
    next(batches)
    batches.close()
    assert rows_of(list(streaming.epoch(0, 0, 4)))


def test_a_part_that_vanishes_is_an_error_in_the_training_loop(
    tmp_path: Any, make_key: Callable[..., CacheKey], make_samples: Callable[..., list[SampleTokens]]
) -> None:
    store = TokenStore.create(tmp_path / "m.zarr", make_key(), 3)
    samples = make_samples(IDS)
    store.append(samples)
    store.publish_view({s.sample_id: s.digest for s in samples})
    bank = StreamingBank.open({"m": store}, IDS, LABELS, 100)
    next(store.path.glob(f"parts/*/{TOKENS}/c/0/0")).write_bytes(b"")
    with pytest.raises(CorruptCacheError, match="shorter"):
        list(bank.epoch(0, 0, 4))


def test_banks_are_resident_where_they_fit_together(stores: dict[str, TokenStore]) -> None:
    splits = {"train": (IDS[:40], LABELS[:40]), "valid": (IDS[40:], LABELS[40:])}
    bytes_of = {
        split: sum(int(v.sum()) * stores[m].width * 2 for m, v in TokenBank.load(stores, ids, None).lengths.items())
        for split, (ids, _) in splits.items()
    }
    assert {type(b) for b in open_banks(stores, splits, memory_bytes=sum(bytes_of.values())).values()} == {TokenBank}
    assert {type(b) for b in open_banks(stores, splits).values()} == {TokenBank}
    smaller = open_banks(stores, splits, memory_bytes=sum(bytes_of.values()) - 1)
    assert {type(b) for b in smaller.values()} == {StreamingBank}
    with pytest.raises(UserError, match=r"train\.memory_gb"):
        open_banks(stores, splits, memory_bytes=0)
