"""A simulated sentiment corpus in CMU-MOSEI's raw layouts."""
