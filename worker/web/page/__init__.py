"""The page of operators, rendered on the server: it works without scripts."""
