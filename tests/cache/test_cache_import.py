"""Tokens made elsewhere arrive as they were; what cannot be stored is recorded; nothing in a file is run."""

import collections
import os
import pickle
import zipfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from cache.contents import current, identities_by_part
from cache.errors import StaleCacheError, UserError
from cache.exporting import export_tokens
from cache.importing.importer import import_tokens
from cache.importing.raw import Layout
from cache.importing.unpickling import read_pickle
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
    report = import_tokens(source, form, Layout(), tmp_path / "m.zarr", "e", "float16")
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
    again = import_tokens(source, form, Layout(), tmp_path / "m.zarr", "e", "float16")
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


@pytest.mark.parametrize(
    ("form", "name", "content", "message"),
    [
        ("csv", "x", b"", "hdf5, npy"),
        ("hdf5", "x.h5", b"words", "not readable HDF5"),
        ("npz", "x.npz", b"words", "not readable npz"),
        ("parquet", "x.parquet", b"words", "not readable parquet"),
        ("pickle", "x.pkl", b"words", "not a readable pickle"),
        ("pickle", "x.pkl", pickle.dumps([1]), "no dictionary"),
        ("safetensors", "x.safetensors", b"words", "not readable safetensors"),
        ("npy", "none", None, "There is no"),
    ],
)
def test_unusable_sources_are_one_clear_error(
    form: str, name: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        run(tmp_path / name, form, tmp_path / "m.zarr")
    assert not (tmp_path / "m.zarr").exists()


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


def test_an_id_twice_with_other_values_is_refused(features: Features, tmp_path: Path) -> None:
    table = pa.table({"sample_id": ["a", "a"], "tokens": [[1.0, 2.0], [3.0, 4.0]]})
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(UserError, match="an id twice"):
        run(tmp_path / "x.parquet", "parquet", tmp_path / "m.zarr")


def test_nothing_outside_the_source_is_read(features: Features, tmp_path: Path) -> None:
    secret, _, _ = hdf5_flat(tmp_path / "secret.h5", features)
    for name, make in (
        ("link", lambda file: file.__setitem__("s0", h5py.ExternalLink(str(secret), "/s0"))),
        ("raw", lambda file: file.create_dataset("s0", (4,), "u1", external=[(str(secret), 0, 4)])),
    ):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            make(file)
        with pytest.raises(UserError, match="another file"):
            run(tmp_path / f"{name}.h5", "hdf5", tmp_path / "m.zarr")
    folder, _, _ = npy_folder(tmp_path / "folder", features)
    np.save(tmp_path / "outside.npy", features["s0"])
    (folder / "in.npy").symlink_to(tmp_path / "outside.npy")
    with pytest.raises(UserError, match="lead out of the folder"):
        run(folder, "npy", tmp_path / "m.zarr")


# Pickles


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch evil",)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Evil(), r"posix\.system"),
        (Fraction(1, 2), r"fractions\.Fraction"),
        (collections.OrderedDict(), r"collections\.OrderedDict"),
        (pd.DataFrame({"a": [1]}), "pandas"),
        (np.random.default_rng(0), "numpy.random"),
        (print, r"builtins\.print"),
        (pickle.loads, "pickle"),
    ],
)
def test_a_pickle_of_anything_else_is_refused_by_name(
    value: object, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"a": np.ones(2), "b": [value]}))
    with pytest.raises(UserError, match=name):
        read_pickle(tmp_path / "x.pkl")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_content_is_read_as_pickle_reads_it(protocol: int, tmp_path: Path) -> None:
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    content = {
        "c": base,
        "fortran": np.asfortranarray(base),
        "big": base.astype(">f8"),
        "half": base.astype(np.float16),
        "empty": np.zeros((0, 4), np.int64),
        "flags": base > 3,
        "words": np.array(["a", "éé"]),
        "bytes": np.array([b"a", b"bc"]),
        "scalars": [np.float32(1.5), np.int64(3)],
        "plain": [None, True, 1, 2.5, "é", b"\xff\x00", [1, [2]]],
        7: "number",
    }
    content["again"] = content["c"]
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    found = read_pickle(tmp_path / "x.pkl")
    assert list(found) == list(content)
    for name in ("c", "fortran", "big", "half", "empty", "flags", "words", "bytes", "again"):
        np.testing.assert_array_equal(found[name], content[name])
        assert found[name].dtype == content[name].dtype
    assert found["scalars"] == [1.5, 3]
    assert found["plain"] == content["plain"]


def test_objects_arrays_are_lists_and_other_types_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(
        pickle.dumps({"ids": np.array(["a", "b"], object), "grid": np.array([[1, "x"], [2, "y"]], object)})
    )
    assert read_pickle(path) == {"ids": ["a", "b"], "grid": [[1, "x"], [2, "y"]]}
    for array in (np.zeros(2, [("a", "f4")]), np.zeros(2, "M8[s]"), np.zeros(2, complex)):
        path.write_bytes(pickle.dumps(array))
        with pytest.raises(UserError, match="not a readable pickle"):
            read_pickle(path)


def test_damaged_and_hostile_pickles_are_errors(tmp_path: Path) -> None:
    path, whole = tmp_path / "x.pkl", pickle.dumps({"a": np.arange(20.0), "b": ["x"] * 5})
    rng = np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(whole[: int(rng.integers(1, len(whole)))] if rng.random() < 0.3 else whole)
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        try:
            read_pickle(path)
        except UserError:
            continue
    cyclic: list[Any] = []
    cyclic.append(cyclic)
    path.write_bytes(pickle.dumps(cyclic))
    with pytest.raises(UserError, match="nested too deeply"):
        read_pickle(path)
    bomb: list[Any] = ["x"]
    for _ in range(60):
        bomb = [bomb, bomb]
    path.write_bytes(pickle.dumps(bomb))
    found = read_pickle(path)
    assert found[0] is found[1], "each list is converted once, or this would take for ever"


# Exports


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
    import_tokens(tmp_path / "out", form, Layout(), tmp_path / "again.zarr", "e", dtype)
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
        run(tmp_path / "out.h5", "hdf5", tmp_path / "n.zarr")


def test_names_in_an_archive_are_ids_not_paths(tmp_path: Path, features: Features) -> None:
    source, form, _ = npz_file(tmp_path / "x", features)
    with zipfile.ZipFile(source, "a") as archive, archive.open("../../up.npy", "w") as stream:
        np.lib.format.write_array(stream, np.ones((1, WIDTH)))
    store = run(source, form, tmp_path / "m.zarr")
    assert "../../up" in store.view()
    assert not (tmp_path.parent.parent / "up.npy").exists()
