"""The service's own jobs: coroutines that read as a list of steps."""
