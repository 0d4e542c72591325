"""Connections to Redis: pools, scripts, and one connection for many callers."""
