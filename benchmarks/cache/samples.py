"""Forms that keep samples: safetensors, Arrow, tars of WebDataset, MosaicML's shards, LMDB.

Each uses the settings that its own documentation recommends for speed on a local disk.
"""

import functools
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cache.ragged import WIDTH, Array, Ragged, Reader

# Zero-copy readers give read-only arrays, and `padded` only reads them.
warnings.filterwarnings("ignore", "The given NumPy array is not writable")


def write_safetensors(data: Ragged, folder: Path) -> None:
    """Write the tokens below `folder`."""
    from safetensors.numpy import save_file

    for number, first in enumerate(range(0, len(data), 512)):
        rows = range(first, min(first + 512, len(data)))
        save_file({str(row): data.sample(row) for row in rows}, folder / f"{number:05}.safetensors")


def load_safetensors(data: Ragged, folder: Path) -> list[Any]:
    """Read everything into memory."""
    from safetensors.torch import load_file

    return [load_file(path) for path in sorted(folder.glob("*.safetensors"))]


def read_safetensors(data: Ragged, folder: Path) -> Reader:
    """Return a reader of samples by row."""
    from safetensors import safe_open

    files = [safe_open(path, "np") for path in sorted(folder.glob("*.safetensors"))]
    return lambda rows: [files[row // 512].get_tensor(str(row)) for row in rows.tolist()]


def write_datasets(data: Ragged, folder: Path) -> None:
    """Write the tokens below `folder`."""
    import datasets

    features = datasets.Features({"tokens": datasets.Value("large_binary")})
    rows = ({"tokens": data.sample(row).tobytes()} for row in range(len(data)))
    with datasets.arrow_writer.ArrowWriter(
        features=features, path=str(folder / "a.arrow"), writer_batch_size=64
    ) as out:
        for row in rows:
            out.write(row)
        out.finalize()


def open_arrow(folder: Path, in_memory: bool) -> Any:
    """Open the data set."""
    import datasets

    return datasets.Dataset.from_file(str(folder / "a.arrow"), in_memory=in_memory)


def read_datasets(data: Ragged, folder: Path) -> Reader:
    """Return a reader of samples by row."""
    dataset = open_arrow(folder, in_memory=False).with_format("arrow")

    def read(rows: Array) -> Sequence[Array]:
        column = dataset[rows.tolist()].column("tokens")
        return [
            np.frombuffer(value.as_buffer(), np.float16).reshape(-1, WIDTH)
            for chunk in column.chunks
            for value in chunk
        ]

    return read


def write_webdataset(data: Ragged, folder: Path) -> None:
    """Write the tokens below `folder`."""
    import webdataset

    with webdataset.ShardWriter(str(folder / "%05d.tar"), maxcount=512, verbose=0) as out:
        for row in range(len(data)):
            buffer = io.BytesIO()
            np.save(buffer, data.sample(row))
            out.write({"__key__": f"{row:08}", "npy": buffer.getvalue()})


def open_webdataset(folder: Path, shuffle: int) -> Any:
    """Iterate over float16 [T, WIDTH], shuffled in a buffer of `shuffle` samples."""
    import webdataset

    shards = sorted(map(str, folder.glob("*.tar")))
    pipeline = webdataset.WebDataset(shards, shardshuffle=len(shards) if shuffle else False, empty_check=False)
    decoded = (pipeline.shuffle(shuffle) if shuffle else pipeline).to_tuple("npy")
    return (np.frombuffer(raw, np.float16, offset=128).reshape(-1, WIDTH) for (raw,) in decoded)


def grouped(samples: Iterator[Array], size: int) -> Iterator[Sequence[Array]]:
    """Yield minibatches of `size`."""
    group: list[Array] = []
    for sample in samples:
        group.append(sample)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def write_mosaic(data: Ragged, folder: Path) -> None:
    """Write the tokens below `folder`."""
    from streaming import MDSWriter

    with MDSWriter(out=str(folder), columns={"tokens": "bytes"}, size_limit=2**26) as out:
        for row in range(len(data)):
            out.write({"tokens": data.sample(row).tobytes()})


def open_mosaic(folder: Path, batch_size: int, shuffle: bool) -> Any:
    """Open the data set."""
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    return StreamingDataset(local=str(folder), shuffle=shuffle, batch_size=batch_size, num_canonical_nodes=1)


def read_mosaic(data: Ragged, folder: Path) -> Reader:
    """Return a reader of samples by row."""
    dataset = open_mosaic(folder, 16, shuffle=False)
    return lambda rows: [unpacked(dataset[row]) for row in rows.tolist()]


def unpacked(sample: dict[str, bytes]) -> Array:
    """Return float16 [T, WIDTH]."""
    return np.frombuffer(sample["tokens"], np.float16).reshape(-1, WIDTH)


def write_lmdb(data: Ragged, folder: Path) -> None:
    """Write the tokens below `folder`."""
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


def read_lmdb(data: Ragged, folder: Path) -> Reader:
    """Return a reader of samples by row."""
    view = _lmdb_view(folder)
    return lambda rows: [
        np.frombuffer(view.get(f"{row:08}".encode()), np.float16).reshape(-1, WIDTH) for row in rows.tolist()
    ]


def copied(start: Callable[[Ragged, Path], Reader]) -> Callable[[Ragged, Path], list[Array]]:
    """Load a form that knows samples only: each of them, copied out of its file."""
    return lambda data, folder: [np.array(sample) for sample in start(data, folder)(np.arange(len(data)))]
