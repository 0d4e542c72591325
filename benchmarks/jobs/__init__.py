"""Parts of bench_queue.py: contenders, the process that runs one, and what starts and measures it."""
