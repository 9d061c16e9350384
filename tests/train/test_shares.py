"""Ranks: the gradients of the shares of a batch add up to the gradient of the batch, whatever is missing in it."""

import numpy as np
import pytest
import torch

from cache.errors import UserError
from extract.ranks import Ranks, SharedGenerator, alone, draw_rows
from train.methods.registry import build_method, model_spec
from train.missing import draw_kept, patterns
from train.shares import gather_share

CHANGES = {
    "selfmask": [{}, {"draw_per": "batch"}, {"mask_policy": "random"}, {"task_from": "unmasked"}, {"distill": 0.0}],
    "modality_dropout": [{}],
    "zero_fill": [{}],
    "random_fill": [{}],
}
CASES = [(name, change) for name, changes in CHANGES.items() for change in changes]


@pytest.fixture(scope="module")
def bank(make_bank):
    labels = np.random.default_rng(0).integers(0, 2, 13).astype(np.float32)
    labels[[1, 2, 9]] = np.nan  # not spread evenly over the ranks
    return make_bank(13, 5, labels)


def one_step(method, bank, ranks, rows):
    generator = SharedGenerator()
    generator.manual_seed(11)
    batch = gather_share(bank, rows, ranks)
    generator.share = batch.share if ranks.size > 1 else None
    method.zero_grad(set_to_none=True)
    losses = batch.weighted(method(batch.tokens, generator))
    losses["loss"].backward()
    gradients = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
    return {name: loss.item() for name, loss in losses.items()}, gradients, generator.get_state()


@pytest.mark.parametrize(("name", "change"), CASES)
@pytest.mark.parametrize(("size", "count"), [(2, 13), (3, 13), (3, 2)])
def test_shares_add_up_to_the_whole_batch(bank, settings, binary, name, change, size, count):
    torch.manual_seed(0)
    selfmask = settings.selfmask.model_copy(update=change)
    method = build_method(name, model_spec(bank, binary, settings.model_settings), settings.model_settings, selfmask)
    method.train()
    rows = torch.randperm(13, generator=torch.Generator().manual_seed(3))[:count]
    whole, gradient, state = one_step(method, bank, Ranks(), rows)
    parts = [one_step(method, bank, Ranks(rank, size), rows) for rank in range(size)]
    for key, value in whole.items():
        if not key.startswith("target_sd"):
            assert sum(losses[key] for losses, _, _ in parts) == pytest.approx(value, rel=1e-4, abs=1e-6), key
    for key, value in gradient.items():
        added = sum(gradients.get(key, torch.zeros_like(value)) for _, gradients, _ in parts)
        torch.testing.assert_close(added, value, rtol=1e-3, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")
    assert all(torch.equal(own, state) for _, _, own in parts), "the ranks' next draws would differ"


def test_the_shares_of_a_batch_cover_it_once():
    for size, total in ((1, 7), (2, 7), (3, 2), (4, 64)):
        shares = [Ranks(rank, size).share(total) for rank in range(size)]
        rows = [row for share in shares for row in range(share.first, share.last)]
        assert rows == list(range(total))
        assert sum(share.weight for share in shares) == pytest.approx(1)


def test_draws_of_missingness_are_those_of_multinomial():
    observed = torch.rand(40, 3, generator=torch.Generator().manual_seed(1)) < 0.7
    observed[~observed.any(1), 0] = True
    table = patterns(3)
    allowed = ((table[None] & ~observed[:, None]).sum(-1) == 0).float()
    expected = table[torch.multinomial(allowed, 1, generator=torch.Generator().manual_seed(2)).squeeze(-1)]
    assert torch.equal(draw_kept(observed, "sample", torch.Generator().manual_seed(2)), expected)


def test_a_rank_keeps_its_rows_of_a_draw():
    generator = SharedGenerator()
    whole = torch.rand(9, 4, generator=torch.Generator().manual_seed(4))
    for rank in range(2):
        generator.manual_seed(4)
        generator.share = share = Ranks(rank, 2).share(9)
        own = draw_rows(torch.rand, (share.last - share.first, 4), generator)
        assert torch.equal(own, whole[share.first : share.last])


def test_other_stages_refuse_torchrun(monkeypatch):
    assert alone() == Ranks()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="without torchrun"):
        alone()
