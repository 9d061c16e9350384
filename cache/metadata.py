"""The Zarr documents of a part, as zarr itself spells them.

zarr writes them into memory, from names, shapes and types alone; the part then writes its chunk files itself, without
a copy of the tokens. The same documents tell whether those of an unlisted part were changed, and restore lost ones.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from cache.chunks import ZSTD_LEVEL

GROUP_FILE = "zarr.json"


def part_documents(arrays: Mapping[str, Mapping[str, Any]], attributes: dict[str, Any]) -> dict[str, bytes]:
    """Return the documents of a part's groups and arrays, by file name relative to the part.

    Args:
        arrays: `shape`, `dtype` and, if compressed, `compression` by name.
        attributes: attributes of the part's group.
    """
    documents: dict[str, Any] = {}
    group = zarr.create_group(MemoryStore(documents), zarr_format=3, attributes=attributes)
    for name, spec in arrays.items():
        _declare(group, name, tuple(spec["shape"]), np.dtype(spec["dtype"]), spec.get("compression", "none"))
    return {name: buffer.to_bytes() for name, buffer in documents.items()}


def _declare(group: zarr.Group, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], compression: str) -> None:
    compressors = [ZstdCodec(level=ZSTD_LEVEL), Crc32cCodec()] if compression == "zstd" else [Crc32cCodec()]
    group.create_array(
        name,
        shape=shape,
        chunks=tuple(max(1, size) for size in shape),
        dtype=dtype,
        serializer=BytesCodec(endian="little" if dtype.itemsize > 1 else None),
        compressors=compressors,
        filters=None,
    )
