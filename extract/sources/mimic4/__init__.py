"""MIMIC-IV with chest X-rays and notes to a samples table."""
