"""The joint stage: eq. 5 on encoder inputs, who gets a gradient, what is frozen, and invariance to what is missing."""

import numpy as np
import pytest
import torch

from extract.config import ImageSettings, TimeSeriesSettings
from extract.encoders.base import Encoder
from extract.encoders.image import ImageEncoder
from extract.encoders.timeseries import TimeSeriesEncoder
from extract.inputs import InputBank
from extract.task import LabelSpec
from train.config import ModelSettings, SelfMaskSettings
from train.encoded import EncodedBank, EncodedSource
from train.joint import JointModel
from train.methods.base import ModelSpec
from train.methods.selfmask import SelfMask

SIZE = {"width": 16, "layers": 2, "heads": 2, "dropout": 0.0}
MODEL = ModelSettings(
    width=16,
    predictor_layers=1,
    fusion_layers=1,
    heads=2,
    dropout=0.0,
    pooling="mean",
    head="linear",
    missing_tokens_cap=8,
)
SELFMASK = SelfMaskSettings(
    alpha=0.5,
    beta=0.5,
    ratio_observed=0.25,
    ratio_cross=0.5,
    tau=0.9,
    draw_per="sample",
    reconstruction="mean",
    target_grad=False,
    target_norm="none",
    mask_policy="learned",
    mask_gradient="straight_through",
    positions="learned",
    task_from="masked",
    fusion_sees_imputed=True,
    experts="observed",
    complete_task=0.0,
    distill=0.0,
)


def encoders() -> dict[str, Encoder]:
    torch.manual_seed(0)
    series = TimeSeriesSettings(type="timeseries", bins_per_token=2, max_bins=12, drop_cells=0.0, **SIZE)
    image = ImageSettings(type="vit", weights="scratch", image_size=8, patch_size=4, channels=1, augment=None, **SIZE)
    return {"ehr": TimeSeriesEncoder(series, ("a", "b")), "cxr": ImageEncoder(image)}


def bank(made: dict[str, Encoder], rows: int = 8) -> InputBank:
    draw = np.random.default_rng(0)
    series = [{"values": draw.normal(size=(6 + row % 5, 2)).astype(np.float32)} for row in range(rows)]
    images = [
        None if row % 3 == 0 else {"pixels": draw.normal(size=(1, 8, 8)).astype(np.float32)} for row in range(rows)
    ]
    labels = torch.tensor([float(row % 2) for row in range(rows)])
    return InputBank(made, {"ehr": list(series), "cxr": images}, labels, tuple(f"s{row}" for row in range(rows)))


def joint(made: dict[str, Encoder], mask_gradient: str = "straight_through") -> JointModel:
    spec = ModelSpec(
        modalities=("ehr", "cxr"),
        widths={"ehr": 16, "cxr": 16},
        missing_lengths={"ehr": 4, "cxr": 4},
        max_lengths={"ehr": 6, "cxr": 4},
        label=LabelSpec(kind="binary", names=("death",)),
    )
    torch.manual_seed(1)
    return JointModel(made, SelfMask(spec, MODEL, SELFMASK.model_copy(update={"mask_gradient": mask_gradient})))


def test_an_empty_mask_gives_the_unmasked_tokens_and_a_full_one_hides_the_input() -> None:
    made = encoders()
    model = joint(made).eval()
    source = EncodedSource.build(made, model.method.project, bank(made).batch(torch.arange(8)))
    for name in made:
        nothing = torch.zeros(source.tokens.valid[name].shape)
        valid = source.tokens.valid[name][:, :, None]
        same = source.masked(name, nothing) * valid
        assert torch.allclose(same, source.tokens.values[name] * valid, atol=1e-5)
        assert not torch.allclose(source.masked(name, nothing + 1) * valid, same, atol=1e-3)


def test_gradients_reach_encoders_placeholders_and_the_mask_predictor() -> None:
    made = encoders()
    model = joint(made).train()
    model(bank(made).batch(torch.arange(8)), torch.Generator().manual_seed(0)).losses["loss"].backward()
    for encoder in made.values():
        assert encoder.placeholder.grad is not None
        assert encoder.placeholder.grad.abs().sum() > 0
        for block in encoder.blocks():
            assert sum(float(p.grad.abs().sum()) for p in block.parameters() if p.grad is not None) > 0
    assert sum(float(p.grad.abs().sum()) for p in model.method.h.parameters() if p.grad is not None) > 0


def test_the_mask_predictor_gets_none_when_not_asked() -> None:
    made = encoders()
    model = joint(made, "none").train()
    model(bank(made).batch(torch.arange(8)), torch.Generator().manual_seed(0)).losses["loss"].backward()
    assert all(p.grad is None for p in model.method.h.parameters())


def test_checkpointing_gives_the_same_gradients() -> None:
    found = []
    for enabled in (False, True):
        made = encoders()
        for encoder in made.values():
            encoder.set_checkpointing(enabled)
        model = joint(made).train()
        model(bank(made).batch(torch.arange(8)), torch.Generator().manual_seed(0)).losses["loss"].backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][name], atol=1e-5), name


def test_prediction_ignores_what_is_missing_and_batch_mates() -> None:
    made = encoders()
    model = joint(made).eval()
    tokens = EncodedBank(made, bank(made))
    with torch.no_grad():
        together = model.method(tokens.batch(torch.arange(8))).logits
        alone = torch.cat([model.method(tokens.batch(torch.tensor([row]))).logits for row in range(8)])
        hidden = tokens.batch(torch.arange(8))
        only_series = hidden.observed.clone()
        only_series[:, 1] = False
        dropped = model.method(hidden.with_observed(only_series)).logits
        items = {"ehr": tokens.inputs.items["ehr"], "cxr": [None] * 8}
        never_there = EncodedBank(made, InputBank(made, items, None, tokens.inputs.sample_ids))
        absent = model.method(never_there.batch(torch.arange(8))).logits
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.allclose(dropped, absent, atol=1e-5)


@pytest.mark.parametrize("rows", [[0], [1, 2], [3]])
def test_a_batch_of_any_composition_trains(rows: list[int]) -> None:
    """Row 0 and row 3 have no image: the batch then holds no image at all."""
    made = encoders()
    loss = joint(made).train()(bank(made).batch(torch.tensor(rows)), torch.Generator().manual_seed(0)).losses["loss"]
    assert torch.isfinite(loss)
    loss.backward()
