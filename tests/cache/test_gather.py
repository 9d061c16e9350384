"""Padding and gathering against plain indexing."""

import pytest
import torch

from cache.gather import FlatTokens, gather_float, padded_length


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int8])
@pytest.mark.parametrize("scratch_bytes", [1, 40, 2**19])
def test_gather_equals_indexing(dtype: torch.dtype, scratch_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cache.gather.SCRATCH_BYTES", scratch_bytes)
    tokens = torch.randint(-100, 100, (31, 5)).to(dtype)
    scales = torch.rand(31) if dtype == torch.int8 else None
    flat = FlatTokens(tokens, torch.ones(31, dtype=torch.bool), torch.zeros(1), torch.zeros(1), scales)
    for size in (0, 1, 30, 100):
        index = torch.randint(0, 31, (size,))
        expected = tokens[index].float() * (1 if scales is None else scales[index, None])
        assert torch.equal(gather_float(flat, index), expected)


def test_padding_is_zero_in_every_type_also_scaled() -> None:
    tokens = torch.tensor([[1, 2], [3, 4], [5, 6], [0, 0]], dtype=torch.int8)
    flat = FlatTokens(
        tokens,
        torch.tensor([True, False, True, False]),
        torch.tensor([0, 1]),
        torch.tensor([1, 2]),
        torch.tensor([2.0, 3.0, 0.5, 1.0]),
    )
    padded, valid, maskable = flat.pad(torch.tensor([1, 0]), 3)
    assert padded.tolist() == [[[9, 12], [2.5, 3], [0, 0]], [[2, 4], [0, 0], [0, 0]]]
    assert valid.tolist() == [[True, True, False], [True, False, False]]
    assert maskable.tolist() == [[False, True, False], [True, False, False]]


def test_padded_length() -> None:
    assert [padded_length(n, ()) for n in (0, 1, 7)] == [1, 1, 7]
    assert [padded_length(n, (8, 4, 16)) for n in (0, 4, 5, 16, 17)] == [4, 4, 8, 16, 17]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int8])
def test_large_samples_are_copied_to_the_same_batch(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = torch.tensor([3, 0, 7, 1, 5])
    tokens = torch.cat([torch.randint(-100, 100, (16, 4)), torch.zeros(1, 4)]).to(dtype)
    scales = torch.rand(17) if dtype == torch.int8 else None
    flat = FlatTokens(tokens, torch.rand(17) < 0.5, lengths.cumsum(0) - lengths, lengths, scales)
    for rows in ([2, 0, 0], [1], [4, 1, 3, 2]):
        batches = []
        for limit in (0, 2**60):
            monkeypatch.setattr("cache.gather.SLICE_BYTES", limit)
            batches.append(flat.pad(torch.tensor(rows), 8))
        for one, other in zip(*batches, strict=True):
            assert torch.equal(one, other)
