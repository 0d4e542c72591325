"""Modules of bench_queue.py: contenders, the process that runs one, and the one that measures it."""
