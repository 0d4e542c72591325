#!/bin/sh
# Starts the workers by exec, so that signals reach the supervisor directly.
#
#   compose/start_workers.sh [options of `letta-workers run`]
#
# Settings come from LETTA_... variables (docs/settings.md). Exit codes are those of
# the workers: 0 drained, 1 crash loop, 2 wrong setting or nothing to run, 3 forced.
set -eu

# A checkout uses the environment of `make setup`; in the image, PATH has the command.
checkout=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
if [ -x "$checkout/.venv/bin/letta-workers" ]; then
    PATH="$checkout/.venv/bin:$PATH"
fi
if ! command -v letta-workers >/dev/null 2>&1; then
    echo "letta-workers is not on PATH; run 'make setup', or pip install 'letta-redis[worker]'" >&2
    exit 2
fi

# Each running job may hold several connections, and the soft limit is often 1024.
ulimit -n "$(ulimit -H -n)" 2>/dev/null || true

exec letta-workers run "$@"
