"""One reader of raw data per data set; each writes a samples table."""
