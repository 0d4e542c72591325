"""`letta-workers demo`: the main job end to end, with servers of its own on loopback."""
