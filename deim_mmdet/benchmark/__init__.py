"""Measurements of speed and memory, for ``tools/benchmark.py``."""
