"""The guarded HTTP client: which addresses may be reached, and how."""
