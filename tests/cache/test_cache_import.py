"""Tokens made elsewhere arrive as they were, in every format; what cannot be stored is recorded with its reason."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from cache.errors import StaleCacheError, UserError
from cache.importing.importer import import_tokens
from cache.importing.raw import Layout
from cache.store import TokenStore

pytestmark = pytest.mark.usefixtures("no_fsync")
WIDTH = 5
Features = dict[str, np.ndarray]


@pytest.fixture
def features() -> Features:
    """Ragged tokens by id, exact in float16."""
    rng = np.random.default_rng(0)
    return {f"s{i}": (rng.integers(-64, 64, (i + 1, WIDTH)) / 8).astype(np.float32) for i in range(6)}


def run(source: Path, form: str, into: Path, **layout: Any) -> TokenStore:
    import_tokens(source, form, Layout(**layout), into, "somebody's", "float16", part_bytes=100)
    return TokenStore.open(into)


def assert_holds(store: TokenStore, features: Features) -> None:
    assert store.verify().problems == []
    for sample in store.read(list(features)):
        np.testing.assert_array_equal(sample.tokens, features[sample.sample_id])
        assert sample.maskable.all()
    assert set(store.view()) >= set(features)


# Writers of foreign files: each returns source, format and layout.


def hdf5_per_sample(root: Path, features: Features) -> tuple[Path, str, dict[str, Any]]:
    root.mkdir()
    for name, values in features.items():
        with h5py.File(root / f"{name}.h5", "w") as file:
            file["group/values"] = values
            file["other"] = 1
    return root, "hdf5", {"key": "group/values"}


def hdf5_csd(root: Path, features: Features) -> tuple[Path, str, dict[str, Any]]:
    with h5py.File(root, "w") as file:
        for name, values in features.items():
            file[f"covarep/data/{name}/features"] = values
            file[f"covarep/data/{name}/intervals"] = np.zeros((len(values), 2))
    return root, "hdf5", {"key": "covarep/data/{id}/features"}


def hdf5_flat(root: Path, features: Features) -> tuple[Path, str, dict[str, Any]]:
    with h5py.File(root, "w") as file:
        for name, values in features.items():
            file[name] = values
    return root, "hdf5", {}


def padded(features: Features) -> tuple[np.ndarray, list[int]]:
    longest = max(map(len, features.values()))
    values = [np.pad(v, ((0, longest - len(v)), (0, 0))) for v in features.values()]
    return np.stack(values), [len(v) for v in features.values()]


def hdf5_padded(root: Path, features: Features) -> tuple[Path, str, dict[str, Any]]:
    values, lengths = padded(features)
    with h5py.File(root, "w") as file:
        file["audio"], file["audio_lengths"], file["names"] = values, lengths, list(features)
    return root, "hdf5", {"key": "audio", "ids": "names"}


def npy_folder(root: Path, features: Features) -> tuple[Path, str, dict[str, Any]]:
    root.mkdir()
    for name, values in features.items():
        np.save(root / f"{name}.npy", values)
    return root, "npy", {}


def npz_folder(root: Path, features: Features) -> tuple[Path, str, dict[str, Any]]:
    root.mkdir()
    for name, values in features.items():
        np.savez_compressed(root / f"{name}.npz", x=values, y=np.zeros(3))
    return root, "npz", {"key": "x"}


def npz_file(root: Path, features: Features) -> tuple[Path, str, dict[str, Any]]:
    path = root.with_suffix(".npz")
    np.savez(path, **features)  # type: ignore[arg-type]
    return path, "npz", {}


def parquet_nested(root: Path, features: Features) -> tuple[Path, str, dict[str, Any]]:
    columns = {"clip": [*features, "null"], "feats": [*(v.tolist() for v in features.values()), None]}
    pq.write_table(pa.table(columns), root)
    return root, "parquet", {"key": "feats", "ids": "clip"}


def parquet_flat(root: Path, features: Features) -> tuple[Path, str, dict[str, Any]]:
    rows = [{"sample_id": i, "tokens": v.ravel(), "tokens_shape": list(v.shape)} for i, v in features.items()]
    pd.DataFrame(rows).to_parquet(root)
    return root, "parquet", {}


def pickle_by_id(root: Path, features: Features) -> tuple[Path, str, dict[str, Any]]:
    root.write_bytes(pickle.dumps(features))
    return root, "pickle", {}


def pickle_mmsa(root: Path, features: Features) -> tuple[Path, str, dict[str, Any]]:
    content = {}
    for split, names in (("train", list(features)[:4]), ("valid", list(features)[4:])):
        values, lengths = padded({name: features[name] for name in names})
        content[split] = {
            "id": np.array(names, object),
            "text": values.astype(np.float64),
            "text_lengths": lengths,
            "raw_text": np.array(["words"] * len(names)),
            "regression_labels": np.zeros(len(names)),
        }
    root.write_bytes(pickle.dumps(content, protocol=2))
    return root, "pickle", {"key": "text"}


def safetensors_per_sample(root: Path, features: Features) -> tuple[Path, str, dict[str, Any]]:
    save_file(features, root)
    return root, "safetensors", {}


WRITERS = (
    hdf5_per_sample,
    hdf5_csd,
    hdf5_flat,
    hdf5_padded,
    npy_folder,
    npz_folder,
    npz_file,
    parquet_nested,
    parquet_flat,
    pickle_by_id,
    pickle_mmsa,
    safetensors_per_sample,
)


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_every_format_arrives_unchanged_and_once(
    write: Callable[..., tuple[Path, str, dict[str, Any]]], features: Features, tmp_path: Path
) -> None:
    source, form, layout = write(tmp_path / "source", features)
    store = run(source, form, tmp_path / "m.zarr", **layout)
    assert_holds(store, features)
    assert len(store.entries()) > 1, "published part by part"
    assert store.failures() == {}
    before = store.content_digest()
    run(source, form, tmp_path / "m.zarr", **layout)
    assert store.content_digest() == before


def test_the_key_tells_the_encoder_and_the_source(features: Features, tmp_path: Path) -> None:
    source, form, layout = npy_folder(tmp_path / "source", features)
    store = run(source, form, tmp_path / "m.zarr", **layout)
    assert store.key.encoder == "somebody's"
    assert store.key.options["imported"] is True
    np.save(source / "s0.npy", features["s1"])
    with pytest.raises(StaleCacheError, match="weights_sha256"):
        run(source, form, tmp_path / "m.zarr", **layout)


def test_what_cannot_be_stored_is_recorded_with_its_reason(features: Features, tmp_path: Path) -> None:
    source, form, _ = npy_folder(tmp_path / "source", features)
    np.save(source / "nan.npy", np.full((2, WIDTH), np.nan))
    np.save(source / "wide.npy", np.ones((2, WIDTH + 1)))
    np.save(source / "empty.npy", np.ones((0, WIDTH)))
    np.save(source / "big.npy", np.full((1, WIDTH), 1e6))
    np.save(source / "words.npy", np.array([["a"] * WIDTH]))
    np.save(source / "deep.npy", np.ones((1, 1, WIDTH)))
    np.save(source / "objects.npy", np.array([{}], object), allow_pickle=True)
    (source / "torn.npy").write_bytes(b"\x93NUMPY")
    np.save(source / "vector.npy", np.ones(WIDTH))
    report = import_tokens(source, form, Layout(), tmp_path / "m.zarr", "e", "float16", 1e8)
    store = TokenStore.open(tmp_path / "m.zarr")
    assert_holds(store, {**features, "vector": np.ones((1, WIDTH), np.float32)})
    reasons = store.failures()
    assert {i: reasons[i].split()[-1] for i in reasons} == {
        "nan": "values",
        "wide": str(WIDTH),
        "empty": "tokens",
        "big": "float16",
        "words": "[D]",
        "deep": "[D]",
        "objects": "objects",
        "torn": "objects",
    }
    assert (report.added, report.samples, sum(report.failed.values())) == (7, 7, 8)
    again = import_tokens(source, form, Layout(), tmp_path / "m.zarr", "e", "float16", 1e8)
    assert (again.added, again.samples, again.failed) == (0, 7, report.failed)


def test_a_killed_import_goes_on(features: Features, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    source, form, layout = hdf5_flat(tmp_path / "source", features)
    append, calls = TokenStore.append, []

    def dying(store: TokenStore, samples: Any) -> Any:
        calls.append(len(samples))
        if len(calls) == 3:
            raise Killed
        return append(store, samples)

    with monkeypatch.context() as patched:
        patched.setattr(TokenStore, "append", dying)
        with pytest.raises(Killed):
            run(source, form, tmp_path / "m.zarr", **layout)
    with pytest.raises(UserError, match="not complete"):
        TokenStore.open(tmp_path / "m.zarr").view()
    assert_holds(run(source, form, tmp_path / "m.zarr", **layout), features)
    assert TokenStore.open(tmp_path / "m.zarr").info()["samples"] == len(features)


def test_missing_keys_name_what_is_there(features: Features, tmp_path: Path) -> None:
    for write, key, message in (
        (hdf5_csd, "nothing/{id}", "covarep"),
        (npz_folder, None, "x, y"),
        (parquet_flat, "vectors", "tokens_shape"),
        (pickle_mmsa, None, "text"),
    ):
        source, form, _ = write(tmp_path / f"{write.__name__}", features)
        with pytest.raises(UserError, match=message):
            run(source, form, tmp_path / "m.zarr", key=key)
