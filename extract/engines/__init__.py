"""Ways to run an extraction: in this process, or on a Ray cluster; the same chunks, so the same bytes."""
