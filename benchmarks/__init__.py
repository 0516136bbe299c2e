"""Measurements of the pipeline's cost, run by hand: `python -m benchmarks.<name>`."""
