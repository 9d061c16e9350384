"""The joint stage from a samples table to a checkpoint that predicts: adapters merged, resumable, nothing half."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

import train.joint as stage
from cache.errors import UserError
from extract.config import ImageSettings, LoraSettings, TextSettings, TimeSeriesSettings
from extract.encoders.registry import build_encoder, load_encoder, save_encoder
from extract.samples import DatasetInfo, ModalitySpec, SamplesTable
from extract.training import STATE
from train.checkpoint import load_checkpoint, save_checkpoint
from train.config import JointSettings
from train.encoded import encoded_bank
from train.joint import finetune
from train.methods.base import ModelSpec
from train.methods.registry import build_method
from train.predict import predict

ROOT = Path(__file__).parents[2]
SIZE = {"width": 16, "layers": 2, "heads": 2, "dropout": 0.1}
ENCODERS: dict[str, Any] = {
    "ehr": TimeSeriesSettings(type="timeseries", bins_per_token=2, max_bins=12, drop_cells=0.2, **SIZE),
    "cxr": ImageSettings(type="vit", weights="scratch", image_size=8, patch_size=4, channels=1, augment=None, **SIZE),
    "txt": TextSettings(type="bert", weights="scratch", revision=None, max_tokens=8, vocabulary=40, **SIZE),
}
MODALITIES = (
    ModalitySpec(name="ehr", kind="timeseries", column="ehr_array", channels=("hr", "bp")),
    ModalitySpec(name="cxr", kind="image", column="cxr_path"),
    ModalitySpec(name="txt", kind="text", column="txt_text"),
)
JOINT = JointSettings(
    **{**yaml.safe_load((ROOT / "params.yaml").read_text())["joint"], "batch_size": 8, "learning_rate": 0.01}
)
LORA = JOINT.model_copy(
    update={
        "lora": LoraSettings(rank=2, alpha=8, dropout=0.1),
        "encoder_learning_rate": 0.01,
        "layer_decay": 0.7,
        "warmup_steps": 3,
        "precision": "bfloat16",
        "micro_batches": 2,
        "checkpointing": True,
    }
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, settings: Any, binary: Any) -> dict[str, Any]:
    root, draw = tmp_path_factory.mktemp("joint"), np.random.default_rng(0)
    (root / "samples").mkdir()
    rows = []
    for number in range(36):
        label = number % 2
        Image.fromarray(draw.integers(0, 255, (8, 8), dtype=np.uint8)).save(root / "samples" / f"{number}.png")
        rows.append(
            {
                "sample_id": f"s{number:02d}",
                "group_id": f"g{number}",
                "split": ("train", "valid", "test")[number // 2 % 3],
                "label": float(label),
                "ehr_array": (draw.normal(size=12) + label).astype(np.float32) if number % 5 else None,
                "ehr_shape": [6, 2] if number % 5 else None,
                "cxr_path": f"{number}.png" if number % 4 else None,
                "txt_text": "fever and cough" if label else "well and stable",
            }
        )
    info = DatasetInfo(name="toy", label=binary, modalities=MODALITIES)
    dropped = pd.DataFrame({"source_id": [], "step": [], "reason": []})
    table = SamplesTable.write(root / "samples", info, pd.DataFrame(rows), dropped)
    torch.manual_seed(0)
    for modality in MODALITIES:
        words = ["fever and cough", "well and stable"]
        encoder = build_encoder(ENCODERS[modality.name], modality, lambda words=words: words)
        save_encoder(encoder, root / "encoders" / modality.name, {})
    lengths = {"ehr": 3, "cxr": 4, "txt": 5}
    spec = ModelSpec(
        modalities=tuple(lengths),
        widths=dict.fromkeys(lengths, 16),
        missing_lengths=lengths,
        max_lengths=dict.fromkeys(lengths, 8),
        label=binary,
    )
    config = {
        "method": "selfmask",
        "spec": spec.model_dump(mode="json"),
        "model": settings.model_settings.model_dump(mode="json"),
        "options": settings.selfmask.model_dump(mode="json"),
        "modalities": [m.model_dump(mode="json") for m in MODALITIES],
    }
    method = build_method("selfmask", spec, settings.model_settings, settings.selfmask)
    save_checkpoint(root / "selfmask", method, config)
    return {"root": root, "table": table, "folders": {m: root / "encoders" / m for m in lengths}}


def run(project: dict[str, Any], settings: Any, joint: JointSettings, out: Path) -> dict[str, Any]:
    checkpoint = project["root"] / "selfmask"
    return finetune(project["table"], project["folders"], checkpoint, joint, settings.train_settings, 0, out)


def weights(out: Path) -> dict[str, torch.Tensor]:
    found = {f"method.{name}": value for name, value in load_checkpoint(out)[0].state_dict().items()}
    for modality in ENCODERS:
        state = load_encoder(out / "encoders" / modality).state_dict()
        found |= {f"{modality}.{name}": value for name, value in state.items()}
    return found


def start(project: dict[str, Any]) -> dict[str, torch.Tensor]:
    states = {m: load_encoder(folder).state_dict() for m, folder in project["folders"].items()}
    return {f"{m}.{name}": value for m, state in states.items() for name, value in state.items()}


def test_adapters_are_merged_and_the_result_evaluates_and_predicts(
    project: dict[str, Any], settings: Any, tmp_path: Path
) -> None:
    config = run(project, settings, LORA.model_copy(update={"blocks": 1}), tmp_path)
    assert config["stage"] == "joint"
    before, after = start(project), weights(tmp_path)
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert {f"{m}.placeholder" for m in ENCODERS} <= moved
    inner = {name for name in moved if not name.endswith("placeholder")}
    assert {name.split(".")[0] for name in inner} == set(ENCODERS)
    assert all(("attn" in name or "attention" in name) and ".1." in name for name in inner)
    bank = encoded_bank(tmp_path, project["table"], batch_size=8)
    assert len(bank) == len(project["table"].ids("test"))
    predictions = predict(tmp_path, project["root"] / "samples")
    assert len(predictions) == 36
    assert predictions["p_death"].between(0, 1).all()


def test_a_killed_run_with_adapters_ends_with_the_same_weights(
    project: dict[str, Any], settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(project, settings, LORA, tmp_path / "whole")
    validate, calls = stage.selection_metrics, [0]

    def interrupted(*arguments: Any, **options: Any) -> dict[str, float]:
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        return validate(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(stage, "selection_metrics", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(project, settings, LORA, tmp_path / "cut")
    assert len(torch.load(tmp_path / "cut" / STATE, weights_only=True)["history"]) == 1
    assert not (tmp_path / "cut" / "config.json").exists()
    run(project, settings, LORA, tmp_path / "cut")
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_finished_run_returns_at_once_and_other_settings_run_again(
    project: dict[str, Any], settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = JOINT.model_copy(update={"max_epochs": 1, "blocks": 0})
    first = run(project, settings, short, tmp_path)
    monkeypatch.setattr(stage, "run_epochs", lambda *a, **k: pytest.fail("trained again"))
    assert run(project, settings, short, tmp_path)["validation"] == first["validation"]
    with pytest.raises(pytest.fail.Exception):
        run(project, settings, short.model_copy(update={"learning_rate": 0.5}), tmp_path)
    (tmp_path / "encoders" / "txt" / "model.safetensors").unlink()
    with pytest.raises(pytest.fail.Exception):
        run(project, settings, short, tmp_path)


def test_a_killed_write_leaves_no_checkpoint_that_vouches_for_other_encoders(
    project: dict[str, Any], settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = JOINT.model_copy(update={"max_epochs": 1})
    run(project, settings, short, tmp_path)

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(stage, "save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            run(project, settings, short.model_copy(update={"learning_rate": 0.001}), tmp_path)
    with pytest.raises(UserError, match=r"config.json does not exist"):
        load_checkpoint(tmp_path)


def test_no_block_trains_the_placeholders_and_the_model_alone(
    project: dict[str, Any], settings: Any, tmp_path: Path
) -> None:
    run(project, settings, JOINT.model_copy(update={"blocks": 0, "max_epochs": 1}), tmp_path)
    before, after = start(project), weights(tmp_path)
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved == {f"{m}.placeholder" for m in ENCODERS}


def test_what_is_not_there_is_named(project: dict[str, Any], settings: Any, tmp_path: Path) -> None:
    arguments = (JOINT, settings.train_settings, 0, tmp_path)
    with pytest.raises(UserError, match=r"nowhere.*selfmask train"):
        finetune(project["table"], project["folders"], tmp_path / "nowhere", *arguments)
    folders = {m: folder for m, folder in project["folders"].items() if m != "txt"}
    with pytest.raises(UserError, match=r"No encoder folder for \['txt'\]"):
        finetune(project["table"], folders, project["root"] / "selfmask", *arguments)


def test_float16_without_a_cuda_device_is_one_error_before_anything_is_read(
    project: dict[str, Any], settings: Any, tmp_path: Path
) -> None:
    if torch.cuda.is_available():
        pytest.skip("needs a machine without CUDA")
    with pytest.raises(UserError, match="float16 needs a CUDA device"):
        run(project, settings, JOINT.model_copy(update={"precision": "float16"}), tmp_path)
