"""The same ragged tokens in every form that is compared: how each is written, loaded whole, and read sample by sample.

Each form uses the settings that its own documentation recommends for speed on a local disk; what they are stands in
`settings`. All of them end in the same padded float32 minibatch, by the fastest collation measured (one converting copy
a sample), so that the differences are those of the reading.
"""

import functools
import importlib.util
import io
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

WIDTH = 768
# Zero-copy readers give read-only arrays, and `padded` only reads them.
warnings.filterwarnings("ignore", "The given NumPy array is not writable")
SHARD_TOKENS = 2**16
Array = np.ndarray


@dataclass(frozen=True)
class Ragged:
    """Tokens float16 [T, WIDTH] of N samples, one after the other."""

    tokens: Array
    offsets: Array

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def sample(self, row: int) -> Array:
        """Return float16 [T_row, WIDTH]."""
        return self.tokens[self.offsets[row] : self.offsets[row + 1]]

    def spans(self, rows: Array) -> list[tuple[int, int]]:
        """Return (first, last + 1) token of each row."""
        return list(zip(self.offsets[rows].tolist(), self.offsets[rows + 1].tolist(), strict=True))


@dataclass(frozen=True)
class Form:
    """A way to keep tokens on disk; `None` where a form cannot do something."""

    name: str
    package: str
    settings: str
    write: Callable[[Ragged, Path], None]
    load: Callable[[Ragged, Path], Any]
    open: Callable[[Ragged, Path], Callable[[Array], Sequence[Array]]] | None
    """Returns a reader of samples by row."""
    epoch: Callable[[Ragged, Path, int], Iterator[Sequence[Array]]] | None = None
    """Shuffled minibatches of one epoch, if it has a loader of its own."""

    def installed(self) -> bool:
        """Tell whether the package is there, and import it: that belongs to no figure."""
        if self.package and importlib.util.find_spec(self.package) is None:
            return False
        if self.package == "streaming":  # it imports torchvision, which may be another build's than torch
            importlib.import_module("extract.encoders.torchvision_schema")
        return not self.package or bool(importlib.import_module(self.package))


def padded(samples: Sequence[Array]) -> torch.Tensor:
    """Collate to float32 [B, T, WIDTH], zero at padding."""
    found = torch.from_numpy(np.empty((len(samples), max(map(len, samples)), WIDTH), np.float32))
    for target, sample in zip(found, samples, strict=True):
        target[: len(sample)].copy_(torch.from_numpy(sample))
        target[len(sample) :].zero_()
    return found


def _one_file(data: Ragged, folder: Path) -> None:
    with (folder / "tokens.bin").open("wb") as stream:
        stream.write(data.tokens.data)


def _read_into(data: Ragged, folder: Path) -> Array:
    whole = np.empty_like(data.tokens)
    with (folder / "tokens.bin").open("rb", buffering=0) as stream:
        view, done = memoryview(whole.reshape(-1).view(np.uint8)), 0
        while done < len(view):
            done += stream.readinto(view[done : done + 2**30])
    return whole


def _mapped(data: Ragged, folder: Path) -> Callable[[Array], Sequence[Array]]:
    tokens = np.memmap(folder / "tokens.bin", np.float16, "r", shape=data.tokens.shape)
    return lambda rows: [np.array(tokens[a:b]) for a, b in data.spans(rows)]


def _pread(data: Ragged, folder: Path) -> Callable[[Array], Sequence[Array]]:
    descriptor, row_bytes = os.open(folder / "tokens.bin", os.O_RDONLY), WIDTH * 2

    def read(rows: Array) -> Sequence[Array]:
        found = [np.empty((b - a, WIDTH), np.float16) for a, b in data.spans(rows)]
        for (a, _), sample in zip(data.spans(rows), found, strict=True):
            os.preadv(descriptor, [sample.reshape(-1).view(np.uint8)], a * row_bytes)
        return found

    return read


def _write_zarr(data: Ragged, folder: Path) -> None:
    import zarr

    shard = min(SHARD_TOKENS, -(-len(data.tokens) // 256) * 256)
    array = zarr.create_array(
        folder / "a.zarr",
        shape=data.tokens.shape,
        chunks=(256, WIDTH),
        shards=(shard, WIDTH),
        dtype="float16",
        compressors=None,
    )
    array[:] = data.tokens


def _zarr(pipeline: str, folder: Path) -> Any:
    import zarr

    zarr.config.set({"codec_pipeline.path": pipeline})
    return zarr.open_array(folder / "a.zarr", mode="r")


def _zarr_reader(pipeline: str) -> Callable[[Ragged, Path], Callable[[Array], Sequence[Array]]]:
    def start(data: Ragged, folder: Path) -> Callable[[Array], Sequence[Array]]:
        array = _zarr(pipeline, folder)
        return lambda rows: [array[a:b] for a, b in data.spans(rows)]

    return start


def _tensorstore(folder: Path) -> Any:
    import tensorstore

    context = {"cache_pool": {"total_bytes_limit": 0}}
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder / "a.zarr")}, "context": context}
    return tensorstore.open(spec, read=True).result()


def _tensorstore_reader(data: Ragged, folder: Path) -> Callable[[Array], Sequence[Array]]:
    array = _tensorstore(folder)

    def read(rows: Array) -> Sequence[Array]:
        futures = [array[a:b].read() for a, b in data.spans(rows)]
        return [future.result() for future in futures]

    return read


def _write_hdf5(data: Ragged, folder: Path) -> None:
    import h5py

    with h5py.File(folder / "a.h5", "w", libver="latest") as file:
        file.create_dataset("tokens", data=data.tokens)


def _load_hdf5(data: Ragged, folder: Path) -> Array:
    import h5py

    whole = np.empty_like(data.tokens)
    with h5py.File(folder / "a.h5") as file:
        file["tokens"].read_direct(whole)
    return whole


def _hdf5(data: Ragged, folder: Path) -> Callable[[Array], Sequence[Array]]:
    import h5py

    tokens = h5py.File(folder / "a.h5")["tokens"]
    return lambda rows: [tokens[a:b] for a, b in data.spans(rows)]


def _write_safetensors(data: Ragged, folder: Path) -> None:
    from safetensors.numpy import save_file

    for number, first in enumerate(range(0, len(data), 512)):
        rows = range(first, min(first + 512, len(data)))
        save_file({str(row): data.sample(row) for row in rows}, folder / f"{number:05}.safetensors")


def _load_safetensors(data: Ragged, folder: Path) -> list[Any]:
    from safetensors.torch import load_file

    return [load_file(path) for path in sorted(folder.glob("*.safetensors"))]


def _safetensors(data: Ragged, folder: Path) -> Callable[[Array], Sequence[Array]]:
    from safetensors import safe_open

    files = [safe_open(path, "np") for path in sorted(folder.glob("*.safetensors"))]
    return lambda rows: [files[row // 512].get_tensor(str(row)) for row in rows.tolist()]


def _write_datasets(data: Ragged, folder: Path) -> None:
    import datasets

    features = datasets.Features({"tokens": datasets.Value("large_binary")})
    rows = ({"tokens": data.sample(row).tobytes()} for row in range(len(data)))
    with datasets.arrow_writer.ArrowWriter(
        features=features, path=str(folder / "a.arrow"), writer_batch_size=64
    ) as out:
        for row in rows:
            out.write(row)
        out.finalize()


def _arrow(folder: Path, in_memory: bool) -> Any:
    import datasets

    return datasets.Dataset.from_file(str(folder / "a.arrow"), in_memory=in_memory)


def _datasets(data: Ragged, folder: Path) -> Callable[[Array], Sequence[Array]]:
    dataset = _arrow(folder, in_memory=False).with_format("arrow")

    def read(rows: Array) -> Sequence[Array]:
        column = dataset[rows.tolist()].column("tokens")
        return [
            np.frombuffer(value.as_buffer(), np.float16).reshape(-1, WIDTH)
            for chunk in column.chunks
            for value in chunk
        ]

    return read


def _write_webdataset(data: Ragged, folder: Path) -> None:
    import webdataset

    with webdataset.ShardWriter(str(folder / "%05d.tar"), maxcount=512, verbose=0) as out:
        for row in range(len(data)):
            buffer = io.BytesIO()
            np.save(buffer, data.sample(row))
            out.write({"__key__": f"{row:08}", "npy": buffer.getvalue()})


def _webdataset(folder: Path, shuffle: int) -> Any:
    import webdataset

    shards = sorted(map(str, folder.glob("*.tar")))
    pipeline = webdataset.WebDataset(shards, shardshuffle=len(shards) if shuffle else False, empty_check=False)
    decoded = (pipeline.shuffle(shuffle) if shuffle else pipeline).to_tuple("npy")
    return (np.frombuffer(raw, np.float16, offset=128).reshape(-1, WIDTH) for (raw,) in decoded)


def _grouped(samples: Iterator[Array], size: int) -> Iterator[Sequence[Array]]:
    group: list[Array] = []
    for sample in samples:
        group.append(sample)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _write_mosaic(data: Ragged, folder: Path) -> None:
    from streaming import MDSWriter

    with MDSWriter(out=str(folder), columns={"tokens": "bytes"}, size_limit=2**26) as out:
        for row in range(len(data)):
            out.write({"tokens": data.sample(row).tobytes()})


def _mosaic(folder: Path, batch_size: int, shuffle: bool) -> Any:
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    return StreamingDataset(local=str(folder), shuffle=shuffle, batch_size=batch_size, num_canonical_nodes=1)


def _mosaic_reader(data: Ragged, folder: Path) -> Callable[[Array], Sequence[Array]]:
    dataset = _mosaic(folder, 16, shuffle=False)
    return lambda rows: [_unpacked(dataset[row]) for row in rows.tolist()]


def _unpacked(sample: dict[str, bytes]) -> Array:
    return np.frombuffer(sample["tokens"], np.float16).reshape(-1, WIDTH)


def _write_lmdb(data: Ragged, folder: Path) -> None:
    import lmdb

    with lmdb.open(str(folder), map_size=2 * data.tokens.nbytes + 2**28) as database:
        for first in range(0, len(data), 512):
            with database.begin(write=True) as out:
                for row in range(first, min(first + 512, len(data))):
                    out.put(f"{row:08}".encode(), data.sample(row).tobytes(), append=True)


@functools.cache  # a process may open it once, and views of it end with it
def _lmdb_view(folder: Path) -> Any:
    import lmdb

    return lmdb.open(str(folder), readonly=True, lock=False, readahead=False, meminit=False).begin(buffers=True)


def _lmdb(data: Ragged, folder: Path) -> Callable[[Array], Sequence[Array]]:
    view = _lmdb_view(folder)
    return lambda rows: [
        np.frombuffer(view.get(f"{row:08}".encode()), np.float16).reshape(-1, WIDTH) for row in rows.tolist()
    ]


def _copied(
    start: Callable[[Ragged, Path], Callable[[Array], Sequence[Array]]],
) -> Callable[[Ragged, Path], list[Array]]:
    """Load a form that knows samples only: each of them, copied out of its file."""
    return lambda data, folder: [np.array(sample) for sample in start(data, folder)(np.arange(len(data)))]


ZARR_PYTHON, ZARRS = "zarr.core.codec_pipeline.BatchedCodecPipeline", "zarrs.ZarrsCodecPipeline"
SHARDED = "chunks of 256 tokens in shards of 65,536, uncompressed"
FORMS = (
    Form("np.memmap, one file", "", "a slice a sample, copied", _one_file, _read_into, _mapped),
    Form("pread, one file", "", "a preadv a sample", _one_file, _read_into, _pread),
    Form("zarr-python", "zarr", SHARDED, _write_zarr, lambda d, f: _zarr(ZARR_PYTHON, f)[:], _zarr_reader(ZARR_PYTHON)),
    Form("zarrs", "zarrs", SHARDED, _write_zarr, lambda d, f: _zarr(ZARRS, f)[:], _zarr_reader(ZARRS)),
    Form(
        "tensorstore",
        "tensorstore",
        f"{SHARDED}; all samples of a batch at once",
        _write_zarr,
        lambda d, f: _tensorstore(f).read().result(),
        _tensorstore_reader,
    ),
    Form("h5py", "h5py", "one contiguous data set, read_direct", _write_hdf5, _load_hdf5, _hdf5),
    Form(
        "safetensors",
        "safetensors",
        "512 samples a file, safe_open",
        _write_safetensors,
        _load_safetensors,
        _safetensors,
    ),
    Form(
        "HF datasets",
        "datasets",
        "large_binary column, Arrow format",
        _write_datasets,
        lambda d, f: _arrow(f, in_memory=True),
        _datasets,
    ),
    Form(
        "WebDataset",
        "webdataset",
        "npy in tars of 512 samples, shuffle(1000)",
        _write_webdataset,
        lambda d, f: [sample.copy() for sample in _webdataset(f, 0)],
        None,
        lambda d, f, size: _grouped(_webdataset(f, 1000), size),
    ),
    Form(
        "MosaicML streaming",
        "streaming",
        "MDS bytes in shards of 64 MB, py1e shuffle",
        _write_mosaic,
        _copied(_mosaic_reader),
        _mosaic_reader,
        lambda d, f, size: _grouped(map(_unpacked, _mosaic(f, size, shuffle=True)), size),
    ),
    Form("LMDB", "lmdb", "key a sample, zero-copy buffers, no readahead", _write_lmdb, _copied(_lmdb), _lmdb),
)
