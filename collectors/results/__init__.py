"""Benchmark results as metrics."""
