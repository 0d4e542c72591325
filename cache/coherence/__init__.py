"""Why nothing stale is served: leases, invalidation, backplane, breaker."""
