"""A line every few seconds: samples, rates, time left."""

import time

from rich.console import Console


class Progress:
    """Counts samples, whoever encodes them."""

    EVERY_S = 5.0

    def __init__(self, modality: str, total: int) -> None:
        self.modality, self.total, self.done, self.tokens = modality, total, 0, 0
        self.started = self.last = time.monotonic()
        self.console = Console(stderr=True)

    def update(self, count: int, tokens: int) -> None:
        """Count samples and their tokens, and print when it is time, or at the end."""
        self.done += count
        self.tokens += tokens
        now = time.monotonic()
        if not count or (now - self.last < self.EVERY_S and self.done < self.total):
            return
        self.last = now
        rate, token_rate = (value / max(now - self.started, 1e-9) for value in (self.done, self.tokens))
        left = (self.total - self.done) / max(rate, 1e-9)
        self.say(f"{self.done}/{self.total} samples, {rate:.3g}/s, {token_rate:.0f} tokens/s, about {left:.0f} s left")

    def say(self, text: str) -> None:
        """Print a line of this extraction."""
        self.console.print(f"extract {self.modality}: {text}", highlight=False, soft_wrap=True)
