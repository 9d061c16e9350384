"""Foreign files that are refused by one clear error; nothing in one is run, and none leads outside of its folder."""

import pickle
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cache.errors import UserError
from cache.importing.importer import import_tokens
from cache.importing.raw import Layout
from cache.store import TokenStore

pytestmark = pytest.mark.usefixtures("no_fsync")
WIDTH = 5


def run(source: Path, form: str, into: Path) -> TokenStore:
    import_tokens(source, form, Layout(), into, "somebody's", "float16", part_bytes=100)
    return TokenStore.open(into)


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


def test_an_id_twice_with_other_values_is_refused(tmp_path: Path) -> None:
    table = pa.table({"sample_id": ["a", "a"], "tokens": [[1.0, 2.0], [3.0, 4.0]]})
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(UserError, match="an id twice"):
        run(tmp_path / "x.parquet", "parquet", tmp_path / "m.zarr")


def test_nothing_outside_the_source_is_read(tmp_path: Path) -> None:
    secret, folder = tmp_path / "secret.h5", tmp_path / "folder"
    with h5py.File(secret, "w") as file:
        file["s0"] = np.ones((4, WIDTH))
    for name, make in (
        ("link", lambda file: file.__setitem__("s0", h5py.ExternalLink(str(secret), "/s0"))),
        ("raw", lambda file: file.create_dataset("s0", (4,), "u1", external=[(str(secret), 0, 4)])),
    ):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            make(file)
        with pytest.raises(UserError, match="another file"):
            run(tmp_path / f"{name}.h5", "hdf5", tmp_path / "m.zarr")
    folder.mkdir()
    for path in (folder / "s0.npy", tmp_path / "outside.npy"):
        np.save(path, np.ones((4, WIDTH)))
    (folder / "in.npy").symlink_to(tmp_path / "outside.npy")
    with pytest.raises(UserError, match="lead out of the folder"):
        run(folder, "npy", tmp_path / "m.zarr")


def test_names_in_an_archive_are_ids_not_paths(tmp_path: Path) -> None:
    source = tmp_path / "x.npz"
    np.savez(source, s0=np.ones((2, WIDTH)))
    with zipfile.ZipFile(source, "a") as archive, archive.open("../../up.npy", "w") as stream:
        np.lib.format.write_array(stream, np.ones((1, WIDTH)))
    store = run(source, "npz", tmp_path / "m.zarr")
    assert "../../up" in store.view()
    assert not (tmp_path.parent.parent / "up.npy").exists()
