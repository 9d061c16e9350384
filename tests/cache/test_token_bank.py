"""The resident bank against a reference written as loops."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from cache.bank import TokenBank, TokenBatch
from cache.errors import UserError
from cache.key import CacheKey
from cache.store import SampleTokens, TokenStore

Maker = Callable[..., list[SampleTokens]]
WIDTHS = {"ehr": 2, "cxr": 3, "txt": 1}
IDS = [f"s{i}" for i in range(12)]


def reference(contents: dict[str, dict[str, SampleTokens]], ids: list[str], rows: list[int]) -> TokenBatch:
    """Pad sample by sample."""
    tokens, valid, maskable = {}, {}, {}
    observed = torch.zeros(len(rows), len(contents), dtype=torch.bool)
    for column, (name, content) in enumerate(contents.items()):
        chosen = [content.get(ids[row]) for row in rows]
        longest = max([1, *(len(sample.tokens) for sample in chosen if sample)])
        tokens[name] = torch.zeros(len(rows), longest, WIDTHS[name])
        valid[name] = torch.zeros(len(rows), longest, dtype=torch.bool)
        maskable[name] = torch.zeros(len(rows), longest, dtype=torch.bool)
        for place, sample in enumerate(chosen):
            if sample is None:
                continue
            observed[place, column] = True
            for t in range(len(sample.tokens)):
                tokens[name][place, t] = torch.from_numpy(sample.tokens[t])
                valid[name][place, t] = True
                maskable[name][place, t] = bool(sample.maskable[t])
    return TokenBatch(tokens, valid, maskable, observed, None)


def assert_same(got: TokenBatch, expected: TokenBatch) -> None:
    assert got.modalities == expected.modalities
    torch.testing.assert_close(got.observed, expected.observed, rtol=0, atol=0)
    for name in expected.modalities:
        torch.testing.assert_close(got.tokens[name], expected.tokens[name], rtol=0, atol=0)
        torch.testing.assert_close(got.valid[name], expected.valid[name], rtol=0, atol=0)
        torch.testing.assert_close(got.maskable[name], expected.maskable[name], rtol=0, atol=0)


@pytest.fixture(scope="module", params=["float16", "bfloat16", "float32"])
def stores(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    make_key: Callable[..., CacheKey],
    make_samples: Maker,
) -> tuple[dict[str, TokenStore], dict[str, dict[str, SampleTokens]]]:
    """Three modalities in several parts, in another order than the ids, with gaps, failures and strangers."""
    opened, contents, folder = {}, {}, tmp_path_factory.mktemp("stores")
    for seed, (name, width) in enumerate(WIDTHS.items()):
        store = TokenStore.create(folder / f"{name}.zarr", make_key(encoder=name), width, request.param)
        rng = np.random.default_rng(seed)
        present = [i for i in rng.permutation(IDS).tolist() if i != "s7" and rng.random() < 0.7]
        samples = make_samples([*present, "stranger"], seed=seed, width=width, longest=1 if name == "txt" else 4)
        for start in range(0, len(samples), 3):
            store.append(samples[start : start + 3])
        store.record_failures({"s7": ("digest-s7", "torn")})
        store.publish_view({i: f"digest-{i}" for i in [*present, "stranger", "s7"]})
        opened[name], contents[name] = store, {s.sample_id: s for s in samples}
    return opened, contents


def test_batches_equal_the_loop(
    stores: tuple[dict[str, TokenStore], dict[str, dict[str, SampleTokens]]],
) -> None:
    opened, contents = stores
    labels = np.arange(len(IDS), dtype=np.float32)
    bank = TokenBank.load(opened, IDS, labels)
    assert (len(bank), bank.modalities, bank.widths) == (len(IDS), tuple(WIDTHS), WIDTHS)
    rng = np.random.default_rng(0)
    cases = [list(range(len(IDS))), [7], [7, 7], [3, 3, 0], [], *(rng.integers(0, 12, 5).tolist() for _ in range(20))]
    for rows in cases:
        batch = bank.batch(torch.tensor(rows, dtype=torch.int64))
        assert_same(batch, reference(contents, IDS, rows))
        assert batch.labels is not None
        assert batch.labels.tolist() == labels[rows].tolist()
        assert all(value.dtype == torch.float32 for value in batch.tokens.values())
    assert_same(bank.batch(torch.arange(12)), reference(contents, IDS, list(range(12))))
    everything = reference(contents, IDS, list(range(len(IDS))))
    assert torch.equal(bank.observed, everything.observed)
    for name, lengths in bank.lengths.items():
        assert torch.equal(lengths, everything.valid[name].sum(1))


def test_ids_in_any_order_and_twice(
    stores: tuple[dict[str, TokenStore], dict[str, dict[str, SampleTokens]]],
) -> None:
    opened, contents = stores
    ids = [*IDS[::-1], IDS[0], "unknown"]
    bank = TokenBank.load(opened, ids, None)
    rows = list(range(len(ids)))
    assert_same(bank.batch(torch.tensor(rows)), reference({m: _known(c) for m, c in contents.items()}, ids, rows))
    assert not bank.observed[-1].any()


def _known(content: dict[str, SampleTokens]) -> dict[str, SampleTokens]:
    return {i: sample for i, sample in content.items() if i in IDS}


def test_tokens_stay_in_the_stored_type(
    stores: tuple[dict[str, TokenStore], dict[str, dict[str, SampleTokens]]],
) -> None:
    """The memory of the bank is that of the cache."""
    opened, contents = stores
    bank = TokenBank.load(opened, IDS, None)
    for name, flat in bank._flats.items():
        assert str(flat.tokens.dtype) == f"torch.{opened[name].dtype}"
        assert len(flat.tokens) == 1 + sum(len(s.tokens) for s in _known(contents[name]).values())


def test_a_sample_outside_the_view_is_not_observed(store: TokenStore, make_samples: Maker) -> None:
    store.append(make_samples(["a", "b"]))
    store.publish_view({"a": "digest-a"})
    assert TokenBank.load({"m": store}, ["a", "b"], None).observed.tolist() == [[True], [False]]


def test_a_bank_of_an_empty_store_and_of_no_samples(store: TokenStore) -> None:
    store.publish_view({})
    batch = TokenBank.load({"m": store}, ["a", "b"], None).batch(torch.tensor([1, 0]))
    assert batch.tokens["m"].shape == (2, 1, 3)
    assert not batch.tokens["m"].any()
    assert not batch.valid["m"].any()
    assert not batch.observed.any()
    nobody = TokenBank.load({"m": store}, [], None)
    assert len(nobody) == 0
    assert nobody.batch(torch.zeros(0, dtype=torch.int64)).tokens["m"].shape == (0, 1, 3)


def test_incomplete_caches_and_wrong_labels_are_refused(store: TokenStore, make_samples: Maker) -> None:
    store.append(make_samples(["a"]))
    with pytest.raises(UserError, match="selfmask extract"):
        TokenBank.load({"m": store}, ["a"], None)
    store.publish_view({"a": "digest-a"})
    with pytest.raises(UserError, match="2 labels were given for 1"):
        TokenBank.load({"m": store}, ["a"], np.zeros(2))
    with pytest.raises(UserError, match="at least one modality"):
        TokenBank.load({}, ["a"], None)


def test_a_bank_in_memory_equals_the_bank_of_its_store(filled: TokenStore) -> None:
    ids = ["a", "f", "c", "é"]
    found = [None if i == "f" else filled.read([i])[0] for i in ids]
    own = TokenBank.of({"m": found}, {"m": 3}, None).batch(torch.arange(4))
    assert_same(own, TokenBank.load({"m": filled}, ids, None).batch(torch.arange(4)))


def test_batches_move_and_take_another_mask(filled: TokenStore) -> None:
    bank = TokenBank.load({"m": filled}, ["a", "b"], np.array([[0, 1], [1, np.nan]], np.float32))
    batch = bank.batch(torch.tensor([1, 0]))
    moved = batch.to("meta")
    tensors: list[Tensor] = [*moved.tokens.values(), *moved.valid.values(), *moved.maskable.values(), moved.observed]
    assert moved.labels is not None
    assert {t.device.type for t in [*tensors, moved.labels]} == {"meta"}
    assert batch.to("cpu").labels is not None
    hidden = batch.with_observed(torch.zeros(2, 1, dtype=torch.bool))
    assert not hidden.observed.any()
    assert batch.observed.all()
    assert torch.equal(hidden.tokens["m"], batch.tokens["m"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_bank_on_the_gpu_equals_that_on_the_cpu(filled: TokenStore) -> None:
    ids, rows = ["a", "b", "c", "f"], torch.tensor([3, 0, 2])
    on_gpu = TokenBank.load({"m": filled}, ids, None, "cuda").batch(rows)
    assert on_gpu.tokens["m"].is_cuda
    assert_same(on_gpu.to("cpu"), TokenBank.load({"m": filled}, ids, None).batch(rows))
