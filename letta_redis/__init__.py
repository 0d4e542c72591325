"""The plug-in's package: the only one that may import the Letta server. Gives the version."""

from importlib.metadata import version

__version__ = version("letta-redis")

__all__ = ["__version__"]
