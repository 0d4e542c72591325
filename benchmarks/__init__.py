"""Benchmarks: `make bench`; the method is in README.md beside this file."""
