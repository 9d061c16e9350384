"""Unimodal fit: it learns a planted signal, resumes, returns at once when finished, refuses an empty split."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import extract.fit as fitting
from cache.errors import UserError
from extract.config import FitSettings, TextSettings, TimeSeriesSettings
from extract.encoders.registry import load_encoder
from extract.fit import fit_encoder
from extract.samples import DatasetInfo, ModalitySpec, SamplesTable
from extract.task import LabelSpec
from extract.training import STATE

SMALL = {"width": 8, "layers": 1, "heads": 2, "dropout": 0.0}
SERIES = TimeSeriesSettings(type="timeseries", bins_per_token=2, max_bins=6, drop_cells=0.0, **SMALL)
TEXT = TextSettings(type="bert", weights="scratch", revision=None, max_tokens=8, vocabulary=40, **SMALL)
FIT = FitSettings(
    batch_size=16,
    head="linear",
    frozen_epochs=1,
    max_epochs=4,
    patience_epochs=4,
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


def table(root: Path, drop_valid: bool = False) -> SamplesTable:
    draw = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for number in range(120):
        label, split = number % 2, "train" if number < 64 else "valid" if number < 92 else "test"
        series = draw.normal(size=(6, 2)) + (2 * label - 1) * np.array([1.0, 0.0])
        series[draw.random((6, 2)) < 0.2] = np.nan
        absent = number % 7 == 0 or (drop_valid and split == "valid")
        rows.append(
            {
                "sample_id": f"s{number:03d}",
                "group_id": f"g{number}",
                "split": split,
                "label": float(label),
                "ehr_array": None if absent else series.astype(np.float32).ravel(),
                "ehr_shape": None if absent else [6, 2],
                "txt_text": "fever and cough" if label else "well and stable",
            }
        )
    info = DatasetInfo(
        name="toy",
        label=LabelSpec(kind="binary", names=("label",)),
        modalities=(
            ModalitySpec(name="ehr", kind="timeseries", column="ehr_array", channels=("a", "b")),
            ModalitySpec(name="txt", kind="text", column="txt_text"),
        ),
    )
    dropped = pd.DataFrame({"source_id": [], "step": [], "reason": []})
    return SamplesTable.write(root, info, pd.DataFrame(rows), dropped)


def test_fit_learns_a_planted_signal_and_leaves_out_samples_without_the_modality(tmp_path: Path) -> None:
    data, out = table(tmp_path / "samples"), tmp_path / "ehr"
    metrics = fit_encoder(data, "ehr", SERIES, FIT, out, seed=0)
    assert metrics["test"]["auroc"] > 0.9
    assert metrics["samples"] == {s: int(data.observed(s)[:, 0].sum()) for s in ("train", "valid", "test")}
    assert load_encoder(out).width == 8
    assert set(load_file(out / "head.safetensors")) == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    stated = load_encoder(out).state_dict()
    assert stated["mean"].abs().sum() > 0  # statistics of the training split travel with the weights
    assert not (out / "frozen").exists()  # from scratch, everything is trained at once


def test_a_finished_fit_returns_at_once_and_other_settings_fit_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = table(tmp_path / "samples"), tmp_path / "txt"
    first = fit_encoder(data, "txt", TEXT, FIT, out, seed=0)
    with monkeypatch.context() as patched:
        patched.setattr(fitting, "run_epochs", lambda *a, **k: pytest.fail("fitted again"))
        assert fit_encoder(data, "txt", TEXT, FIT, out, seed=0) == first
        with pytest.raises(pytest.fail.Exception):
            fit_encoder(data, "txt", TEXT, FIT, out, seed=1)


def test_an_interrupted_fit_ends_with_the_same_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = table(tmp_path / "samples")
    whole = fit_encoder(data, "ehr", SERIES, FIT, tmp_path / "whole", seed=0)
    score, calls = fitting._score, [0]

    def interrupted(*arguments: Any, **options: Any) -> dict[str, float]:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return score(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(fitting, "_score", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit_encoder(data, "ehr", SERIES, FIT, tmp_path / "cut", seed=0)
    assert len(torch.load(tmp_path / "cut" / STATE, weights_only=True)["history"]) == 2
    assert fit_encoder(data, "ehr", SERIES, FIT, tmp_path / "cut", seed=0) == whole
    one, two = (load_encoder(tmp_path / name).state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_killed_write_never_vouches_for_other_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = table(tmp_path / "samples"), tmp_path / "ehr"
    first = fit_encoder(data, "ehr", SERIES, FIT, out, seed=0)

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(fitting, "save_encoder", killed)
        with pytest.raises(KeyboardInterrupt):
            fit_encoder(data, "ehr", SERIES, FIT.model_copy(update={"learning_rate": 0.001}), out, seed=0)
    with pytest.raises(UserError, match="selfmask fit"):
        load_encoder(out)
    assert fit_encoder(data, "ehr", SERIES, FIT, out, seed=0) == first


def test_pretrained_weights_train_the_head_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path / "weights"
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "fever", "and", "cough", "well", "stable"]
    (folder / "vocab.txt").write_text("\n".join(words))
    config = BertConfig(vocab_size=10, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    BertTokenizer.from_pretrained(str(folder)).save_pretrained(folder)
    phases: list[tuple[int, bool]] = []
    run = fitting.run_epochs

    def watched(module: Any, optimizer: Any, **options: Any) -> Any:
        trainable = next(module.encoder.parameters()).requires_grad
        phases.append((options["settings"].max_epochs, trainable))
        return run(module, optimizer, **options)

    monkeypatch.setattr(fitting, "run_epochs", watched)
    settings = TEXT.model_copy(update={"weights": str(folder)})
    metrics = fit_encoder(table(tmp_path / "samples"), "txt", settings, FIT, tmp_path / "txt", seed=0)
    assert phases == [(1, False), (4, True)]
    assert metrics["test"]["auroc"] > 0.9


def test_a_split_without_the_modality_is_refused(tmp_path: Path) -> None:
    data = table(tmp_path / "samples", drop_valid=True)
    with pytest.raises(UserError, match=r"valid split has no readable value of 'ehr'"):
        fit_encoder(data, "ehr", SERIES, FIT, tmp_path / "ehr", seed=0)
