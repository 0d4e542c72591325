"""Serves an operator's tools over HTTP: health, readiness, metrics, API and page."""
