"""A table of notes and a small encoder that engines work on, and extractions of them in processes of their own."""

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from cache.store import TokenStore
from extract.config import ExtractSettings, TextSettings
from extract.encoders.registry import save_encoder
from extract.encoders.text import TextEncoder
from extract.encoders.tokenizer import train_tokenizer
from extract.extraction import extract_modality
from extract.samples import DatasetInfo, ModalitySpec, SamplesTable
from extract.task import LabelSpec

ROOT = Path(__file__).parents[3]
WORDS = (
    *("no", "effusion", "clear", "opacity", "left", "right", "lung", "mild"),
    *("oedema", "normal", "heart", "size", "unchanged", "small", "large"),
)
SETTINGS = ExtractSettings(
    batch_size=4,
    batch_tokens=1000,
    workers=0,
    compile=False,
    dtype="float32",
    compression="none",
    precision="float32",
    sorted_batches=8,
    part_megabytes=0.058,  # two chunks of the small encoder's tokens, not three
    part_minutes=15.0,
)
SLOW_ENCODER = {"width": 64, "layers": 4, "heads": 4, "dropout": 0.1}
SMALL_ENCODER = {"width": 8, "layers": 1, "heads": 2, "dropout": 0.1}


def notes(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, int(rng.integers(2, 30)))) for _ in range(count)]


def table(root: Path, count: int) -> SamplesTable:
    texts: list[str | None] = [*notes(count)]
    texts[5] = "   "  # unreadable: it must not be in the way of the others
    names = [f"s{n:05d}" for n in range(count)]
    split = (["train", "valid", "test"] * count)[:count]
    frame = pd.DataFrame({"sample_id": names, "group_id": names, "split": split, "label": 0.0, "txt_text": texts})
    info = DatasetInfo(
        name="toy",
        label=LabelSpec(kind="regression", names=("label",)),
        modalities=(ModalitySpec(name="txt", kind="text", column="txt_text"),),
    )
    return SamplesTable.write(root, info, frame, pd.DataFrame({"source_id": [], "step": [], "reason": []}))


def encoder(folder: Path, sizes: dict[str, Any] = SMALL_ENCODER, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    settings = TextSettings(type="bert", weights="scratch", revision=None, max_tokens=24, vocabulary=60, **sizes)
    save_encoder(TextEncoder(settings, train_tokenizer(notes(50), 60, 24)).eval(), folder, {"stage": "test"})
    return folder


def tokens(out: Path, ids: list[str]) -> list[np.ndarray]:
    return [sample.tokens for sample in TokenStore.open(out).read(ids)]


def assert_same_bytes(one: Path, two: Path) -> None:
    view = TokenStore.open(one).view()
    assert view == TokenStore.open(two).view()
    failed = TokenStore.open(one).failures()
    assert failed == TokenStore.open(two).failures()
    ids = [i for i in view if i not in failed]
    assert all(np.array_equal(a, b) for a, b in zip(tokens(one, ids), tokens(two, ids), strict=True))
    assert TokenStore.open(two).verify().problems == []


EXTRACT = """
import sys
from pathlib import Path
from extract.config import ExtractSettings
from extract.extraction import Engine, extract_modality
from extract.samples import SamplesTable
root, out, engine = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
settings = ExtractSettings.model_validate_json(sys.argv[4])
workers = 2 if engine == "ray" else None
table = SamplesTable.read(root / "samples")
print(extract_modality(table, "txt", root / "encoder", settings, out, engine=Engine(engine, None, workers)))
"""


def process(tmp_path: Path, out: str, engine: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", EXTRACT, str(tmp_path), str(tmp_path / out), engine, SETTINGS.model_dump_json()]
    quiet = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(words, env={**os.environ, **quiet}, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True)


def wait_for_parts(out: Path, count: int, running: subprocess.Popen[str]) -> None:
    while len(list((out / "manifest").glob("*.json"))) < count:
        assert running.poll() is None, running.communicate()[1]
        time.sleep(0.01)


@pytest.fixture
def toy() -> SimpleNamespace:
    """Return the makers and checks of this file."""
    makers = (table, encoder, tokens, assert_same_bytes, process, wait_for_parts)
    return SimpleNamespace(SETTINGS=SETTINGS, SLOW_ENCODER=SLOW_ENCODER, **{maker.__name__: maker for maker in makers})


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    data, folder = table(tmp_path / "samples", 200), encoder(tmp_path / "encoder")
    extract_modality(data, "txt", folder, SETTINGS, tmp_path / "alone.zarr")
    return tmp_path / "alone.zarr"
