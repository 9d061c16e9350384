"""The key of a cache: everything that determines its tokens.

Two caches with the same key hold interchangeable tokens and can be merged; with different keys never. Sample
identity is separate: (sample id, digest of the raw input).
"""

from typing import Any

from pydantic import BaseModel, ConfigDict

from cache.errors import StaleCacheError
from cache.publish import fingerprint


class CacheKey(BaseModel):
    """What the tokens depend on, besides the raw input."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder: str
    options: dict[str, Any]
    weights_sha256: str
    preprocessing: dict[str, Any]
    precision: str
    """Precision of the forward pass."""
    libraries: dict[str, str]
    """Versions of the libraries that change numbers."""
    layout: dict[str, Any]
    """How tokens map to the input: grid, characters or bins."""
    pretrained_or_fitted: bool
    """False: the tokens come from random weights."""

    @classmethod
    def imported(cls, encoder: str, content_sha256: str, **options: Any) -> "CacheKey":
        """Return the key of tokens made elsewhere, of which no more is known than the encoder's name and a digest."""
        return cls(
            encoder=encoder,
            options={"imported": True, **options},
            weights_sha256=content_sha256,
            preprocessing={},
            precision="imported",
            libraries={},
            layout={},
            pretrained_or_fitted=True,
        )

    def digest(self) -> str:
        """Return the SHA-256 of the key."""
        return fingerprint(self.model_dump(mode="json"))

    def difference(self, other: "CacheKey") -> dict[str, tuple[Any, Any]]:
        """Return the fields in which two keys differ, with both values."""
        mine, theirs = self.model_dump(mode="json"), other.model_dump(mode="json")
        return {name: (mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]}

    def require_same(self, other: "CacheKey", path: object) -> None:
        """Raise StaleCacheError that names every differing field."""
        fields = "; ".join(f"{k}: cached {a!r}, wanted {b!r}" for k, (a, b) in self.difference(other).items())
        if fields:
            raise StaleCacheError(
                f"{path} holds other tokens ({fields}). Run `selfmask extract` again, or choose another folder."
            )
