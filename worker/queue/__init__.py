"""Jobs in Redis: enqueue, read, abort, retry, schedule. Importable without arq."""
