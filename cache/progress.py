"""How far long work on a cache has come, told to whoever listens; nobody by default.

Passing a callback through every function between the command line and a loop would say little for many arguments, so
the listener is a context variable. Costs a lookup per item.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

Item = TypeVar("Item")
Listener = Callable[[str, int, int], None]
"""Told what is counted, how many are done, and of how many."""
_LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tell `listener` how the work inside goes."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def tracked(items: Collection[Item], what: str) -> Iterator[Item]:
    """Yield the items; each counts as done when the next one is asked for."""
    listener = _LISTENER.get()
    for done, item in enumerate(items, 1):
        yield item
        if listener is not None:
            listener(what, done, len(items))
