"""What fit trains: a probe, an attention head, adapters, the last blocks; resumable in every phase."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import extract.fit as fitting
from cache.errors import UserError
from extract.config import FitSettings, LoraSettings, TextSettings, TuningSettings
from extract.encoders.registry import build_encoder, load_encoder, save_encoder
from extract.fit import AttentionPooling, UnimodalModel, fit_encoder
from extract.inputs import InputBank
from extract.samples import DatasetInfo, ModalitySpec, SamplesTable
from extract.task import LabelSpec, task_loss
from extract.training import STATE

SIZE = {"width": 16, "layers": 2, "heads": 2, "dropout": 0.0}
TEXT = TextSettings(type="bert", weights="scratch", revision=None, max_tokens=8, vocabulary=40, **SIZE)
NOTE = ModalitySpec(name="txt", kind="text", column="txt_text")
BINARY = LabelSpec(kind="binary", names=("label",))
FIT = FitSettings(
    batch_size=16,
    head="linear",
    frozen_epochs=1,
    max_epochs=3,
    patience_epochs=3,
    learning_rate=0.02,
    schedule="constant",
    head_learning_rate=0.02,
    weight_decay=0.01,
    clip_norm=1.0,
    blocks="all",
    lora=None,
    layer_decay=1.0,
    warmup_steps=0,
    precision="float32",
    micro_batches=1,
    checkpointing=False,
)
LORA = LoraSettings(rank=2, alpha=4, dropout=0.1)


def text(label: int, number: int) -> str:
    return f"{'fever and cough' if label else 'well and stable'} {'today' * (number % 3 > 0)}"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> tuple[SamplesTable, TextSettings]:
    """A samples table, and the settings of an encoder that starts from saved weights."""
    root = tmp_path_factory.mktemp("project")
    rows: list[dict[str, Any]] = []
    for number in range(60):
        label, split = number % 2, "train" if number < 32 else "valid" if number < 46 else "test"
        row = {"sample_id": f"s{number:03d}", "group_id": f"g{number}", "split": split, "label": float(label)}
        rows.append({**row, "txt_text": text(label, number)})
    info = DatasetInfo(name="toy", label=BINARY, modalities=(NOTE,))
    dropped = pd.DataFrame({"source_id": [], "step": [], "reason": []})
    table = SamplesTable.write(root / "samples", info, pd.DataFrame(rows), dropped)
    torch.manual_seed(0)
    save_encoder(build_encoder(TEXT, NOTE, lambda: [text(k % 2, k) for k in range(6)]), root / "start", {})
    return table, TEXT.model_copy(update={"weights": str(root / "start")})


def fit(project: Any, out: Path, **changes: Any) -> dict[str, Any]:
    table, settings = project
    return fit_encoder(table, "txt", settings, FIT.model_copy(update=changes), out, seed=0)


def moved(project: Any, out: Path) -> set[str]:
    """Names of the encoder's weights that differ from those it started with."""
    before, after = load_encoder(Path(project[1].weights)).state_dict(), load_encoder(out).state_dict()
    assert before.keys() == after.keys()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


@pytest.mark.parametrize("head", ["linear", "attention"])
def test_a_probe_learns_on_an_encoder_that_stays_bit_identical(project: Any, tmp_path: Path, head: str) -> None:
    metrics = fit(project, tmp_path, head=head, blocks=0, max_epochs=8, patience_epochs=8, head_learning_rate=0.1)
    assert moved(project, tmp_path) == set()
    assert metrics["test"]["auroc"] > 0.9
    assert not (tmp_path / "frozen").exists()
    saved = {name.split(".")[0] for name in load_file(tmp_path / "head.safetensors")}
    assert saved == {"norm", "head"} | ({"pooling"} if head == "attention" else set())


def test_the_last_block_alone_is_trained(project: Any, tmp_path: Path) -> None:
    fit(project, tmp_path, blocks=1, layer_decay=0.5)
    names = moved(project, tmp_path)
    assert names
    assert all(name.startswith("bert.encoder.layer.1.") for name in names)


def test_adapters_are_merged_into_the_saved_encoder(project: Any, tmp_path: Path) -> None:
    metrics = fit(project, tmp_path, lora=LORA, precision="bfloat16", checkpointing=True, micro_batches=3)
    names = moved(project, tmp_path)
    assert {name.split("layer.")[1][0] for name in names} == {"0", "1"}
    assert all("attention" in name and name.endswith("weight") for name in names)
    table, encoder = project[0], load_encoder(tmp_path)
    model = UnimodalModel(encoder, BINARY, "linear").eval()
    model.load_state_dict({**model.state_dict(), **load_file(tmp_path / "head.safetensors")})
    bank = InputBank.load(table, "test", {"txt": encoder})
    assert fitting._score(model, bank) == metrics["test"]  # what is reported is what is saved
    again = fit(project, tmp_path, lora=LORA, precision="bfloat16", checkpointing=True, micro_batches=3)
    assert again == metrics


@pytest.mark.parametrize("validation", [1, 3])
def test_a_fit_with_adapters_that_is_killed_in_either_phase_ends_the_same(
    project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validation: int
) -> None:
    choices = {"lora": LORA, "frozen_epochs": 2, "warmup_steps": 3, "micro_batches": 2, "layer_decay": 0.8}
    whole = fit(project, tmp_path / "whole", **choices)
    score, calls = fitting._score, [0]

    def interrupted(*arguments: Any, **options: Any) -> dict[str, float]:
        calls[0] += 1
        if calls[0] == validation + 1:
            raise KeyboardInterrupt
        return score(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(fitting, "_score", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit(project, tmp_path / "cut", **choices)
    assert (tmp_path / "cut" / STATE).exists() == (validation == 3)
    torch.rand(3)
    assert fit(project, tmp_path / "cut", **choices) == whole
    one, two = (load_encoder(tmp_path / name).state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_an_encoder_from_scratch_is_trained_whole(project: Any, tmp_path: Path) -> None:
    """`blocks: 0` and adapters are for weights that know something."""
    scratch = (project[0], TEXT)
    fit(scratch, tmp_path / "plain")
    fit(scratch, tmp_path / "choices", lora=LORA, blocks=1, layer_decay=0.5, frozen_epochs=0)
    one, two = (load_encoder(tmp_path / name).state_dict() for name in ("plain", "choices"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_parts_of_a_batch_have_the_gradient_of_the_batch(small: Any) -> None:
    items = small.items(7)
    labels = torch.tensor([1.0, 0.0, float("nan"), float("nan"), 1.0, 0.0, 1.0])
    bank = InputBank({"own": small.encoder()}, {"own": list(items)}, labels, tuple("abcdefg"))
    model = UnimodalModel(bank.encoders["own"], BINARY, "attention").train()
    found: list[dict[str, Tensor]] = []
    for count in (1, 3):
        model.zero_grad(set_to_none=True)
        for part in bank.batch(torch.arange(7)).parts(count):
            assert part.batch.labels is not None
            (task_loss(model(part.batch.inputs["own"]), part.batch.labels, BINARY) * part.label_weight).backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    for name, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][name], atol=1e-6), name


def test_attention_pooling_starts_as_a_mean_and_ignores_padding() -> None:
    torch.manual_seed(0)
    pooling = AttentionPooling(6)
    tokens, valid = torch.randn(3, 4, 6), torch.tensor([[True] * 4, [True, True, False, False], [False] * 4])
    mean = pooling.value(tokens[1, :2]).mean(0)
    assert torch.allclose(pooling(tokens, valid)[1], mean, atol=1e-6)
    with torch.no_grad():
        pooling.query.normal_(std=5)
    changed = torch.where(valid[:, :, None], tokens, torch.full_like(tokens, 1e3))
    assert torch.equal(pooling(tokens, valid), pooling(changed, valid))
    assert not torch.allclose(pooling(tokens, valid)[1], mean, atol=1e-3)
    assert np.array_equal(pooling(tokens, valid)[2].detach(), np.zeros(6))
    pooling(tokens, valid).sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in pooling.parameters() if p.grad is not None)


def test_float16_without_a_cuda_device_is_one_error_before_anything_is_read(project: Any, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("needs a machine without CUDA")
    with pytest.raises(UserError, match="float16 needs a CUDA device"):
        fit(project, tmp_path, precision="float16")
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
@pytest.mark.parametrize("lora", [None, LORA])
def test_float16_trains_on_a_gpu(project: Any, tmp_path: Path, lora: LoraSettings | None) -> None:
    metrics = fit(project, tmp_path, precision="float16", lora=lora, checkpointing=True, micro_batches=2)
    assert metrics["test"]["auroc"] > 0.9
    assert all(bool(torch.isfinite(value).all()) for value in load_encoder(tmp_path).state_dict().values())


def test_adapters_without_a_trained_block_are_refused() -> None:
    with pytest.raises(ValueError, match="lora puts adapters into trained blocks"):
        TuningSettings.model_validate(
            {**{name: getattr(FIT, name) for name in TuningSettings.model_fields}, "blocks": 0, "lora": LORA}
        )
