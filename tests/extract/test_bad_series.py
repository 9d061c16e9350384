"""Odd and damaged series: an unobserved cell is NaN, everything else that is no number has a reason."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from extract.config import TimeSeriesSettings
from extract.encoders.timeseries import TimeSeriesEncoder
from extract.values import TimeSeries, UnreadableValue

Read = Callable[[str, str], Any]
SIZES = {"width": 8, "layers": 1, "heads": 2, "dropout": 0.0, "bins_per_token": 2, "max_bins": 6, "drop_cells": 0.0}
NAN = np.nan


@pytest.fixture
def encoder() -> TimeSeriesEncoder:
    made = TimeSeriesEncoder(TimeSeriesSettings.model_validate({"type": "timeseries", **SIZES}), ("hr", "bp"))
    train = np.array([[60, NAN], [80, NAN], [100, NAN]], np.float32)  # bp is never observed in training
    made.fit_statistics([made.preprocess(TimeSeries(train))])
    return made


@pytest.mark.parametrize(
    ("values", "tokens", "maskable"),
    [
        ([[70, NAN]], 1, [True]),
        ([[NAN, NAN], [NAN, NAN], [NAN, 5]], 2, [False, True]),
        ([[NAN, NAN]] * 5 + [[90, NAN]], 3, [False, False, True]),
        ([[1e38, -1e38]], 1, [True]),
        ([[70, 3]] * 100, 3, [True, True, True]),  # longer than max_bins
    ],
)
def test_cells_that_were_not_observed_leave_finite_tokens(
    values: list[list[float]],
    tokens: int,
    maskable: list[bool],
    encoder: TimeSeriesEncoder,
    tokens_of: Callable[..., np.ndarray],
) -> None:
    series = TimeSeries(np.array(values, np.float32))
    assert len(tokens_of(encoder, series)) == tokens
    embedded = encoder.embed(encoder.collate([encoder.preprocess(series)]))
    assert embedded.maskable[0].tolist() == maskable


def test_an_unobserved_cell_is_not_a_zero(encoder: TimeSeriesEncoder, tokens_of: Callable[..., np.ndarray]) -> None:
    hidden, zero, mean = ([[80, NAN]], [[80, 0]], [[NAN, 1]])
    tokens = [tokens_of(encoder, TimeSeries(np.array(v, np.float32))) for v in (hidden, zero, mean)]
    assert not np.allclose(tokens[0], tokens[1], atol=1e-4)
    assert not np.allclose(tokens[1], tokens[2], atol=1e-4)


FILES = {
    "all missing": (np.full((4, 2), NAN), "no observed cell"),
    "infinite": (np.array([[1.0, np.inf]]), "infinite"),
    "beyond float32": (np.array([[1.0, 1e300]]), "infinite"),
    "no bins": (np.zeros((0, 2)), "not a non-empty"),
    "no channels": (np.zeros((3, 0)), "not a non-empty"),
    "flat": (np.ones(4), "not a non-empty"),
    "cube": (np.ones((2, 2, 2)), "not a non-empty"),
    "words": (np.array([["a", "b"]]), "not numbers"),
    "dates": (np.array([["2026-01-01", "NaT"]], "datetime64[D]"), "not numbers"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.filterwarnings("error")
def test_files_that_hold_no_series(name: str, tmp_path: Path, read_file: Read) -> None:
    values, reason = FILES[name]
    np.savez(tmp_path / "a.npz", values=values)
    with pytest.raises(UnreadableValue, match=reason):
        read_file("timeseries", "a.npz")


@pytest.mark.parametrize("dtype", ["int64", "bool", "float16", ">f8", "uint8"])
def test_every_numeric_type_is_read_as_float32(dtype: str, tmp_path: Path, read_file: Read) -> None:
    np.savez(tmp_path / "a.npz", values=np.array([[1, 0], [0, 1]]).astype(dtype))
    values = read_file("timeseries", "a.npz").values
    assert values.dtype == np.float32
    assert values.tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00"])
@pytest.mark.parametrize("name", ["a.npz", "a.npy", "a.h5"])
def test_empty_and_torn_files_have_a_reason(content: bytes, name: str, tmp_path: Path, read_file: Read) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnreadableValue, match="cannot be read"):
        read_file("timeseries", name)


def test_values_outside_the_window_do_not_make_a_series(encoder: TimeSeriesEncoder) -> None:
    values = np.full((7, 2), NAN, np.float32)
    values[0, 0] = 70  # max_bins keeps the last six
    with pytest.raises(UnreadableValue, match="no observed cell in the window"):
        encoder.preprocess(TimeSeries(values))
    with pytest.raises(UnreadableValue, match="3 channels, the encoder 2"):
        encoder.preprocess(TimeSeries(np.ones((2, 3), np.float32)))
