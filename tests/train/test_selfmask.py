"""SelfMask against a loop-written reference, and its invariants."""

from typing import Any

import pytest
import torch
from torch import Tensor

from train.losses import distillation_loss, mean_over_observed, reconstruction_loss
from train.masks import masked_count, straight_through, top_k_mask
from train.methods.selfmask import CachedSource, SelfMask

BASE = {
    "alpha": 0.5,
    "beta": 0.5,
    "ratio_observed": 0.25,
    "ratio_cross": 0.5,
    "tau": 0.9,
    "draw_per": "sample",
    "reconstruction": "sum",
    "target_grad": False,
    "target_norm": "none",
    "mask_policy": "learned",
    "mask_gradient": "straight_through",
    "positions": "learned",
    "task_from": "masked",
    "fusion_sees_imputed": True,
    "experts": "none",
    "complete_task": 0.0,
    "distill": 0.0,
}


def build(kit: Any, **changes: object) -> SelfMask:
    model = kit.build("selfmask", **{**BASE, **changes})
    assert isinstance(model, SelfMask)
    return model


def test_losses_of_eq_6_and_8_equal_a_loop_written_reference(kit: Any) -> None:
    model = build(kit)
    batch = kit.batch(torch.tensor([[1, 1, 0], [1, 0, 0], [0, 1, 1], [1, 1, 1], [0, 0, 1], [1, 0, 1]]).bool())
    tokens = model.project(batch)
    masks = model.masks(model.scores(tokens, batch.observed), tokens, 0.5)
    predicted = {m: torch.randn_like(v) for m, v in tokens.values.items()}
    total = 0.0
    for row in range(6):
        terms = []
        for column, m in enumerate(kit.widths):
            if not batch.observed[row, column]:
                continue
            squares, k = 0.0, 0
            for t in range(tokens.values[m].shape[1]):
                if masks[m][row, t]:
                    k += 1
                    difference = predicted[m][row, t] - tokens.values[m][row, t]
                    squares += float((difference**2).sum().detach())
            terms.append(squares / k)
        total += sum(terms) / len(terms)
    assert float(model.reconstruction(predicted, tokens, masks, batch.observed)) == pytest.approx(total / 6, rel=1e-5)


def test_reconstruction_ignores_visible_tokens_and_mean_is_sum_over_width() -> None:
    predicted, target = torch.randn(2, 4, 8), torch.randn(2, 4, 8)
    mask = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0]]).bool()
    seen = torch.ones(2, dtype=torch.bool)
    before = reconstruction_loss(predicted, target, mask, seen, "sum")
    moved = torch.where(mask[:, :, None], predicted, predicted + 100)
    assert torch.equal(before, reconstruction_loss(moved, target, mask, seen, "sum"))
    assert torch.allclose(before / 8, reconstruction_loss(predicted, target, mask, seen, "mean"))
    assert reconstruction_loss(predicted, target, mask, ~seen, "sum").abs().sum() == 0
    assert mean_over_observed(torch.tensor([[2.0, 9.0]]), torch.tensor([[True, False]])) == 2


def test_top_k_never_picks_padding_or_special_tokens_and_reaches_every_maskable_token(kit: Any) -> None:
    batch = kit.batch(torch.ones(32, 3, dtype=torch.bool))
    valid, maskable = batch.valid["a"], batch.maskable["a"]
    reached = torch.zeros_like(maskable)
    for seed in range(200):
        scores = torch.randn(valid.shape, generator=torch.Generator().manual_seed(seed))
        mask = top_k_mask(scores, valid, maskable, 0.25)
        assert not (mask & ~maskable).any()
        assert torch.equal(mask.sum(-1), masked_count(valid, maskable, 0.25))
        reached |= mask
    assert torch.equal(reached, maskable)


def test_top_k_marks_the_highest_scores_and_survives_a_sample_without_maskable_tokens() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.7]])
    all_valid = torch.ones(1, 4, dtype=torch.bool)
    assert top_k_mask(scores, all_valid, all_valid, 0.5).tolist() == [[False, True, False, True]]
    assert not top_k_mask(scores, all_valid, torch.zeros_like(all_valid), 0.5).any()


def test_straight_through_is_exactly_hard_forward_and_sigmoid_backward() -> None:
    scores = torch.randn(64, 9, dtype=torch.bfloat16, requires_grad=True)
    hard = torch.rand(64, 9) > 0.5
    mask = straight_through(hard, scores)
    assert torch.equal(mask, hard.to(torch.bfloat16))
    wide = torch.randn(5, requires_grad=True)
    straight_through(torch.ones(5, dtype=torch.bool), wide).sum().backward()
    assert wide.grad is not None
    assert torch.allclose(wide.grad, wide.sigmoid() * (1 - wide.sigmoid()))


def test_cached_mask_replaces_the_token_by_v(kit: Any) -> None:
    model = build(kit)
    tokens = model.project(kit.batch(kit.mixed(6)))
    source = CachedSource(tokens, model.placeholder)
    mask = torch.zeros(6, 6)
    mask[:, 2] = 1
    masked = source.masked("a", mask)
    assert torch.equal(masked[:, 2], model.placeholder["a"].expand(6, -1))
    assert torch.equal(masked[:, [0, 1, 3, 4, 5]], tokens.values["a"][:, [0, 1, 3, 4, 5]])


def gradients(kit: Any, **changes: object) -> dict[str, Tensor | None]:
    model = build(kit, **changes).train()
    model(kit.batch(kit.mixed(16)), torch.Generator().manual_seed(1)).losses["loss"].backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("experts", ["none", "observed"])
def test_every_module_gets_a_gradient_and_the_moving_average_none(kit: Any, experts: str) -> None:
    for name, gradient in gradients(kit, complete_task=1.0, distill=1.0, experts=experts).items():
        if name.startswith("g_bar") or name.endswith(".summary"):
            assert gradient is None, name
        else:
            assert gradient is not None, name
            if "in_proj_bias" not in name:
                assert gradient.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("policy", "gradient"), [("learned", "none"), ("random", "straight_through"), ("attention", "none")]
)
def test_the_mask_predictor_gets_a_gradient_only_when_asked(kit: Any, policy: str, gradient: str) -> None:
    found = gradients(kit, mask_policy=policy, mask_gradient=gradient)
    assert all(g is None or g.abs().sum() == 0 for n, g in found.items() if n.startswith(("h.", "score.")))


def test_adversarial_turns_the_reconstruction_gradient_of_the_scorer_around(kit: Any) -> None:
    """The task reaches the scores through nothing when it sees the unmasked imputation: gradients are then opposite."""
    plain = gradients(kit, task_from="unmasked")
    turned = gradients(kit, task_from="unmasked", mask_gradient="adversarial")
    for name, gradient in plain.items():
        other = turned[name]
        if gradient is None or other is None:
            assert gradient is other
        elif name.startswith(("h.", "score.")):
            assert torch.allclose(other, -gradient, atol=1e-6, rtol=1e-4), name
        else:
            assert torch.allclose(other, gradient, atol=1e-6, rtol=1e-4), name


def test_adversarial_leaves_the_task_gradient_of_the_scorer(kit: Any) -> None:
    """Where the task sees the masked imputation: (task + rec) + (task - rec) = 2 task."""
    plain, turned = gradients(kit, task_from="masked"), gradients(kit, task_from="masked", mask_gradient="adversarial")
    task = gradients(kit, task_from="masked", alpha=0.0, beta=0.0)
    for name, gradient in task.items():
        if name.startswith(("h.", "score.")):
            one, other = plain[name], turned[name]
            assert gradient is not None
            assert one is not None
            assert other is not None
            assert not torch.allclose(one, other, atol=1e-6, rtol=1e-3) or "in_proj_bias" in name, name
            assert torch.allclose(one + other, 2 * gradient, atol=1e-4, rtol=1e-2), name


def test_targets_have_no_gradient_unless_asked(kit: Any) -> None:
    def projection_gradient(target_grad: bool) -> Tensor:
        model, batch = build(kit, target_grad=target_grad).train(), kit.batch(kit.mixed(6))
        tokens = model.project(batch)
        masks = model.masks(model.scores(tokens, batch.observed), tokens, 0.5)
        guess = {m: torch.zeros_like(v) for m, v in tokens.values.items()}
        loss = model.reconstruction(guess, tokens, masks, batch.observed)
        if not loss.requires_grad:
            return torch.zeros(1)
        loss.backward()
        return model.project.maps["a"][0].weight.grad  # type: ignore[union-attr,index,return-value]

    assert projection_gradient(True).abs().sum() > 0
    assert projection_gradient(False).abs().sum() == 0


def test_experts_are_mixed_with_the_fusion_over_what_is_observed(kit: Any) -> None:
    """y = sum_j w_j o_j, w a softmax of the gate's scores over f and the experts of observed modalities."""
    model, batch = build(kit, experts="observed").eval(), kit.batch(kit.mixed(8))
    assert model.mixture is not None
    names, tokens = list(kit.widths), model.project(batch)
    imputed = model.fill_in(model.g, tokens.values, tokens, batch.observed)
    mixed = model.fuse(tokens, imputed, batch.observed)
    mixture, model.mixture = model.mixture, None
    fused = model.fuse(tokens, imputed, batch.observed)
    for row, seen in enumerate(batch.observed):
        means, logits = [], [fused[row]]
        for column, m in enumerate(names):
            own = tokens.values[m][row][tokens.valid[m][row]]
            means.append(own.mean(0) if seen[column] else torch.zeros(own.shape[-1]))
            if seen[column]:
                logits.append(mixture.experts[m](own[None], torch.ones(1, len(own), dtype=torch.bool))[0])
        scores = mixture.gate(torch.cat([*means, seen.float()]))
        weights = scores[[True, *seen.tolist()]].softmax(0)
        expected = sum(w * o for w, o in zip(weights, logits, strict=True))
        assert torch.allclose(mixed[row], expected, atol=1e-6)


def test_moving_average_follows_the_predictor(kit: Any) -> None:
    model = build(kit, tau=0.9)
    before = [p.clone() for p in model.g_bar.average.parameters()]
    with torch.no_grad():
        for p in model.g.parameters():
            p.add_(1.0)
    model.after_step()
    for old, new, current in zip(before, model.g_bar.average.parameters(), model.g.parameters(), strict=True):
        assert torch.allclose(new, 0.9 * old + 0.1 * current, atol=1e-6)


def test_distillation_is_zero_for_equal_predictions_and_has_no_gradient_to_the_teacher(kit: Any) -> None:
    label, logits = kit.labels["binary"], torch.randn(8, 1, requires_grad=True)
    assert distillation_loss(logits, logits, label).abs() < 1e-6
    teacher = torch.randn(8, 1, requires_grad=True)
    distillation_loss(logits, teacher, label).backward()
    assert teacher.grad is None
    three = torch.randn(8, 3)
    assert distillation_loss(three, three, kit.labels["multiclass"]).abs() < 1e-6
