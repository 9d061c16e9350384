"""Simulated cohorts in the raw layouts of real data sets."""
