"""The picture of a cache shows the tokens that a reader gets."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cache.errors import UserError
from cache.key import CacheKey
from cache.store import SampleTokens, TokenStore
from extract.samples import DatasetInfo, ModalitySpec, SamplesTable
from extract.task import LabelSpec
from pipelines.cache_plot import label_names, plot_cache, token_facts


def make_store(path: Path, width: int = 4, samples: int = 12) -> TokenStore:
    key = CacheKey.imported("e", "0")
    rng, store = np.random.default_rng(0), TokenStore.create(path, key, width, "float32")
    lengths = rng.integers(1, 5, samples)
    rows = [rng.normal(size=(n, width)).astype(np.float32) for n in lengths]
    store.append([SampleTokens(f"s{i}", "d", tokens, np.ones(len(tokens), bool)) for i, tokens in enumerate(rows)])
    store.append([SampleTokens("s0", "older", np.full((9, width), 99, np.float32), np.ones(9, bool))])
    store.publish_view({f"s{i}": "d" for i in range(samples)})
    return store


def make_table(root: Path, label: LabelSpec, values: Any) -> SamplesTable:
    columns = [f"label_{n}" for n in label.names] if label.kind == "multilabel" else ["label"]
    rows = [
        {"sample_id": f"s{i}", "group_id": f"g{i}", "split": ("train", "valid", "test")[i % 3], "m_text": "x"}
        | dict.fromkeys(columns, value)
        for i, value in enumerate(values)
    ]
    info = DatasetInfo(name="own", label=label, modalities=(ModalitySpec(name="m", kind="text", column="m_text"),))
    dropped = pd.DataFrame([], columns=["source_id", "step", "reason"], dtype=str)
    return SamplesTable.write(root, info, pd.DataFrame(rows), dropped)


def test_facts_agree_with_the_tokens(tmp_path: Path) -> None:
    store = make_store(tmp_path / "m.zarr")
    facts = token_facts(store)
    samples = store.read(facts.ids)
    np.testing.assert_array_equal(facts.lengths, [len(s.tokens) for s in samples])
    np.testing.assert_allclose(facts.pooled, [s.tokens.mean(0) for s in samples])
    expected = np.concatenate([np.linalg.norm(s.tokens, axis=1) for s in samples])
    np.testing.assert_allclose(np.sort(facts.norms), np.sort(expected))


def test_labels_are_named_and_the_unknown_are_not_a_class(tmp_path: Path) -> None:
    ids = ["s2", "s0", "s1", "not in the table"]
    for number, (label, values, expected) in enumerate(
        (
            (LabelSpec(kind="binary", names=("died",)), [0, 1, None], ["no label", "died 0", "died 1", "no label"]),
            (LabelSpec(kind="multiclass", names=("x",), classes=("a", "b")), [0, 1, 1], ["b", "a", "b", "no label"]),
            (LabelSpec(kind="multilabel", names=("x", "y")), [0, 1, 1], ["x 1", "x 0", "x 1", "no label"]),
        )
    ):
        assert label_names(make_table(tmp_path / str(number), label, values), ids) == expected
    regression = make_table(tmp_path / "r", LabelSpec(kind="regression", names=("score",)), [0.5, 1, 2])
    np.testing.assert_array_equal(label_names(regression, ids), [2, 0.5, 1, np.nan])


def test_pictures_by_class_and_by_value(tmp_path: Path) -> None:
    store = make_store(tmp_path / "m.zarr")
    for kind, values in (("binary", [0, 1, None] * 4), ("regression", np.linspace(0, 1, 12))):
        table = make_table(tmp_path / kind, LabelSpec(kind=kind, names=("died",)), values)  # type: ignore[arg-type]
        assert plot_cache(store, table, tmp_path / "p.png") == 12
        assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_degenerate_caches(tmp_path: Path) -> None:
    assert plot_cache(make_store(tmp_path / "single.zarr", samples=1), None, tmp_path / "q.png") == 1
    store = make_store(tmp_path / "m.zarr")
    empty = TokenStore.create(tmp_path / "empty.zarr", store.key, 4)
    with pytest.raises(UserError, match="no tokens to plot"):
        plot_cache(empty, None, tmp_path / "r.png")
