"""What a person runs: the command line, the parameter schema, simulated cohorts and reports."""
