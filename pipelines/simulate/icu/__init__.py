"""A simulated ICU cohort in MIMIC-IV's raw layout."""
