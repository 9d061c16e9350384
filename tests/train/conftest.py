"""Tiny banks and settings for the tests of stage two."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from cache.bank import TokenBank
from cache.key import CacheKey
from cache.store import SampleTokens, TokenStore
from extract.task import LabelSpec
from train.config import ModelSettings, SelfMaskSettings, TrainSettings

ROOT = Path(__file__).parents[2]
BINARY = LabelSpec(kind="binary", names=("death",))


@pytest.fixture(scope="session")
def settings() -> Any:
    """`params.yaml` with a tiny model."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    model = {**params["model"], "width": 16, "heads": 2, "predictor_layers": 1, "dropout": 0.0}
    train = {**params["train"], "max_epochs": 4, "patience_epochs": 4, "batch_size": 16, "learning_rate": 0.005}

    class Tiny:
        model_settings = ModelSettings.model_validate(model)
        selfmask = SelfMaskSettings.model_validate(params["selfmask"])
        train_settings = TrainSettings.model_validate(train)

    return Tiny


@pytest.fixture(scope="session")
def make_bank(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TokenBank]:
    """Return a maker of banks of random tokens whose first features carry the label."""

    def make(samples: int, seed: int, labels: np.ndarray | None = None, missing: float = 0.3) -> TokenBank:
        rng, folder = np.random.default_rng(seed), tmp_path_factory.mktemp("stores")
        truth = rng.integers(0, 2, samples).astype(np.float32)
        ids = [f"s{seed}_{i}" for i in range(samples)]
        has = rng.random((samples, 3)) >= missing
        has[~has.any(1), 0] = True
        stores = {}
        for column, (name, width) in enumerate({"ehr": 6, "cxr": 8, "txt": 5}.items()):
            store = TokenStore.create(folder / f"{name}.zarr", key(name), width)
            content = []
            for i in np.flatnonzero(has[:, column]):
                length = int(rng.integers(2, 6))
                tokens = rng.normal(size=(length, width)).astype(np.float32)
                tokens[:, :3] += 1.5 * (2 * truth[i] - 1)
                content.append(SampleTokens(ids[i], "d", tokens.astype(np.float16), np.ones(length, bool)))
            store.append(content)
            store.record_failures({ids[i]: ("d", "absent") for i in np.flatnonzero(~has[:, column])})
            store.publish_view({ids[i]: "d" for i in range(samples)})
            stores[name] = store
        bank = TokenBank.load(stores, ids, truth if labels is None else labels)
        bank.stores, bank.sample_ids = stores, ids  # for tests that open them in another way
        return bank

    return make


def key(encoder: str) -> CacheKey:
    """Return a cache key."""
    return CacheKey(
        encoder=encoder,
        options={},
        weights_sha256="0" * 64,
        preprocessing={},
        precision="float32",
        libraries={},
        layout={},
        pretrained_or_fitted=True,
    )


@pytest.fixture(scope="session")
def binary() -> LabelSpec:
    """Return a binary label."""
    return BINARY
