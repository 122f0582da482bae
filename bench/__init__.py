"""Benchmarks of trigru: paired comparisons, installed as `trigru.bench`."""
