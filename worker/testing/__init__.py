"""
Provides a queue for your own tests: the real queue and engine on an embedded server.

    async with testing_queue(functions=[send_mail]) as queue:
        job = await queue.enqueue("send_mail", "ada@example.com")
        assert await job.result(timeout_s=5) == "sent"

Nothing is faked: a worker inside the test's process claims and retries jobs and
makes dead letters as in production. Each queue has its own empty database.
Environment variables, `.env` and secrets files are not read, so a test never
uses a real server, key or provider.

Needs `letta-redis[embedded,worker]`.
"""

from worker.testing.opening import testing_queue
from worker.testing.queue import DrainCounts, EnqueuedJob, TestingQueue

__all__ = ["DrainCounts", "EnqueuedJob", "TestingQueue", "testing_queue"]
