"""Reproducible benchmarks: `python -m benchmarks.<name>` from the root of the repository."""
