"""The forms that are compared: how each is written, loaded whole, and read sample by sample, and with what settings.

All of them end in the same padded float32 minibatch, by the fastest collation measured (one converting copy a sample),
so that the differences are those of the reading.
"""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cache import arrays, samples
from benchmarks.cache.ragged import Array, Ragged, Reader


@dataclass(frozen=True)
class Form:
    """A way to keep tokens on disk; `None` where a form cannot do something."""

    name: str
    package: str
    settings: str
    write: Callable[[Ragged, Path], None]
    load: Callable[[Ragged, Path], Any]
    open: Callable[[Ragged, Path], Reader] | None
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


SHARDED = "chunks of 256 tokens in shards of 65,536, uncompressed"
FORMS = (
    Form(
        "np.memmap, one file",
        "",
        "a slice a sample, copied",
        arrays.write_one_file,
        arrays.load_one_file,
        arrays.map_one_file,
    ),
    Form(
        "pread, one file", "", "a preadv a sample", arrays.write_one_file, arrays.load_one_file, arrays.pread_one_file
    ),
    Form(
        "zarr-python",
        "zarr",
        SHARDED,
        arrays.write_zarr,
        lambda d, f: arrays.open_zarr(arrays.ZARR_PYTHON, f)[:],
        arrays.zarr_reader(arrays.ZARR_PYTHON),
    ),
    Form(
        "zarrs",
        "zarrs",
        SHARDED,
        arrays.write_zarr,
        lambda d, f: arrays.open_zarr(arrays.ZARRS, f)[:],
        arrays.zarr_reader(arrays.ZARRS),
    ),
    Form(
        "tensorstore",
        "tensorstore",
        f"{SHARDED}; all samples of a batch at once",
        arrays.write_zarr,
        lambda d, f: arrays.open_tensorstore(f).read().result(),
        arrays.read_tensorstore,
    ),
    Form("h5py", "h5py", "one contiguous data set, read_direct", arrays.write_hdf5, arrays.load_hdf5, arrays.read_hdf5),
    Form(
        "safetensors",
        "safetensors",
        "512 samples a file, safe_open",
        samples.write_safetensors,
        samples.load_safetensors,
        samples.read_safetensors,
    ),
    Form(
        "HF datasets",
        "datasets",
        "large_binary column, Arrow format",
        samples.write_datasets,
        lambda d, f: samples.open_arrow(f, in_memory=True),
        samples.read_datasets,
    ),
    Form(
        "WebDataset",
        "webdataset",
        "npy in tars of 512 samples, shuffle(1000)",
        samples.write_webdataset,
        lambda d, f: [sample.copy() for sample in samples.open_webdataset(f, 0)],
        None,
        lambda d, f, size: samples.grouped(samples.open_webdataset(f, 1000), size),
    ),
    Form(
        "MosaicML streaming",
        "streaming",
        "MDS bytes in shards of 64 MB, py1e shuffle",
        samples.write_mosaic,
        samples.copied(samples.read_mosaic),
        samples.read_mosaic,
        lambda d, f, size: samples.grouped(map(samples.unpacked, samples.open_mosaic(f, size, shuffle=True)), size),
    ),
    Form(
        "LMDB",
        "lmdb",
        "key a sample, zero-copy buffers, no readahead",
        samples.write_lmdb,
        samples.copied(samples.read_lmdb),
        samples.read_lmdb,
    ),
)
