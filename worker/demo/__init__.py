"""`letta-workers demo`: webhooks, LLM batches and cached reads end to end, on loopback servers."""
