"""Composition root: builds clients and workers from the settings."""
