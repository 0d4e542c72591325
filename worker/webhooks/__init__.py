"""Webhooks: sending, signing, limits of endpoints and hosts, and the jobs that deliver them."""
