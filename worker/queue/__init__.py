"""Enqueues, reads, aborts, retries and schedules jobs in Redis. Needs no arq."""
