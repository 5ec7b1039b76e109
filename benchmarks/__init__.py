"""Studies behind the figures of the documents. Each prints a table and writes a row to `benchmarks/results/`."""
