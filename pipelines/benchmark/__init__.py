"""Suites of runs: every compared method on the same tokens, and the tables made from them."""
