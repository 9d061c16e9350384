"""On a CUDA device: tokens there are those of the processor, in the precision asked for."""

from typing import Any

import numpy as np
import pytest
import torch

from extract.encoding import Item, encode_items

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize(("precision", "close"), [("float32", 1e-3), ("bfloat16", 0.1), ("float16", 0.05)])
def test_tokens_are_those_of_the_processor(small: Any, precision: Any, close: float) -> None:
    items: list[Item] = [(str(n), "d", item) for n, item in enumerate(small.items(6))]
    here = encode_items(small.encoder(), items, "float32")
    there = encode_items(small.encoder().cuda(), items, precision)
    for one, other in zip(here, there, strict=True):
        assert np.abs(one.tokens - other.tokens).max() <= close * max(1.0, np.abs(one.tokens).max())


def test_every_real_encoder_reports_its_rate() -> None:
    from benchmarks.throughput import measure

    lines = measure(torch.device("cuda"), layers=2, batch=8)
    assert len(lines) == 8
