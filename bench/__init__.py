"""Speed and memory, measured as ratios of A against B in one run; see docs/bench.md."""
