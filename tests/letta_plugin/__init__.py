"""Tests of the plug-in's parts that need no Letta server."""
