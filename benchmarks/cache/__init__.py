"""How fast the token cache is beside the same ragged tokens in other forms; `python -m benchmarks.cache`."""
