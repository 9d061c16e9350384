"""Parts of a batch of encoder inputs: they hold each row once, padded as the batch, and their weights add up to one."""

from typing import Any

import numpy as np
import pytest
import torch

from extract.inputs import InputBank


def bank(small: Any) -> InputBank:
    items = [None if row in (0, 4) else item for row, item in enumerate(small.items(7))]
    labels = torch.tensor([1.0, 0.0, float("nan"), float("nan"), 1.0, 0.0, 1.0])
    return InputBank({"own": small.encoder()}, {"own": list(items)}, labels, tuple("abcdefg"))


@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_parts_hold_each_row_once(small: Any, count: int) -> None:
    inputs = bank(small)
    batch = inputs.batch(torch.arange(7))
    parts = batch.parts(count)
    assert len(parts) == min(count, 7)
    assert [row for part in parts for row in range(part.share.first, part.share.last)] == list(range(7))
    assert sum(part.share.weight for part in parts) == pytest.approx(1)
    assert sum(part.label_weight for part in parts) == pytest.approx(1)
    assert torch.equal(torch.cat([part.batch.observed for part in parts]), batch.observed)
    have = [part for part in parts if part.batch.inputs]
    rows = torch.cat([part.batch.rows["own"] + part.share.first for part in have])
    assert torch.equal(rows, batch.rows["own"])
    for key, value in batch.inputs["own"].items():
        assert torch.equal(torch.cat([part.batch.inputs["own"][key] for part in have]), value)
    assert all(("own" in part.batch.inputs) == bool(part.batch.observed.any()) for part in parts)


def test_a_part_gives_the_tokens_of_its_rows(small: Any) -> None:
    inputs = bank(small)
    batch, encoder = inputs.batch(torch.arange(7)), inputs.encoders["own"].eval()
    with torch.no_grad():
        whole, embedded = encoder(batch.inputs["own"])
        for part in batch.parts(2):
            mine = np.isin(batch.rows["own"], part.batch.rows["own"] + part.share.first)
            values, own = encoder(part.batch.inputs["own"])
            length = own.valid.shape[1]
            assert torch.equal(embedded.valid[mine][:, :length], own.valid)
            assert torch.allclose((whole[mine][:, :length] - values)[own.valid], torch.zeros(()), atol=1e-5)
