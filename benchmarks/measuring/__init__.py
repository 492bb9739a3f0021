"""The parts that ``tools/benchmark.py`` and the scripts beside this folder measure with.

Some are adapters to other implementations of the models. The folder isn't part of the wheel:
scripts put ``benchmarks`` on the path and import ``measuring``.
"""
