"""Files as values of a samples table, and their way through an encoder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from extract.encoders.base import Encoder
from extract.samples import DatasetInfo, Kind, ModalitySpec, SamplesTable
from extract.task import LabelSpec
from extract.values import read_value


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
