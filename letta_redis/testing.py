"""`worker.testing` under the public name."""

from letta_redis.worker.testing import DrainCounts, EnqueuedJob, TestingQueue, testing_queue

__all__ = ["DrainCounts", "EnqueuedJob", "TestingQueue", "testing_queue"]
