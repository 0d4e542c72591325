"""Keeps stale values from being served: leases, versions, invalidation, backplane, breaker."""
