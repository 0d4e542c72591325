"""IO: what reads and writes Redis, and what speaks HTTP. Importable without arq."""
