"""`worker.testing` under the public name."""

from worker.testing import DrainCounts, EnqueuedJob, TestingQueue, testing_queue

__all__ = ["DrainCounts", "EnqueuedJob", "TestingQueue", "testing_queue"]
