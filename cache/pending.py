"""Samples that wait to become a part: published when they fill one, or when the oldest has waited long enough.

Few large parts make few files, which is what copying, pushing and opening a cache cost; a bound on the time keeps
small what a kill can lose under a slow encoder. In memory they are float32: up to four times the part's bytes.
"""

import time
from collections.abc import Iterable

from cache.parts import SampleTokens
from cache.precision import token_bytes
from cache.store import TokenStore


class PendingPart:
    """Collects samples and failures for one store; `publish` at the end publishes what is left."""

    def __init__(self, store: TokenStore, max_bytes: int, max_seconds: float = float("inf")) -> None:
        self.store, self.max_bytes, self.max_seconds = store, max_bytes, max_seconds
        self.samples: list[SampleTokens] = []
        self.failures: dict[str, tuple[str, str]] = {}
        self._bytes, self._since = 0, time.monotonic()

    def add(self, samples: Iterable[SampleTokens]) -> None:
        """Add samples; no part is larger than `max_bytes` unless a single sample is.

        Raises:
            UserError: as `TokenStore.append`.
        """
        each = token_bytes(self.store.width, self.store.dtype)
        for sample in samples:
            size = each * len(sample.tokens)
            if self.samples and self._bytes + size > self.max_bytes:
                self.publish()
            self.samples.append(sample)
            self._bytes += size
        if time.monotonic() - self._since > self.max_seconds:
            self.publish()

    def publish(self) -> None:
        """Publish the samples as a part, and the failures."""
        self.store.append(self.samples)
        self.store.record_failures(self.failures)
        self.samples, self.failures, self._bytes = [], {}, 0
        self._since = time.monotonic()
