"""
Makes the repository's names `worker`, `cache` and `settings` importable from a wheel.

After importing this module, `arq worker.WorkerSettings`, `python -m worker` and
`from cache import open_cache` work. The image in compose/ imports it at every start of
Python. A wheel never imports it by itself, and a project's own `worker`, `cache` and
`settings` take precedence here too.
"""

from letta_redis import _aliases

_aliases.add({part: f"letta_redis.{part}" for part in _aliases.PARTS}, last=True)
