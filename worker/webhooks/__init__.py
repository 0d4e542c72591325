"""Webhooks: sending, signing, limits of endpoints and hosts, the jobs."""
