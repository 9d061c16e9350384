"""The missing-modality bank: a row a pattern, trained by that pattern alone."""

from typing import Any

import pytest
import torch

from train.methods.flexmoe import bank_rows
from train.missing import patterns


@pytest.mark.parametrize("modalities", [1, 2, 3, 4])
def test_the_bank_has_one_row_for_each_pattern_without_a_modality(modalities: int) -> None:
    table = patterns(modalities)
    rows = bank_rows(table)
    for column in range(modalities):
        lacking = rows[~table[:, column], column]
        assert sorted(lacking.tolist()) == list(range(2 ** (modalities - 1) - 1))


def test_a_pattern_trains_its_own_tokens_alone(kit: Any) -> None:
    model = kit.build("flexmoe", complete_epochs=1)
    batch = kit.batch(torch.tensor([[1, 0, 1]]).bool())
    model.start_epoch(0)
    assert kit.learn(model, batch)["loss"] == 0  # no complete sample
    model.start_epoch(1)
    with torch.no_grad():
        model.bank["b"].zero_()  # type: ignore[operator,union-attr,index]
    model.eval()(batch).logits.sum().backward()
    gradient = model.bank["b"].grad  # type: ignore[union-attr,index]
    touched = gradient.abs().sum((1, 2)).nonzero().flatten()  # type: ignore[union-attr,operator]
    assert touched.tolist() == [int(bank_rows(batch.observed)[0, 1])]
