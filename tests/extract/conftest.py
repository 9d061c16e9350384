"""Files as values of a samples table, and their way through an encoder; a simulated MIMIC-IV folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from extract.encoders.base import Encoder
from extract.samples import DatasetInfo, Kind, ModalitySpec, SamplesTable
from extract.task import LabelSpec
from extract.values import read_value

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def icu_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cohort of every odd stay and some ordinary ones; read only."""
    from pipelines.simulate.icu.cohort import simulate_icu

    folder = tmp_path_factory.mktemp("icu") / "raw"
    simulate_icu(folder, 24, seed=0)
    return folder


@pytest.fixture(scope="session")
def icu_options() -> dict[str, Any]:
    """Return the options of the shipped params.yaml."""
    options: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())["datasets"]["icu"]["options"]
    return options


@pytest.fixture
def read_file(tmp_path: Path) -> Callable[[Kind, str], Any]:
    """Return a reader of files below `tmp_path`."""

    def read(kind: Kind, name: str) -> Any:
        spec = ModalitySpec(name="m", kind=kind, column="m_path")
        info = DatasetInfo(name="x", label=LabelSpec(kind="binary", names=("y",)), modalities=(spec,))
        return read_value(SamplesTable(tmp_path, info, pd.DataFrame()), {"m_path": name}, "m")

    return read


@pytest.fixture
def tokens_of() -> Callable[[Encoder, Any], np.ndarray]:
    """Return what gives a value's tokens [T, D], which must be finite and as many as there are spans."""

    def encode(encoder: Encoder, value: Any) -> np.ndarray:
        item = encoder.preprocess(value)
        with torch.no_grad():
            tokens, embedded = encoder.eval()(encoder.collate([item]))
        assert embedded.valid.all()
        assert torch.isfinite(tokens).all()
        assert tokens.shape[1] == encoder.length(item) == len(encoder.token_spans(value)) > 0
        result: np.ndarray = tokens[0].numpy()
        return result

    return encode
