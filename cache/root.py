"""The root group's attributes: format version, key, width and dtype, with a checksum.

They are written once, when the cache is created. A root of another format or of a key with other fields is stale, not
corrupt: its tokens are whole, but this version would not make them so.
"""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cache.errors import CorruptCacheError, StaleCacheError
from cache.key import CacheKey
from cache.location import Location
from cache.manifest import REMEDY, read_json, seal, unseal
from cache.publish import write_json

FORMAT_VERSION = 2
FIRST_SEALED_FORMAT = 2
PARTS_GROUP = {"zarr_format": 3, "node_type": "group", "attributes": {}}


def write_root(store: Path, key: CacheKey, width: int, dtype: str) -> None:
    """Create the folders and groups of an empty cache; the root's document last."""
    for folder in ("parts", "manifest", "failures"):
        (store / folder).mkdir(parents=True, exist_ok=True)
    write_json(store / "parts" / "zarr.json", PARTS_GROUP)
    write_json(store / "zarr.json", root_document(key, width, dtype))


def root_document(key: CacheKey, width: int, dtype: str) -> dict[str, Any]:
    """Return the content of the root's zarr.json."""
    content = {"format": FORMAT_VERSION, "key": key.model_dump(mode="json"), "width": width, "dtype": dtype}
    return {"zarr_format": 3, "node_type": "group", "attributes": {"selfmask": seal(content)}}


def read_root(store: Location) -> tuple[CacheKey, int, str]:
    """Read key, width and dtype.

    Raises:
        StaleCacheError: another format version, or a key with other fields.
        CorruptCacheError: the document is damaged.
    """
    path = store / "zarr.json"
    document = read_json(path)
    try:
        attributes = document["attributes"]["selfmask"]
        version = int(attributes["format"])
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptCacheError(f"{path} is not that of a token cache. {REMEDY}") from error
    if "digest" in attributes or version >= FIRST_SEALED_FORMAT:
        attributes = unseal(attributes, path)
    if version != FORMAT_VERSION:
        raise StaleCacheError(
            f"{store} has format {version}; this version has {FORMAT_VERSION}. Run `selfmask extract` again."
        )
    try:
        return CacheKey.model_validate(attributes["key"]), int(attributes["width"]), str(attributes["dtype"])
    except ValidationError as error:
        fields = ", ".join(str(part["loc"][0]) for part in error.errors())
        raise StaleCacheError(f"{store} has a key of other fields ({fields}). Run `selfmask extract` again.") from error
