"""
Gives an environment of our own the repository's names: `worker`, `cache`, `settings`.

Importing this module makes `arq worker.WorkerSettings`, `python -m worker` and
`from cache import open_cache` work where a wheel is installed. The image in
compose/ imports it at every start of Python. A wheel never does so by itself:
a project's own `worker`, `cache` and `settings` stay what they are, and they
win here too.
"""

from letta_redis import _aliases

_aliases.add({part: f"letta_redis.{part}" for part in _aliases.PARTS}, last=True)
