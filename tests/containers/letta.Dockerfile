# Stands in for the Letta server (letta_app.py), and for the world outside (outside_app.py).
FROM letta-redis-workers
COPY letta_app.py outside_app.py /app/
HEALTHCHECK NONE
CMD ["python", "-m", "uvicorn", "letta_app:app", "--host", "0.0.0.0", "--port", "8283", "--no-access-log"]
