"""The JSON API: what can be read, what can be done, and its OpenAPI description."""
