"""Composition root: from settings to what a worker runs."""
