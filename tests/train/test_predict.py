"""Prediction of raw samples: any subset, invariant to batches and to what is missing; clear errors."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from cache.errors import UserError
from extract.config import ImageSettings, TextSettings, TimeSeriesSettings
from extract.encoders.registry import build_encoder, save_encoder
from extract.samples import DatasetInfo, ModalitySpec, SamplesTable
from train import predict as predict_module
from train.checkpoint import load_checkpoint, save_checkpoint
from train.methods.base import ModelSpec
from train.predict import predict

MODALITIES = (
    ModalitySpec(name="ehr", kind="timeseries", column="ehr_array", channels=("hr", "bp"), bin_hours=1.0),
    ModalitySpec(name="cxr", kind="image", column="cxr_path"),
    ModalitySpec(name="txt", kind="text", column="txt_text"),
)
PARAMS = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text())["encoders"]
WORDS = ["chest clear no fluid", "large effusion on the left side", "stable", "no change " * 8]


def rows(folder, n=9):
    """Every non-empty subset of modalities, an empty row and an unreadable image; values of unequal length."""
    rng, result = np.random.default_rng(0), []
    for i in range(n):
        code = i + 1 if i < 7 else 0
        length = int(rng.integers(3, 20))
        (folder / "images").mkdir(exist_ok=True)
        path = folder / "images" / f"{i}.png"
        Image.fromarray(rng.integers(0, 255, (32, 32), dtype=np.uint8)).save(path)
        if i == 8:
            path.write_bytes(b"not an image")
        values = rng.normal(size=length * 2).round(3).tolist()
        result.append(
            {
                "sample_id": f"00{i}",
                "ehr_array": values if code & 1 else None,
                "ehr_shape": [length, 2] if code & 1 else None,
                "cxr_path": f"images/{i}.png" if code & 2 or i == 8 else None,
                "txt_text": WORDS[i % 4] if code & 4 else None,
            }
        )
    return pd.DataFrame(result)


@pytest.fixture(scope="module")
def project(tmp_path_factory, make_selfmask, binary):
    root = tmp_path_factory.mktemp("project")
    torch.manual_seed(0)
    kinds = {"ehr": TimeSeriesSettings, "cxr": ImageSettings, "txt": TextSettings}
    names = {"ehr": "series_tiny", "cxr": "image_tiny", "txt": "text_tiny"}
    for modality in MODALITIES:
        chosen = kinds[modality.name].model_validate(PARAMS[names[modality.name]])
        encoder = build_encoder(chosen, modality, lambda: WORDS)
        save_encoder(encoder, root / "encoders" / modality.name, {})
    lengths = {"ehr": 4, "cxr": 16, "txt": 6}
    widths = dict.fromkeys(lengths, 32)
    spec = ModelSpec(
        modalities=tuple(lengths), widths=widths, missing_lengths=lengths, max_lengths=lengths, label=binary
    )
    method, config = make_selfmask(spec)
    config["encoders"] = {m: f"encoders/{m}" for m in lengths}
    config["modalities"] = [m.model_dump(mode="json") for m in MODALITIES]
    save_checkpoint(root / "model", method, config)
    rows(root).to_parquet(root / "rows.parquet")
    return root


def run(project, source="rows.parquet", **options):
    path = source if isinstance(source, SamplesTable) else project / source
    return predict(project / "model", path, root=project, **options)


def test_any_subset_and_reasons(project):
    result = run(project)
    assert list(result.columns) == ["sample_id", "observed", "p_death", "reason"]
    assert list(result["sample_id"]) == [f"00{i}" for i in range(9)]
    expected = ["ehr", "cxr", "ehr+cxr", "txt", "ehr+txt", "cxr+txt", "ehr+cxr+txt", "", ""]
    assert list(result["observed"]) == expected
    assert result["p_death"][:7].between(0, 1).all()
    assert result["p_death"][:7].nunique() == 7
    assert result["p_death"][7:].isna().all()
    assert (result["reason"][:7] == "").all()
    assert result["reason"][7] == "no modality observed"
    assert "cxr: image cannot be decoded" in result["reason"][8]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batch_size_does_not_matter(project, batch_size):
    pd.testing.assert_frame_equal(run(project, batch_size=batch_size), run(project), atol=1e-5, rtol=0)


def test_content_and_length_of_what_is_missing_do_not_matter(project):
    frame = pd.read_parquet(project / "rows.parquet").iloc[:7]
    complete = frame.iloc[6]
    alone = frame.copy()
    for column in ("ehr_array", "ehr_shape", "txt_text"):
        alone[column] = None
    alone["cxr_path"] = complete["cxr_path"]  # equal rows beside each other and beside rows of other lengths
    alone.to_parquet(project / "alone.parquet")
    base = run(project, "alone.parquet")["p_death"]
    mixed = pd.concat([alone.iloc[:1], frame.iloc[1:]])
    mixed.to_parquet(project / "mixed.parquet")
    assert run(project, "mixed.parquet")["p_death"][0] == pytest.approx(base[0], abs=1e-5)
    assert base.max() - base.min() < 1e-5


def test_csv_equals_parquet(project):
    frame = rows(project)
    for column in ("ehr_array", "ehr_shape"):
        frame[column] = [None if cell is None else json.dumps(cell) for cell in frame[column]]
    frame.to_csv(project / "rows.csv", index=False)
    pd.testing.assert_frame_equal(run(project, "rows.csv"), run(project), atol=1e-6, rtol=0)


def test_samples_table_and_missing_column(project, binary):
    frame = rows(project).iloc[:7].assign(split="test")
    table = SamplesTable(project, DatasetInfo(name="x", label=binary, modalities=MODALITIES), frame)
    pd.testing.assert_frame_equal(run(project, table), run(project).iloc[:7], atol=1e-6, rtol=0)
    frame.loc[3:3, ["sample_id", "txt_text"]].to_csv(project / "text.csv", index=False)
    assert run(project, "text.csv")["p_death"][0] == pytest.approx(run(project)["p_death"][3], abs=1e-5)


def test_encoders_given_take_the_place_of_the_named(project, tmp_path):
    with pytest.raises(UserError, match="fit"):
        predict(project / "model", project / "rows.parquet", root=tmp_path)
    given = {m.name: project / "encoders" / m.name for m in MODALITIES}
    result = predict(project / "model", project / "rows.parquet", given, root=tmp_path)
    pd.testing.assert_frame_equal(result, run(project))
    with pytest.raises(UserError, match="audio"):
        run(project, encoders={"audio": project / "encoders" / "ehr"})


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pd.DataFrame({"id": ["a"], "txt_text": ["x"]}), "sample_id"),
        (pd.DataFrame({"sample_id": ["a", "a"], "txt_text": ["x", "y"]}), "repeat"),
        (pd.DataFrame({"sample_id": ["a"], "note": ["x"]}), "no column of any modality"),
        (pd.DataFrame({"sample_id": ["a"], "ehr_array": ["[1, 2"], "ehr_shape": ["[1, 2]"]}), "JSON"),
        (pd.DataFrame({"sample_id": ["a"], "ehr_array": ["[1, 2]"]}), "no ehr_shape"),
        (pd.DataFrame({"sample_id": [], "txt_text": []}), "no rows"),
    ],
)
def test_bad_files(project, tmp_path, frame, message):
    frame.to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(UserError, match=message):
        predict(project / "model", tmp_path / "bad.csv", root=project)


def test_a_path_that_leaves_the_folder_is_a_reason(project):
    pd.DataFrame({"sample_id": ["a"], "cxr_path": ["../../etc/passwd"]}).to_csv(project / "out.csv", index=False)
    result = run(project, "out.csv")
    assert result["p_death"].isna().all()
    assert "leaves" in result["reason"][0]


def test_several_models_are_averaged_and_share_their_encoders(project, make_selfmask, monkeypatch):
    method, config = load_checkpoint(project / "model")
    torch.manual_seed(1)
    other, _ = make_selfmask(method.spec)
    save_checkpoint(project / "other", other, config)
    both, loads = [project / "model", project / "other"], []
    own = predict_module.load_encoder
    monkeypatch.setattr(predict_module, "load_encoder", lambda folder: (loads.append(folder), own(folder))[1])
    result = predict(both, project / "rows.parquet", root=project)
    assert len(loads) == len(MODALITIES)
    alone = [predict(folder, project / "rows.parquet", root=project) for folder in both]
    assert (alone[0]["p_death"] - alone[1]["p_death"]).abs().max() > 1e-4
    expected = (alone[0]["p_death"] + alone[1]["p_death"]) / 2
    np.testing.assert_allclose(result["p_death"], expected, atol=1e-6)
    pd.testing.assert_frame_equal(result.drop(columns="p_death"), alone[0].drop(columns="p_death"))


def test_models_of_other_labels_are_not_averaged(project, make_selfmask):
    method, config = load_checkpoint(project / "model")
    label = method.spec.label.model_copy(update={"names": ("readmission",)})
    other, own = make_selfmask(method.spec.model_copy(update={"label": label}))
    save_checkpoint(project / "readmission", other, {**config, **own})
    with pytest.raises(UserError, match="must have the same"):
        predict([project / "model", project / "readmission"], project / "rows.parquet", root=project)
    with pytest.raises(UserError, match="No model"):
        predict([], project / "rows.parquet", root=project)
