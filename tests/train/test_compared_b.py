"""MoMKE, DrFuse, SimMLM, the missing-modality bank and the ranking loss: any subset, and their identities."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from cache.bank import TokenBatch
from cache.errors import UserError
from extract.task import LabelSpec, loss_entries, task_loss
from train.checkpoint import load_checkpoint, save_checkpoint
from train.config import ComparedSettings, ModelSettings
from train.methods.base import Method, ModelSpec
from train.methods.drfuse import (
    ClassAttention,
    attention_ranking,
    divergence,
    official_divergence,
    orthogonality,
    pool_logits,
)
from train.methods.flexmoe import bank_rows
from train.methods.momke import ExpertBlock, MoMKE
from train.methods.registry import METHODS, build_method
from train.methods.simmlm import SimMLM, mix
from train.missing import draw_nested, patterns
from train.more_vs_fewer import add_ranking, ranking_loss
from train.scoring import selection_metrics
from train.stage import train_method

PARAMS = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text())
COMPARED = ComparedSettings.model_validate(PARAMS["compared"])
MODEL = ModelSettings.model_validate({**PARAMS["model"], "width": 8, "heads": 2, "dropout": 0.0})
WIDTHS = {"a": 5, "b": 7, "c": 3}
LABELS = {
    "binary": LabelSpec(kind="binary", names=("y",)),
    "multiclass": LabelSpec(kind="multiclass", names=("y",), classes=("p", "q", "r")),
    "multilabel": LabelSpec(kind="multilabel", names=("u", "v")),
    "regression": LabelSpec(kind="regression", names=("y",)),
}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("momke", {}),
    ("momke", {"expert_loss": 0.0, "router_level": "sample", "norm": "pre"}),
    ("momke", {"fixed_pattern": ["a", "c"]}),
    ("drfuse", {}),
    ("drfuse", {"jsd": "official", "keys": "low_rank", "drawn_share": 0.3}),
    ("simmlm", {}),
    ("simmlm", {"gate": "modality", "mix": "probabilities", "expert_loss": 1.0}),
    ("flexmoe", {}),
]
every_variant = pytest.mark.parametrize(("name", "changes"), VARIANTS)


def spec_of(kind: str, modalities: int = 3) -> ModelSpec:
    names = tuple(WIDTHS)[:modalities]
    return ModelSpec(
        modalities=names,
        widths={m: WIDTHS[m] for m in names},
        missing_lengths=dict(zip(names, (4, 3, 2), strict=False)),
        max_lengths=dict.fromkeys(names, 6),
        label=LABELS[kind],
    )


def build(
    name: str, changes: dict[str, Any] | None = None, kind: str = "binary", modalities: int = 3, **model: Any
) -> Method:
    torch.manual_seed(0)
    merged = {**PARAMS["compared"], name: {**PARAMS["compared"].get(name, {}), **(changes or {})}}
    compared = {key: value for key, value in merged.items() if value}
    options = getattr(ComparedSettings.model_validate(compared), name)
    return build_method(name, spec_of(kind, modalities), MODEL.model_copy(update=model), options)  # type: ignore[arg-type]


def labels_for(kind: str, rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    if kind == "regression":
        return torch.randn(rows, generator=generator)
    shape = (rows, 2) if kind == "multilabel" else (rows,)
    return torch.randint(0, 3 if kind == "multiclass" else 2, shape, generator=generator).float()


def make_batch(observed: Tensor, kind: str = "binary") -> TokenBatch:
    generator, rows = torch.Generator().manual_seed(1), len(observed)
    tokens, valid = {}, {}
    for name, width in WIDTHS.items():
        lengths = torch.randint(1, 7, (rows,), generator=generator)
        valid[name] = torch.arange(6)[None] < lengths[:, None]
        tokens[name] = torch.randn(rows, 6, width, generator=generator) * valid[name][:, :, None]
    return TokenBatch(tokens, valid, dict(valid), observed, labels_for(kind, rows))


def learn(model: Method, batch: TokenBatch, seed: int = 1) -> dict[str, Tensor]:
    model.train().zero_grad()
    losses = model(batch, torch.Generator().manual_seed(seed)).losses
    losses["loss"].backward()
    return losses


@every_variant
@pytest.mark.parametrize("kind", LABELS)
def test_every_subset_and_task_gives_finite_logits_losses_and_gradients(name: str, changes: Any, kind: str) -> None:
    model = build(name, changes, kind)
    batch = make_batch(patterns(3), kind)
    with torch.no_grad():
        logits = model.eval()(batch).logits
    assert logits.shape == (7, {"binary": 1, "multiclass": 3, "multilabel": 2, "regression": 1}[kind])
    assert logits.isfinite().all()
    incomplete = make_batch(patterns(3)[:6], kind)  # no complete row
    for given in (batch, incomplete, make_batch(patterns(3)[:1], kind)):
        losses = learn(model, given)
        assert all(math.isfinite(float(value.detach())) for value in losses.values())
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ["momke", "drfuse", "simmlm", "flexmoe"])
def test_one_modality_is_enough(name: str) -> None:
    model, batch = build(name, modalities=1), make_batch(torch.ones(5, 1, dtype=torch.bool))
    assert all(value.isfinite() for value in learn(model, batch).values())
    assert model.eval()(batch).logits.isfinite().all()


@every_variant
def test_nothing_of_a_missing_modality_or_a_batch_mate_reaches_a_prediction(name: str, changes: Any) -> None:
    model, batch = build(name, changes).eval(), make_batch(patterns(3))
    tokens, valid = {}, {}
    for column, m in enumerate(WIDTHS):
        absent = ~batch.observed[:, column]
        tokens[m] = torch.cat([batch.tokens[m], torch.zeros(7, 5, WIDTHS[m])], dim=1)
        valid[m] = torch.cat([batch.valid[m], torch.zeros(7, 5, dtype=torch.bool)], dim=1)
        tokens[m][absent], valid[m][absent] = 1e3, True
    disguised = TokenBatch(tokens, valid, valid, batch.observed, batch.labels)
    with torch.no_grad():
        expected = model(batch).logits
        assert torch.allclose(model(disguised).logits, expected, atol=1e-5)
        for row in range(7):
            alone = [{m: v[[row]] for m, v in part.items()} for part in (batch.tokens, batch.valid, batch.maskable)]
            one = TokenBatch(*alone, batch.observed[[row]], None)
            assert torch.allclose(model(one).logits[0], expected[row], atol=1e-5)


@every_variant
def test_gradients_reach_every_module(name: str, changes: Any) -> None:
    reached: set[str] = set()
    model = build(name, changes)
    for seed in range(6):
        losses = learn(model, make_batch(patterns(3).repeat(4, 1)), seed)
        assert losses["loss"] > 0
        reached |= {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        if name == "momke":  # stage 1 is what trains the experts' own heads when stage 2 has no loss of theirs
            model.warming_up = seed == 0
    unused = {n for n, _ in model.named_parameters()} - reached
    # A key's or a query's bias that is the same for all keys leaves the softmax as it is.
    expected = ("summary", "key.bias", "in_proj_bias", *(["routers.b"] if changes.get("fixed_pattern") else []))
    assert not {n for n in unused if not any(part in n for part in expected)}


@every_variant
def test_what_is_missing_in_training_gets_no_gradient(name: str, changes: Any) -> None:
    model = build(name, changes)
    learn(model, make_batch(torch.tensor([[1, 0, 0], [0, 0, 1], [1, 0, 1]]).bool()))
    for parameter in model.project.maps["b"].parameters():
        assert parameter.grad is None or parameter.grad.abs().sum() == 0


@pytest.mark.parametrize("name", ["momke", "drfuse", "simmlm", "flexmoe"])
def test_checkpoints_survive_a_round_trip(name: str, tmp_path: Path) -> None:
    model, batch = build(name).eval(), make_batch(patterns(3))
    config = {
        "method": name,
        "spec": model.spec.model_dump(mode="json"),
        "model": model.model_settings.model_dump(mode="json"),
        "options": PARAMS["compared"][name],
    }
    save_checkpoint(tmp_path, model, config)
    assert torch.equal(load_checkpoint(tmp_path)[0](batch).logits, model(batch).logits)


# MoMKE


def test_an_expert_block_equals_a_loop_written_one() -> None:
    torch.manual_seed(0)
    block, tokens = ExpertBlock(MODEL, "none"), torch.randn(2, 4, 8)
    valid = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0]]).bool()
    result = block(tokens, valid)
    for row in range(2):
        for place in range(4):
            heads = []
            for h in range(2):
                part = slice(4 * h, 4 * h + 4)
                query = block.query(tokens[row, place])[part]
                seen = [t for t in range(4) if valid[row, t]]
                scores = torch.stack([query @ block.key(tokens[row, t])[part] / math.sqrt(4) for t in seen]).softmax(0)
                heads.append(sum(s * block.value(tokens[row, t])[part] for s, t in zip(scores, seen, strict=True)))
            attended = torch.cat(heads)  # type: ignore[arg-type]
            hidden = F.gelu(block.mlp[0](attended))
            expected = tokens[row, place] + attended + block.mlp[3](hidden)
            assert torch.allclose(result[row, place], expected, atol=1e-6)


@pytest.mark.parametrize("level", ["token", "sample"])
def test_momke_mixes_all_experts_and_zeroes_what_is_missing(level: str) -> None:
    model = build("momke", {"router_level": level}).eval()
    assert isinstance(model, MoMKE)
    batch = make_batch(torch.tensor([[1, 0, 1], [1, 1, 1], [0, 1, 0]]).bool())
    tokens = model.project(batch)
    for row in range(3):
        parts, own = [], []
        for column, m in enumerate(WIDTHS):
            length = int(batch.valid[m][row].sum())
            z = tokens.values[m][row, :length]
            alone = torch.ones(1, length, dtype=torch.bool)
            router = model.routers[m](z if level == "token" else z.mean(0, keepdim=True)).softmax(-1)
            encoded = [model.experts[k](z[None], alone)[0] for k in WIDTHS]
            mixture = sum(router[:, [k]] * encoded[k] for k in range(3))
            parts.append(mixture.mean(0) * batch.observed[row, column])  # type: ignore[union-attr]
            own.append(model.expert_heads[m](encoded[column].mean(0)))
        joined = torch.cat(parts)
        expected = model.head(joined + F.relu(model.joint[0](joined)))
        assert torch.allclose(model(batch).logits[row], expected, atol=1e-6)
        for column in batch.observed[row].nonzero().flatten():
            assert torch.allclose(model.mix(tokens, batch.observed)[1][row, column], own[column], atol=1e-6)
            assert torch.allclose(model.alone(tokens, batch.observed)[row, column], own[column], atol=1e-6)


def test_momke_s_first_stage_is_the_sum_of_the_experts_losses_on_everything_that_is_there() -> None:
    model, observed = build("momke"), torch.tensor([[1, 0, 1], [1, 1, 1], [0, 1, 0]]).bool()
    assert isinstance(model, MoMKE)
    batch = make_batch(observed)
    assert batch.labels is not None
    model.start_epoch(0)
    assert not model.warming_up
    model.warmup_epochs = 1
    model.start_epoch(0)
    loss = float(learn(model, batch)["loss"].detach())
    logits = model.alone(model.project(batch), observed)[..., 0]
    total = 0.0
    for column in range(3):
        rows = observed[:, column]
        total += float(F.binary_cross_entropy_with_logits(logits[rows, column], batch.labels[rows]).detach())
    assert loss == pytest.approx(total, rel=1e-5)
    touched = {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None}
    assert touched == {"project", "experts", "expert_heads"}
    model.start_epoch(1)
    assert not model.warming_up


def test_momke_trains_on_a_fixed_pattern_and_knows_its_names() -> None:
    model = build("momke", {"fixed_pattern": ["b"]})
    assert isinstance(model, MoMKE)
    natural = torch.tensor([[1, 0, 1], [1, 1, 1]]).bool()
    kept, known = model.simulate(natural, None)
    assert kept.tolist() == [[True, False, True], [False, True, False]]
    assert known.tolist() == [False, True]
    with pytest.raises(UserError, match="fixed_pattern"):
        build("momke", {"fixed_pattern": ["nothing"]})


def test_no_epoch_of_a_first_stage_is_selected_and_it_resumes(
    make_bank, settings, binary, tmp_path, monkeypatch
) -> None:
    banks = {"train": make_bank(24, 1), "valid": make_bank(24, 2)}
    options = ComparedSettings.model_validate(PARAMS["compared"]).momke.model_copy(update={"expert_epochs": 2})
    train = settings.train_settings.model_copy(update={"max_epochs": 3, "patience_epochs": 1})
    given = ("momke", 0, banks, binary, settings.model_settings, options)
    config = train_method(*given, train, tmp_path / "a", {})
    assert config["epochs"] == {"best": 2, "run": 3}

    def killed(*args: Any) -> None:
        if (tmp_path / "cut" / "state.pt").exists():
            raise KeyboardInterrupt
        return selection_metrics(*args)

    monkeypatch.setattr("train.stage.selection_metrics", killed)
    with pytest.raises(KeyboardInterrupt):  # in the second epoch, with nothing selected
        train_method(*given, train, tmp_path / "cut", {})
    monkeypatch.undo()
    resumed = train_method(*given, train, tmp_path / "cut", {})
    assert resumed["weights_sha256"] == config["weights_sha256"]
    with pytest.raises(UserError, match="first stage"):
        train_method(*given, train.model_copy(update={"max_epochs": 2}), tmp_path / "b", {})


# DrFuse

SUBSETS = [[0], [2], [0, 1], [1, 2], [0, 1, 2]]


def observed_of(subsets: list[list[int]]) -> Tensor:
    return torch.tensor([[m in subset for m in range(3)] for subset in subsets])


def test_pooled_logits_are_the_logit_of_the_mean_probability() -> None:
    shared = 3 * torch.randn(5, 3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pooled = pool_logits(shared, observed_of(SUBSETS))
    for row, subset in enumerate(SUBSETS):
        assert torch.allclose(pooled[row], shared[row, subset].sigmoid().mean(0).logit(), atol=1e-6)
    one, two = shared[:, 0], shared[:, 1]
    zero = torch.zeros_like(one)
    official = torch.stack([one + two, one + two, one, two]).logsumexp(0)
    official = official - torch.stack([zero, zero, one, two]).logsumexp(0)
    assert torch.allclose(pool_logits(shared, observed_of([[0, 1]] * 5)), official, atol=1e-6)


def test_divergence_equals_the_direct_formula_and_is_between_zero_and_log_m() -> None:
    shared = 3 * torch.randn(5, 3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    observed, direct, one_side = observed_of(SUBSETS), [], []
    for row, subset in enumerate(SUBSETS):
        p = shared[row, subset].sigmoid()
        mid = p.mean(0)
        left = (p * (p / mid).log()).mean(0)
        right = ((1 - p) * ((1 - p) / (1 - mid)).log()).mean(0)
        assert torch.allclose(divergence(shared[[row]], observed[[row]]), (left + right).mean(), atol=1e-6)
        assert torch.allclose(official_divergence(shared[[row]], observed[[row]]), left.sum(), atol=1e-6)
        direct.append((left + right).mean())
        one_side.append(left.sum())
    assert torch.allclose(divergence(shared, observed), torch.stack(direct[2:]).mean(), atol=1e-6)
    assert torch.allclose(official_divergence(shared, observed), torch.stack(one_side[2:]).mean(), atol=1e-6)


@pytest.mark.parametrize("of", [divergence, official_divergence])
def test_divergence_of_saturated_logits_is_finite_and_ignores_what_is_missing(of: Any) -> None:
    shared = torch.tensor([[[200.0], [-200.0], [7.0]], [[-200.0], [-200.0], [7.0]]], requires_grad=True)
    observed = observed_of([[0, 1], [0, 1]])
    value = of(shared, observed)
    value.backward()
    assert shared.grad is not None
    assert shared.grad.isfinite().all()
    assert (shared.grad[:, 2] == 0).all()
    expected = {divergence: math.log(2), official_divergence: math.log(2) / 2}[of]
    assert float(value.detach()) == pytest.approx(expected / 2, abs=1e-6)  # the second sample agrees with itself
    assert float(of(shared.detach(), observed_of([[0], [1]]))) == 0


def test_orthogonality_and_attention_equal_loop_written_ones() -> None:
    torch.manual_seed(0)
    shared, distinct, observed = torch.randn(5, 3, 8), torch.randn(5, 3, 8), observed_of(SUBSETS)
    total = 0.0
    for m in range(3):
        cosines = [abs(F.cosine_similarity(shared[b, m], distinct[b, m], dim=0)) for b in range(5) if observed[b, m]]
        total += float(sum(cosines)) / len(cosines)
    assert float(orthogonality(shared, distinct, observed)) == pytest.approx(total, abs=1e-6)
    for keys in ("full", "low_rank"):
        attention = ClassAttention(8, 3, keys)  # type: ignore[arg-type]
        logits, alpha = attention(shared, observed)
        for b, subset in enumerate(SUBSETS):
            query = torch.stack([attention.query(shared[b, n]) for n in subset]).mean(0)
            for c in range(3):
                key = [attention.key(shared[b, n]) for n in subset]
                key = [k * attention.class_key[c] if keys == "low_rank" else k[8 * c : 8 * c + 8] for k in key]
                share = torch.stack([query @ k / math.sqrt(8) for k in key]).softmax(0)
                mixed = sum(s * attention.value(shared[b, n]) for s, n in zip(share, subset, strict=True))
                assert torch.allclose(alpha[b, subset, c], share, atol=1e-6)
                assert torch.allclose(logits[b, c], attention.out(mixed)[c], atol=1e-6)


@pytest.mark.parametrize("kind", LABELS)
def test_attention_ranking_equals_a_loop_written_one(kind: str) -> None:
    generator, label = torch.Generator().manual_seed(0), LABELS[kind]
    results = {"multiclass": 3, "multilabel": 2}.get(kind, 1)
    observed, labels = observed_of(SUBSETS), labels_for(kind, 5)
    alpha = torch.rand(5, 4, results, generator=generator, requires_grad=True)
    alone = torch.randn(5, 4, results, generator=generator, requires_grad=True)
    labels[4] = math.nan
    value = attention_ranking(alpha, alone, observed, labels, label)
    terms = []
    for i in range(4):
        for j in range(i + 1, 4):
            positive = []
            for b in range(4):  # the last has no label
                if observed[b].sum() < 2 or not all(n == 3 or observed[b, n] for n in (i, j)):
                    continue
                l_i, l_j = (loss_entries(alone[b : b + 1, n], labels[b : b + 1], label).flatten() for n in (i, j))
                for k in range(len(l_i)):
                    shares = alpha[b].mean(-1) if kind == "multiclass" else alpha[b, :, k]
                    y = 1 if l_i[k] < l_j[k] else -1
                    positive += [h for h in [float((-y * (shares[i] - shares[j])).detach())] if h > 0]
            terms.append(sum(positive) / max(1, len(positive)))
    assert float(value.detach()) == pytest.approx(sum(terms) / 6, abs=1e-6)
    value.backward()
    assert alone.grad is None


# SimMLM and the ranking loss


def test_the_hinge_is_active_only_where_more_did_worse() -> None:
    label, labels = LABELS["multilabel"], torch.tensor([[1.0, 0.0], [1.0, math.nan], [0.0, 0.0]])
    more = torch.tensor([[2.0, 1.0], [-1.0, 0.0], [3.0, 3.0]], requires_grad=True)
    fewer = torch.tensor([[1.0, -1.0], [1.0, 5.0], [0.0, 0.0]], requires_grad=True)
    value = ranking_loss(more, fewer, labels, label, torch.tensor([True, True, False]))
    bce = F.binary_cross_entropy_with_logits
    better = bce(more[0, 1], labels[0, 1]) - bce(fewer[0, 1], labels[0, 1])
    expected = (better + bce(more[1, 0], labels[1, 0]) - bce(fewer[1, 0], labels[1, 0])) / 3
    assert torch.allclose(value, expected, atol=1e-6)
    value.backward()
    assert more.grad is not None
    assert fewer.grad is not None
    active = torch.tensor([[0, 1], [1, 0], [0, 0]]).bool()
    assert torch.equal(more.grad != 0, active)
    assert torch.equal(fewer.grad != 0, active)


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


@pytest.mark.parametrize("gate", ["class", "modality"])
def test_the_gate_is_a_softmax_over_what_is_observed(gate: str) -> None:
    model = build("simmlm", {"gate": gate}, "multiclass").eval()
    assert isinstance(model, SimMLM)
    batch = make_batch(patterns(3), "multiclass")
    tokens = model.project(batch)
    weights, alone = model.log_weights(tokens, batch.observed).exp(), model.alone(tokens, batch.observed)
    assert torch.allclose(weights.sum(1), torch.ones(7, weights.shape[-1]))
    assert (weights[~batch.observed] == 0).all()
    logits = model(batch).logits
    for row in range(7):
        seen = batch.observed[row].nonzero().flatten().tolist()
        for c in range(3):
            expected = sum(weights[row, m, c if gate == "class" else 0] * alone[row, m, c] for m in seen)
            assert torch.allclose(logits[row, c], torch.as_tensor(expected), atol=1e-6)


def test_simmlm_s_loss_is_the_mean_of_both_sets_and_the_hinge() -> None:
    model, batch = build("simmlm", {"more_vs_fewer": 0.4}), make_batch(patterns(3))
    assert isinstance(model, SimMLM)
    assert batch.labels is not None
    loss = learn(model, batch, seed=3)["loss"]
    larger, smaller, comparable = draw_nested(batch.observed, torch.Generator().manual_seed(3))
    more, fewer = (model(batch_of(batch, kept)).logits for kept in (larger, smaller))
    task = (task_loss(more, batch.labels, LABELS["binary"]) + task_loss(fewer, batch.labels, LABELS["binary"])) / 2
    hinge = ranking_loss(more, fewer, batch.labels, LABELS["binary"], comparable)
    assert hinge > 0
    assert torch.allclose(loss, task + 0.4 * hinge, atol=1e-6)


def batch_of(batch: TokenBatch, observed: Tensor) -> TokenBatch:
    return TokenBatch(batch.tokens, batch.valid, batch.maskable, observed, None)


def test_mixed_probabilities() -> None:
    weights = torch.rand(4, 3, 2).softmax(1)
    alone = 2 * torch.randn(4, 3, 2)
    mixed = mix(weights.log(), alone, "probabilities", LABELS["multilabel"])
    assert torch.allclose(mixed.sigmoid(), (weights * alone.sigmoid()).sum(1), atol=1e-6)
    classes = mix(weights.log(), alone, "probabilities", LABELS["multiclass"])
    assert torch.allclose(classes.exp(), (weights * alone.softmax(-1)).sum(1), atol=1e-6)
    assert torch.allclose(mix(weights.log(), alone, "probabilities", LABELS["regression"]), (weights * alone).sum(1))


@pytest.mark.parametrize("name", METHODS)
def test_the_ranking_loss_is_added_to_any_method_and_compares_its_own_predictions(name: str, settings: Any) -> None:
    torch.manual_seed(0)
    options = settings.selfmask if name == "selfmask" else getattr(COMPARED, name, None)
    model = build_method(name, spec_of("binary"), MODEL, options).train()
    batch, nothing = make_batch(patterns(3).repeat(4, 1)), {"loss": torch.zeros(())}
    assert batch.labels is not None
    added = add_ranking(nothing, model, batch, 0.5, torch.Generator().manual_seed(2))
    larger, smaller, comparable = draw_nested(batch.observed, torch.Generator().manual_seed(2))
    if name != "random_fill":  # its noise is drawn anew
        more, fewer = (model(batch_of(batch, kept)).logits for kept in (larger, smaller))
        expected = ranking_loss(more, fewer, batch.labels, LABELS["binary"], comparable)
        assert expected > 0
        assert torch.allclose(added["more_vs_fewer"], expected, atol=1e-6)
    assert torch.allclose(added["loss"], added["more_vs_fewer"] / 2)
    added["loss"].backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    generator = torch.Generator().manual_seed(2)
    before = generator.get_state()
    assert add_ranking(nothing, model, batch, 0.0, generator) is nothing
    assert torch.equal(generator.get_state(), before)


def test_both_predictions_of_the_ranking_loss_use_the_same_dropout() -> None:
    """A sample with one modality is its own comparison; with other dropout it would differ from itself."""
    model, batch = build("flexmoe", dropout=0.5).train(), make_batch(patterns(3))
    seen: list[Tensor] = []
    model.register_forward_hook(lambda module, given, output: seen.append(output.logits))
    add_ranking({"loss": torch.zeros(())}, model, batch, 1.0, torch.Generator().manual_seed(0))
    single = batch.observed.sum(-1) == 1
    assert torch.equal(seen[0][single], seen[1][single])
    model(batch_of(batch, batch.observed))
    assert not torch.equal(seen[0][single], seen[2][single])


def test_training_adds_the_ranking_loss_when_asked(make_bank, settings, binary, tmp_path) -> None:
    banks = {"train": make_bank(24, 1), "valid": make_bank(24, 2)}
    train = settings.train_settings.model_copy(update={"max_epochs": 1, "more_vs_fewer": 0.1})
    train_method("zero_fill", 0, banks, binary, settings.model_settings, None, train, tmp_path, {})
    assert "more_vs_fewer" in (tmp_path / "history.json").read_text()


# The missing-modality bank


@pytest.mark.parametrize("modalities", [1, 2, 3, 4])
def test_the_bank_has_one_row_for_each_pattern_without_a_modality(modalities: int) -> None:
    table = patterns(modalities)
    rows = bank_rows(table)
    for column in range(modalities):
        lacking = rows[~table[:, column], column]
        assert sorted(lacking.tolist()) == list(range(2 ** (modalities - 1) - 1))


def test_a_pattern_trains_its_own_tokens_alone() -> None:
    model = build("flexmoe")
    model.warmup_epochs = 1
    batch = make_batch(torch.tensor([[1, 0, 1]]).bool())
    model.start_epoch(0)
    assert learn(model, batch)["loss"] == 0  # no complete sample
    model.start_epoch(1)
    with torch.no_grad():
        model.bank["b"].zero_()  # type: ignore[operator,union-attr,index]
    model.eval()(batch_of(batch, batch.observed)).logits.sum().backward()
    gradient = model.bank["b"].grad  # type: ignore[union-attr,index]
    touched = gradient.abs().sum((1, 2)).nonzero().flatten()  # type: ignore[union-attr,operator]
    assert touched.tolist() == [int(bank_rows(batch.observed)[0, 1])]
