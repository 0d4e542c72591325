"""
The Letta server with the plug-in: `uvicorn letta_redis.server:app`.

The plug-in is installed before the server's own modules make the application.
"""

from letta_redis.plugin.install import install

install()

from letta.server.rest_api.app import app  # noqa: E402  (after install)

__all__ = ["app"]
