"""Tests of the plug-in's own parts, without the Letta server."""
