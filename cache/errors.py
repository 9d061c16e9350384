"""Errors that a user can act on; the command line prints their text alone, without a traceback."""


class UserError(Exception):
    """A mistake in input or settings: says what was given, what is allowed and the next command."""


class StaleCacheError(UserError):
    """The cache holds tokens of another encoder, other weights or other preprocessing."""


class CorruptCacheError(UserError):
    """A file of the cache is absent, truncated or fails its checksum."""
