"""Stage one: raw data to samples tables, raw values to encoder inputs, encoders, fit and extraction."""
