"""Batches of an extraction: within their limits, prepared by other processes, halved when memory is short."""

import os
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from cache.errors import UserError
from cache.store import TokenStore
from extract import encoding
from extract.config import ExtractSettings, TimeSeriesSettings
from extract.encoders.registry import save_encoder
from extract.encoders.timeseries import TimeSeriesEncoder
from extract.encoding import MemoryLimit, batches, encode_items
from extract.extraction import extract_modality
from extract.precision import require_precision
from extract.samples import DatasetInfo, ModalitySpec, SamplesTable
from extract.task import LabelSpec
from extract.values import TimeSeries

SETTINGS = ExtractSettings(
    batch_size=4,
    batch_tokens=12,
    workers=0,
    compile=False,
    dtype="float32",
    compression="none",
    precision="float32",
    sorted_batches=3,
    part_megabytes=1,
    part_minutes=15,
)
ENCODER = TimeSeriesSettings(
    type="timeseries", width=8, layers=1, heads=2, dropout=0.0, bins_per_token=2, max_bins=48, drop_cells=0.0
)


def encoder() -> TimeSeriesEncoder:
    torch.manual_seed(0)
    return TimeSeriesEncoder(ENCODER, ("a", "b")).eval()


def items(lengths: list[int]) -> list[encoding.Item]:
    rng = np.random.default_rng(0)
    return [(f"s{i}", "d", {"values": rng.normal(size=(n, 2)).astype(np.float32)}) for i, n in enumerate(lengths)]


@pytest.fixture
def project(tmp_path: Path) -> Callable[..., Any]:
    """A table of series, of which one is unreadable, its encoder, and a function that extracts."""
    rng = np.random.default_rng(1)
    rows = []
    for i in range(40):
        series = rng.normal(size=(int(rng.integers(1, 40)), 2))
        series[:] = np.nan if i == 7 else series
        about = {"sample_id": f"s{i}", "group_id": f"g{i}", "split": ("train", "valid", "test")[i % 3], "label": 0.0}
        rows.append({**about, "x_array": series.ravel().tolist(), "x_shape": list(series.shape)})
    modality = ModalitySpec(name="x", kind="timeseries", column="x_array", channels=("a", "b"))
    info = DatasetInfo(name="toy", label=LabelSpec(kind="regression", names=("label",)), modalities=(modality,))
    none = pd.DataFrame({"source_id": [], "step": [], "reason": []})
    data = SamplesTable.write(tmp_path / "samples", info, pd.DataFrame(rows), none)
    save_encoder(encoder(), tmp_path / "encoder", {})

    def run(out: str, *, retry_failed: bool = False, **changes: Any) -> dict[str, Any]:
        settings = SETTINGS.model_copy(update=changes)
        return extract_modality(data, "x", tmp_path / "encoder", settings, tmp_path / out, retry_failed=retry_failed)

    return run


def test_batches_hold_every_sample_once_within_both_limits() -> None:
    model, given = encoder(), items([9, 1, 40, 3, 3, 8, 2, 2, 2, 2, 2, 30])
    formed = list(batches(model, given, most_samples=4, most_tokens=12))
    assert sorted(item[0] for batch in formed for item in batch) == sorted(item[0] for item in given)
    lengths = [[model.length(item[2]) for item in batch] for batch in formed]
    assert [n for batch in lengths for n in batch] == sorted(n for batch in lengths for n in batch)
    for batch in lengths:
        assert len(batch) <= 4
        assert len(batch) * max(batch) <= 12 or len(batch) == 1
    for one, following in pairwise(lengths):  # no batch could have taken one more
        assert len(one) == 4 or (len(one) + 1) * following[0] > 12


def test_length_is_the_number_of_tokens() -> None:
    model = encoder()
    for item in items([1, 2, 3, 17, 48]):
        embedded = model.embed(model.collate([item[2]]))
        assert int(embedded.valid.sum()) == model.length(item[2])


def test_processes_that_prepare_values_change_no_byte(project: Any, tmp_path: Path) -> None:
    here = project("here.zarr")
    there = project("there.zarr", workers=2)
    assert here == there
    assert here["unreadable"] == 1
    one, two = (TokenStore.open(tmp_path / name) for name in ("here.zarr", "there.zarr"))
    assert one.failures() == two.failures() == {"s7": "series has no observed cell"}
    ids = [i for i in one.view() if i != "s7"]
    for a, b in zip(one.read(ids), two.read(ids), strict=True):
        assert np.array_equal(a.tokens, b.tokens)


def test_a_killed_process_is_one_clear_error_and_the_run_goes_on(
    project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = os.getpid()

    def killed(self: Any, value: Any) -> Any:
        if os.getpid() != first:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"values": value.values}

    with monkeypatch.context() as patched:
        patched.setattr(TimeSeriesEncoder, "preprocess", killed)
        with pytest.raises(UserError, match=r"extract\.workers"):
            project("x.zarr", workers=2)
    assert project("x.zarr", workers=2)["encoded"] == 39


def test_a_batch_beyond_the_memory_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def short_of_memory(model: Any, batch: Any, precision: Any) -> Any:
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("no memory")
        return encode_items(model, batch, precision)

    model, given = encoder(), items([4] * 7)
    expected = encode_items(model, given, "float32")
    monkeypatch.setattr(encoding, "encode_items", short_of_memory)
    limit = MemoryLimit(model, "float32")
    found = limit.encode(given)
    assert sizes == [7, 3, 1, 2, 2, 2]  # four samples are not tried: three were too many
    limit.encode(items([4, 4, 4]))
    limit.encode(items([2, 2, 2]))
    assert sizes[6:] == [1, 2, 3, 1, 2]  # a batch of the size that failed is halved at once, a smaller one is tried
    for one, other in zip(found, expected, strict=True):
        assert one.sample_id == other.sample_id
        assert np.allclose(one.tokens, other.tokens, atol=1e-6)


def test_one_sample_beyond_the_memory_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: Any) -> Any:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(encoding, "encode_items", no_memory)
    with pytest.raises(UserError, match="one sample of 2 tokens"):
        MemoryLimit(encoder(), "float32").encode(items([4, 4]))


def test_failed_samples_are_tried_again_only_when_asked(
    project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert project("x.zarr")["reasons"] == {"series has no observed cell": 1}
    mended = TimeSeries(np.ones((4, 2), np.float32))
    monkeypatch.setattr("extract.engines.preparing.read_value", lambda table, row, modality: mended)
    assert (project("x.zarr")["encoded"], project("x.zarr")["unreadable"]) == (0, 1)
    assert project("x.zarr", retry_failed=True) == {
        "modality": "x",
        "encoded": 1,
        "samples": 40,
        "unreadable": 0,
        "reasons": {},
    }
    assert len(TokenStore.open(tmp_path / "x.zarr").read(["s7"])[0].tokens)


def test_float16_is_for_gpus(project: Any) -> None:
    with pytest.raises(UserError, match="needs a CUDA"):
        project("x.zarr", precision="float16")
    require_precision("bfloat16", "cpu")
    require_precision("float16", "cuda")


@pytest.mark.slow
def test_a_compiled_encoder_gives_its_tokens_under_a_key_of_its_own(project: Any, tmp_path: Path) -> None:
    project("plain.zarr")
    project("compiled.zarr", compile=True)
    one, two = (TokenStore.open(tmp_path / name) for name in ("plain.zarr", "compiled.zarr"))
    assert set(one.key.difference(two.key)) == {"precision"}
    ids = [i for i in one.view() if i != "s7"]
    for a, b in zip(one.read(ids), two.read(ids), strict=True):
        assert np.allclose(a.tokens, b.tokens, atol=1e-5)
