"""The guarded HTTP client: an egress policy, and the transport that enforces it."""
