"""Simulated corpora that several test files prepare."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.simulate.sentiment import Layout, simulate_sentiment

SENTIMENT_OPTIONS: dict[str, Any] = {
    "task": "regression",
    "binary": "exclude_zero",
    "out_of_range": "clip",
    "folds": "folds.json",
    "unlisted": "drop",
    "modalities": ["text"],
    "audio_hz": 16000,
    "video_frames_per_second": 5,
    "video_pixels": 112,
    "video_quantiser": 3,
    "feature_bins_per_second": 10,
    "match_seconds": 0.6,
    "match_overlap": 0.5,
    "workers": 2,
}


@pytest.fixture(scope="session")
def sentiment_options() -> dict[str, Any]:
    """Options of CMU-MOSEI that need text alone."""
    return SENTIMENT_OPTIONS


@pytest.fixture(scope="session")
def sentiment_raw(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function that gives the simulated corpus of a layout; tests must not change it."""
    done: dict[str, Path] = {}

    def simulated(layout: Layout) -> Path:
        if layout not in done:
            done[layout] = tmp_path_factory.mktemp(layout) / "raw"
            simulate_sentiment(done[layout], layout, videos=5, seed=0)
        return done[layout]

    return simulated


@pytest.fixture(scope="module")
def no_flush() -> Iterator[None]:
    """For hundreds of small files whose durability is not what is tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield
