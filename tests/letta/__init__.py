"""Tests of the plug-in inside the real Letta server. `make letta-test` runs them in its environment."""
