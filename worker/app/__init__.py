"""Composition root: builds what a worker runs from the settings."""
