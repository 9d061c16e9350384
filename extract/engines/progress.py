"""A line every few seconds: samples, rate, time left."""

import time

from rich.console import Console


class Progress:
    """Counts samples, whoever encodes them."""

    EVERY_S = 5.0

    def __init__(self, modality: str, total: int) -> None:
        self.modality, self.total, self.done = modality, total, 0
        self.started = self.last = time.monotonic()
        self.console = Console(stderr=True)

    def update(self, count: int) -> None:
        """Count samples and print when it is time, or at the end."""
        self.done += count
        now = time.monotonic()
        if not count or (now - self.last < self.EVERY_S and self.done < self.total):
            return
        self.last = now
        rate = self.done / max(now - self.started, 1e-9)
        left = (self.total - self.done) / max(rate, 1e-9)
        self.say(f"{self.done}/{self.total} samples, {rate:.0f}/s, about {left:.0f} s left")

    def say(self, text: str) -> None:
        """Print a line of this extraction."""
        self.console.print(f"extract {self.modality}: {text}", highlight=False, soft_wrap=True)
