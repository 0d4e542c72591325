"""Runs `python -m worker`, the same command line as `letta-workers`."""

from worker.cli import main

if __name__ == "__main__":
    main()
