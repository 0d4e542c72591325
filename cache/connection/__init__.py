"""Connects to Redis: URLs, pools, scripts, and one connection for many callers."""
