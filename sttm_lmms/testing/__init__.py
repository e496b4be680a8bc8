"""For tests and benchmarks: slow oracles, made-up features, checkpoints with random weights and
their export."""
