"""What a run costs, measured on full-size models of random weights."""
