"""What is exported can be read by other programs and imported again; a file is whole or not there."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest

from cache.contents import current, identities_by_part
from cache.errors import UserError
from cache.exporting import export_tokens
from cache.importing.importer import import_tokens
from cache.importing.raw import Layout
from cache.store import TokenStore

pytestmark = pytest.mark.usefixtures("no_fsync")


@pytest.mark.parametrize("form", ["hdf5", "parquet", "safetensors"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_an_export_can_be_imported_again(
    form: str, dtype: str, make_samples: Any, make_key: Any, tmp_path: Path
) -> None:
    store = TokenStore.create(tmp_path / "m.zarr", make_key(), 3, dtype)
    store.append(make_samples(["a/b", "ü", "c"]))
    store.append(make_samples(["d", "removed"], seed=1))
    store.record_failures({"f": ("d", "bad")})
    store.publish_view({i: f"digest-{i}" for i in ("a/b", "ü", "c", "d")})
    assert export_tokens(store, form, tmp_path / "out") == 4
    import_tokens(tmp_path / "out", form, Layout(), tmp_path / "again.zarr", "e", dtype, 1e8)
    again = TokenStore.open(tmp_path / "again.zarr")
    assert again.view() == store.view()
    for sample, expected in zip(again.read(list(again.view())), store.read(list(again.view())), strict=True):
        np.testing.assert_array_equal(sample.tokens, expected.tokens)
        np.testing.assert_array_equal(sample.maskable, expected.maskable)


def test_other_programs_read_an_export(filled: TokenStore, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    expected = np.concatenate([s.tokens for s in filled.read([i for ids in _order(filled) for i in ids])])
    for form in ("hdf5", "parquet", "safetensors"):
        export_tokens(filled, form, tmp_path / form)
    arrays = load_file(tmp_path / "safetensors")
    assert arrays["tokens"].dtype == torch.float16
    np.testing.assert_array_equal(arrays["tokens"].float().numpy(), expected)
    with h5py.File(tmp_path / "hdf5") as file:
        np.testing.assert_array_equal(file["tokens"][:], expected)
        assert "patches" in file.attrs["selfmask_key"]
    frame = pd.read_parquet(tmp_path / "parquet")
    np.testing.assert_array_equal(np.concatenate(frame["tokens"]).reshape(-1, 3), expected)


def _order(store: TokenStore) -> list[list[str]]:
    live = current(store)
    return [[i for i, d in identities if (i, d) in live] for identities in identities_by_part(store).values()]


def test_an_export_is_whole_or_not_there(filled: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cache.exporting.to_stored", full)
    (tmp_path / "out").write_bytes(b"older")
    with pytest.raises(UserError, match="No space left"):
        export_tokens(filled, "safetensors", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"older"
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_an_unfinished_or_unknown_export_is_refused(store: TokenStore, filled: TokenStore, tmp_path: Path) -> None:
    empty = TokenStore.create(tmp_path / "empty.zarr", store.key, 3)
    with pytest.raises(UserError, match="not complete"):
        export_tokens(empty, "hdf5", tmp_path / "out")
    with pytest.raises(UserError, match="parquet"):
        export_tokens(filled, "csv", tmp_path / "out")


def test_a_changed_export_is_refused(filled: TokenStore, tmp_path: Path) -> None:
    export_tokens(filled, "hdf5", tmp_path / "out.h5")
    with h5py.File(tmp_path / "out.h5", "r+") as file:
        file["offsets"][1] = 10**6
    with pytest.raises(UserError, match="do not fit"):
        import_tokens(tmp_path / "out.h5", "hdf5", Layout(), tmp_path / "n.zarr", "e", "float16", 1e8)
