"""LLM requests: batches, providers, rate limits, answers, the jobs."""
