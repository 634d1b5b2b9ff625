"""Development only: the training recipe of the demo model and the benchmarks."""
