"""The token cache: format, writer, reader, integrity. Knows nothing of encoders or training."""
