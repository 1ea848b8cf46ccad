"""What the benchmarks share: machines, guests that take commands, results, plots."""
