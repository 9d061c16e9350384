"""Tiny banks, methods, batches and settings for the tests of stage two."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from cache.bank import TokenBank, TokenBatch
from cache.key import CacheKey
from cache.store import SampleTokens, TokenStore
from extract.task import LabelSpec
from train.config import ComparedSettings, ModelSettings, SelfMaskSettings, TrainSettings
from train.methods.base import Method, ModelSpec
from train.methods.registry import build_method, read_options
from train.missing import patterns
from train.scoring import selection_metrics

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
        compared = ComparedSettings.model_validate(params["compared"])
        train_settings = TrainSettings.model_validate(train)

    return Tiny


@pytest.fixture(scope="session")
def make_selfmask(settings: Any) -> Callable[[ModelSpec], tuple[Method, dict[str, Any]]]:
    """Return a maker of a SelfMask and the configuration that its checkpoint stores."""

    def make(spec: ModelSpec) -> tuple[Method, dict[str, Any]]:
        config = {
            "method": "selfmask",
            "spec": spec.model_dump(mode="json"),
            "model": settings.model_settings.model_dump(mode="json"),
            "options": settings.selfmask.model_dump(mode="json"),
        }
        return build_method("selfmask", spec, settings.model_settings, settings.selfmask), config

    return make


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
    return CacheKey.imported(encoder, "0" * 64)


@pytest.fixture(scope="session")
def binary() -> LabelSpec:
    """Return a binary label."""
    return BINARY


class MethodKit:
    """Methods of three modalities with the settings of `params.yaml`, and batches for them."""

    widths = {"a": 5, "b": 7, "c": 3}  # noqa: RUF012
    model = ModelSettings(
        width=16,
        predictor_layers=1,
        fusion_layers=1,
        heads=2,
        dropout=0.0,
        pooling="mean",
        head="linear",
        missing_tokens_cap=8,
    )
    labels = {  # noqa: RUF012
        "binary": LabelSpec(kind="binary", names=("y",)),
        "multiclass": LabelSpec(kind="multiclass", names=("y",), classes=("p", "q", "r")),
        "multilabel": LabelSpec(kind="multilabel", names=("y", "z")),
        "regression": LabelSpec(kind="regression", names=("y",)),
    }

    def __init__(self) -> None:
        params = yaml.safe_load((ROOT / "params.yaml").read_text())
        self.options = {"selfmask": params["selfmask"], **params["compared"]}

    def build(
        self, name: str, kind: str = "binary", modalities: int = 3, dropout: float = 0.0, **changes: object
    ) -> Method:
        """A method of the first `modalities`; `changes` replace its own settings."""
        names = tuple(self.widths)[:modalities]
        spec = ModelSpec(
            modalities=names,
            widths={m: self.widths[m] for m in names},
            missing_lengths=dict(zip(names, (4, 3, 2), strict=False)),
            max_lengths=dict.fromkeys(names, 6),
            label=self.labels[kind],
        )
        torch.manual_seed(0)
        options = read_options(name, {**self.options.get(name, {}), **changes})  # type: ignore[arg-type]
        return build_method(name, spec, self.model.model_copy(update={"dropout": dropout}), options)  # type: ignore[arg-type]

    def labels_for(self, kind: str, rows: int, generator: torch.Generator) -> Tensor:
        """Float32 [rows], or [rows, 2] for several labels."""
        if kind == "regression":
            return torch.randn(rows, generator=generator)
        shape = (rows, 2) if kind == "multilabel" else (rows,)
        return torch.randint(0, 3 if kind == "multiclass" else 2, shape, generator=generator).float()

    def batch(self, observed: Tensor, kind: str = "binary", seed: int = 0) -> TokenBatch:
        """As many modalities as `observed` [B, M] has columns; nothing is valid where one is missing."""
        generator, rows = torch.Generator().manual_seed(seed), len(observed)
        tokens, valid, maskable = {}, {}, {}
        for column, (name, width) in zip(range(observed.shape[1]), self.widths.items(), strict=False):
            lengths = torch.randint(3, 7, (rows,), generator=generator) * observed[:, column]
            valid[name] = torch.arange(6)[None] < lengths[:, None]
            maskable[name] = valid[name] & (torch.arange(6) > 0)  # the first token is special
            tokens[name] = torch.randn(rows, 6, width, generator=generator) * valid[name][:, :, None]
        return TokenBatch(tokens, valid, maskable, observed, self.labels_for(kind, rows, generator))

    def disguised(self, batch: TokenBatch) -> TokenBatch:
        """The same batch, longer, with large and valid tokens where a modality is missing."""
        tokens, valid = {}, {}
        for column, m in enumerate(batch.tokens):
            absent, extra = ~batch.observed[:, column], (len(batch.observed), 5)
            tokens[m] = torch.cat([batch.tokens[m], torch.zeros(*extra, self.widths[m])], dim=1)
            valid[m] = torch.cat([batch.valid[m], torch.zeros(extra, dtype=torch.bool)], dim=1)
            tokens[m][absent], valid[m][absent] = 1e3, True
        return TokenBatch(tokens, valid, valid, batch.observed, batch.labels)

    def learn(self, model: Method, batch: TokenBatch, seed: int = 1) -> dict[str, Tensor]:
        """The losses of one batch; their gradients are the only ones the model then has."""
        model.train().zero_grad()
        losses = model(batch, torch.Generator().manual_seed(seed)).losses
        losses["loss"].backward()
        return losses

    def vectors(self, observed: Tensor, seed: int = 0) -> Tensor:
        """A vector a modality, zero where it is missing; [B, M, D]."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(*observed.shape, self.model.width, generator=generator) * observed[:, :, None]

    def mixed(self, rows: int = 14) -> Tensor:
        """Every subset in turn."""
        return patterns(3).repeat(rows // 7 + 1, 1)[:rows]


@pytest.fixture(scope="session")
def kit() -> MethodKit:
    """Return the maker of tiny methods and batches."""
    return MethodKit()


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], AbstractContextManager[None]]:
    """Return a context that expects training to end by an interrupt as it scores an epoch for the n-th time."""

    @contextmanager
    def at(count: int) -> Iterator[None]:
        calls = itertools.count(1)

        def killed(*args: Any) -> Any:
            if next(calls) == count:
                raise KeyboardInterrupt
            return selection_metrics(*args)

        with monkeypatch.context() as patched:
            patched.setattr("train.stage.selection_metrics", killed)
            with pytest.raises(KeyboardInterrupt):
                yield

    return at
