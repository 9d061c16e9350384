"""Simulated corpora that several test files prepare."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.simulate.sentiment.corpus import Layout, simulate_sentiment

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def sentiment_options() -> dict[str, Any]:
    """Return the options of the shipped params.yaml, for regression from text alone."""
    options: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())["datasets"]["mosei"]["options"]
    return {**options, "task": "regression", "modalities": ["text"]}


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
