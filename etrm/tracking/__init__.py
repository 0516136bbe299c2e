"""Metrics: rows of `metrics.parquet`, mirrored to W&B."""
