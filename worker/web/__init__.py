"""What an operator's tools ask over HTTP: health, readiness, metrics."""
