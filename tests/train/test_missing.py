"""Draws never empty a sample, are uniform, seeded, and independent of the order of samples."""

import numpy as np
import pytest
import torch

from cache.errors import UserError
from train.missing import draw_kept, draw_nested, draw_proper, drop_at_rate, drop_by_protocol, patterns


@pytest.mark.parametrize("per", ["batch", "sample"])
def test_draws_only_remove_and_never_everything(per: str) -> None:
    generator = torch.Generator().manual_seed(0)
    observed = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 1, 1]]).bool().repeat(50, 1)
    for _ in range(20):
        kept = draw_kept(observed, per, generator)  # type: ignore[arg-type]
        assert kept.any(-1).all()
        assert not (kept & ~observed).any()


def test_sample_draws_are_uniform_over_the_subsets_of_what_is_there() -> None:
    observed = torch.tensor([[1, 0, 1]]).bool().expand(6000, 3)
    kept = draw_kept(observed, "sample", torch.Generator().manual_seed(0))
    codes = (kept * torch.tensor([1, 2, 4])).sum(-1)
    counts = torch.bincount(codes, minlength=8)
    assert counts[[0, 2, 3, 6, 7]].sum() == 0
    assert (counts[[1, 4, 5]] / 6000 - 1 / 3).abs().max() < 0.03


def test_proper_draws_are_uniform_and_leave_single_modalities() -> None:
    observed = torch.tensor([[1, 1, 1], [0, 1, 1], [0, 1, 0]]).bool().repeat_interleave(3000, 0)
    kept = draw_proper(observed, torch.Generator().manual_seed(0))
    codes = (kept * torch.tensor([1, 2, 4])).sum(-1).view(3, 3000)
    full, two, one = (torch.bincount(part, minlength=8) / 3000 for part in codes)
    assert (full[1:7] - 1 / 6).abs().max() < 0.04
    assert full[7] == 0
    assert (two[[2, 4]] - 1 / 2).abs().max() < 0.04
    assert one[2] == 1


def test_batch_draw_is_common_to_complete_samples() -> None:
    kept = draw_kept(torch.ones(64, 3, dtype=torch.bool), "batch", torch.Generator().manual_seed(3))
    assert (kept == kept[0]).all()


def test_empty_row_is_refused() -> None:
    with pytest.raises(UserError, match="no observed modality"):
        draw_kept(torch.zeros(1, 3, dtype=torch.bool), "sample", None)


def test_patterns_are_all_non_empty_subsets() -> None:
    assert len(patterns(4)) == 15
    assert len({tuple(row) for row in patterns(4).tolist()}) == 15


def test_protocol_drops_one_or_two_in_halves_and_ignores_order() -> None:
    ids = [f"s{i}" for i in range(4000)]
    observed = np.ones((4000, 3), bool)
    kept = drop_by_protocol(ids, observed, seed=7)
    missing = 3 - kept.sum(1)
    assert set(missing) == {1, 2}
    assert abs((missing == 1).mean() - 0.5) < 0.03
    assert np.abs((~kept).mean(0) - 0.5).max() < 0.03
    order = np.random.default_rng(0).permutation(4000)
    assert (drop_by_protocol([ids[i] for i in order], observed, 7) == kept[order]).all()
    assert (drop_by_protocol(ids, observed, 8) != kept).any()


def test_rates_are_nested_and_keep_one() -> None:
    ids, observed = [f"s{i}" for i in range(2000)], np.random.default_rng(0).random((2000, 4)) < 0.8
    observed[:, 0] = True
    low, high = drop_at_rate(ids, observed, 0.3, 0), drop_at_rate(ids, observed, 0.9, 0)
    assert not (high & ~low).any()
    assert high.any(1).all()
    assert abs(low[observed].mean() - 0.7) < 0.03
    assert (drop_at_rate(ids, observed, 0.0, 0) == observed).all()


def test_nested_draws_follow_the_official_sampler() -> None:
    generator = torch.Generator().manual_seed(0)
    observed = torch.ones(20_000, 3, dtype=torch.bool)
    larger, smaller, comparable = draw_nested(observed, generator)
    assert comparable.all()
    assert (smaller & ~larger).sum() == 0
    assert (smaller.sum(-1) < larger.sum(-1)).all()
    assert smaller.any(-1).all()
    sizes = torch.cat([larger, smaller]).sum(-1).bincount(minlength=4)[1:] / 40_000
    assert torch.allclose(sizes, torch.tensor([15 / 36, 15 / 36, 6 / 36]), atol=0.01)
    some = torch.tensor([[0, 1, 0], [1, 0, 1]]).bool()
    larger, smaller, comparable = draw_nested(some, generator)
    assert comparable.tolist() == [False, True]
    assert torch.equal(larger, some)
    assert torch.equal(smaller[0], some[0])
    assert smaller[1].sum() == 1
    with pytest.raises(UserError, match="no observed"):
        draw_nested(torch.zeros(1, 3, dtype=torch.bool), generator)
