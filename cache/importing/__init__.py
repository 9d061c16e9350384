"""Token features made elsewhere, into a token cache: one reader per file format, one writer."""
