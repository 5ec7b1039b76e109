"""Studies behind the figures of the README. Each prints a table and writes a row to `benchmarks/results/`."""
