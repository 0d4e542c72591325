"""LLM requests: batches, providers, rate limits, answers and the jobs that run them."""
