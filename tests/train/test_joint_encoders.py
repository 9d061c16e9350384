"""The joint stage on every kind of encoder: who gets gradients, with adapters and recomputation; parts of a batch."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from extract.config import LoraSettings, TimeSeriesSettings, TuningSettings
from extract.encoders.base import Encoder
from extract.encoders.timeseries import TimeSeriesEncoder
from extract.inputs import InputBank
from extract.ranks import SharedGenerator
from extract.task import LabelSpec
from extract.tuning import tune
from train.joint import JointModel
from train.methods.base import ModelSpec
from train.methods.selfmask import SelfMask
from train.shares import weighted

ROWS = 7


def bank(small: Any) -> InputBank:
    """The encoder beside one of series; both miss some rows, and some rows have no label."""
    draw = np.random.default_rng(0)
    settings = TimeSeriesSettings(
        type="timeseries", bins_per_token=2, max_bins=12, drop_cells=0.0, width=8, layers=1, heads=2, dropout=0.0
    )
    encoders: dict[str, Encoder] = {"own": small.encoder(), "other": TimeSeriesEncoder(settings, ("a", "b"))}
    own = [None if row == 3 else item for row, item in enumerate(small.items(ROWS))]
    other = [{"values": draw.normal(size=(5, 2)).astype(np.float32)} if row % 3 else None for row in range(ROWS)]
    other[0] = None
    other[3] = {"values": draw.normal(size=(6, 2)).astype(np.float32)}
    labels = torch.tensor([0.0, 1.0, float("nan"), 1.0, 0.0, float("nan"), 1.0])
    return InputBank(encoders, {"own": list(own), "other": list(other)}, labels, tuple(map(str, range(ROWS))))


def joint(inputs: InputBank, settings: Any, **changes: Any) -> JointModel:
    spec = ModelSpec(
        modalities=("own", "other"),
        widths={name: encoder.width for name, encoder in inputs.encoders.items()},
        missing_lengths={"own": 4, "other": 3},
        max_lengths={"own": 20, "other": 6},
        label=LabelSpec(kind="binary", names=("death",)),
    )
    torch.manual_seed(1)
    selfmask = settings.selfmask.model_copy(update=changes)
    return JointModel(inputs.encoders, SelfMask(spec, settings.model_settings, selfmask)).train()


def gradients(model: JointModel, inputs: InputBank, count: int) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Losses and gradients of the whole bank as one batch of `count` parts."""
    model.zero_grad(set_to_none=True)
    sums: dict[str, float] = {}
    for part in inputs.batch(torch.arange(ROWS)).parts(count):
        generator = SharedGenerator()
        generator.manual_seed(5)
        generator.share = part.share
        losses = weighted(model(part.batch, generator), part.share, part.label_weight)
        losses["loss"].backward()
        sums = {name: sums.get(name, 0.0) + value.item() for name, value in losses.items()}
    return sums, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2, alpha=4, dropout=0.0)])
def test_gradients_reach_placeholder_mask_predictor_and_what_is_trained(
    small: Any, settings: Any, lora: LoraSettings | None, checkpointing: bool
) -> None:
    inputs = bank(small)
    tuning = TuningSettings(
        blocks=2,
        lora=lora,
        layer_decay=1.0,
        warmup_steps=0,
        precision="float32",
        micro_batches=1,
        checkpointing=checkpointing,
    )
    encoder = inputs.encoders["own"]
    tune(encoder, tuning, inputs.example("own", "cpu"))
    model = joint(inputs, settings, mask_gradient="straight_through", task_from="masked")
    _, found = gradients(model, inputs, 1)
    own = {name.split(".", 2)[2]: value for name, value in found.items() if name.startswith("encoder_modules.own.")}
    assert float(own["placeholder"].abs().sum()) > 0
    assert sum(float(value.abs().sum()) for name, value in found.items() if name.startswith("method.h.")) > 0
    assert own.keys() == {name for name, p in encoder.named_parameters() if p.requires_grad}
    wanted = [name for name in own if "lora_B" in name] if lora else [n for n in own if n != "placeholder"]
    assert sum(float(own[name].abs().sum()) > 0 for name in wanted) > len(wanted) / 2


@pytest.mark.parametrize("draw", ["sample", "batch"])
def test_the_parts_of_a_batch_add_up_to_it(small: Any, settings: Any, draw: str) -> None:
    inputs = bank(small)
    model = joint(inputs, settings, draw_per=draw)
    whole, gradient = gradients(model, inputs, 1)
    losses, added = gradients(model, inputs, 3)
    for name, value in whole.items():
        if not name.startswith("target_sd"):
            assert losses[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    assert added.keys() == gradient.keys()
    for name, value in gradient.items():
        torch.testing.assert_close(
            added[name], value, rtol=1e-3, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
