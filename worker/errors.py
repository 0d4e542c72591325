"""
Defines every error of the queue, its jobs and the workers. Each class says what to do.

WorkerError
├── EnqueueRefused                 nothing was stored; correct the call or repeat it
│   ├── InvalidArgument            a value is wrong: also a ValueError
│   │   ├── InvalidWebhookURL(url)
│   │   ├── UnknownProvider(provider)
│   │   ├── NotSerializable        an argument would not arrive as given: also a TypeError
│   │   └── PayloadTooLarge(size, limit)
│   ├── QueueFull                  too many jobs wait: retry later, or raise LETTA_QUEUE_MAX_LENGTH
│   ├── QueueMemoryFull            memory is over the watermark: retry later, or raise maxmemory
│   └── QueueUnavailable           the server cannot be reached: also a ConnectionError
│       └── QueueDisabled          LETTA_USE_REDIS_QUEUE is off: do the work inline
├── NotConfirmed(ids)              stored, but too few replicas have it: go on, or send again under the same id
├── JobFailed(kind, message)       the job ended with an exception of that class
│   └── RequestFailed              an LLM request ended with its own error
├── JobAborted                     the job was aborted
├── ResultTimeout                  no result yet: also a TimeoutError
├── NotFound                       no job, delivery or request has that id (now): also a LookupError
├── BadCron                        a cron job can never run: also a ValueError; the worker does not start
├── UnsafeServer                   the queue's server may lose jobs; the message says what to change
└── JobError                       raised inside a job, read by the retry policy
    ├── Transient                  another attempt may succeed
    ├── Postponed                  the queue's server refuses now: run again, uncharged; of our own jobs
    └── Permanent                  never retry
        ├── TargetForbidden(host)  an address that the egress guard does not allow
        └── Undecodable            bytes read from the server are not in the stored format
"""

from __future__ import annotations


class WorkerError(Exception):
    """Root of everything this package raises."""


class EnqueueRefused(WorkerError):
    """Nothing was stored."""


class InvalidArgument(EnqueueRefused, ValueError):
    """A value is wrong; the message names it and what is accepted."""


class InvalidWebhookURL(InvalidArgument):
    """The URL is not an absolute http(s) URL that can receive a webhook."""


class UnknownProvider(InvalidArgument):
    """No LLM provider with that name is configured."""


class NotSerializable(InvalidArgument, TypeError):
    """An argument would not arrive as it was given. Names the argument and what to pass instead."""


class PayloadTooLarge(InvalidArgument):
    """The encoded payload is over its limit."""

    def __init__(self, what: str, size: int, limit: int, setting: str) -> None:
        super().__init__(f"{what} is {size} bytes, over the limit of {limit} ({setting})")
        self.size = size
        self.limit = limit


class QueueFull(EnqueueRefused):
    """The queue holds as many waiting jobs as allowed. Retry later, or raise the limit."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"{limit} jobs already wait, the most allowed; retry later, or raise "
            "LETTA_QUEUE_MAX_LENGTH"
        )
        self.limit = limit


class QueueMemoryFull(EnqueueRefused):
    """The queue's server has no memory left for another job."""


class QueueUnavailable(EnqueueRefused, ConnectionError):
    """The queue's server cannot be reached. Deliver inline, or try again later."""


class QueueDisabled(QueueUnavailable):
    """LETTA_USE_REDIS_QUEUE is off. Deliver inline; trying again does not help."""


class NotConfirmed(WorkerError):
    """
    It is stored, but fewer replicas than LETTA_QUEUE_WAIT_REPLICAS have it: a failover may lose it.

    Go on, or send it again: with a `job_id` of `ids`, nothing is stored twice.
    """

    def __init__(self, ids: tuple[str, ...]) -> None:
        named = ", ".join(ids[:3]) + (", ..." if len(ids) > 3 else "")
        super().__init__(
            f"{named}: stored, but too few replicas have it, so a failover may lose it; check the "
            "replicas, or unset LETTA_QUEUE_WAIT_REQUIRED"
        )
        self.ids = ids


class JobFailed(WorkerError):
    """The job ended with an exception: `kind` is its class name, `message` its text."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}" if message else kind)
        self.kind = kind
        self.message = message


class JobAborted(WorkerError):
    """The job was aborted before it ended."""


class ResultTimeout(WorkerError, TimeoutError):
    """The timeout passed. The work continues, and its result can be read later."""


class NotFound(WorkerError, LookupError):
    """Nothing has that id: it never existed, or its retention has passed."""


class RequestFailed(JobFailed):
    """An LLM request ended with its own error. The other requests of its batch are unaffected."""


class UnsafeServer(WorkerError):
    """The queue's server is configured so that it may drop jobs; the worker does not start."""


class BadCron(WorkerError, ValueError):
    """A cron job can never be due; the worker does not start. The message names job and field."""


class JobError(WorkerError):
    """Base of the errors that a job raises to say whether it should run again."""


class Transient(JobError):
    """Another attempt may succeed."""


class Postponed(JobError):
    """The queue's server refuses now, which is not the job's fault: it runs again, uncharged."""


class Permanent(JobError):
    """No attempt will succeed."""


class TargetForbidden(Permanent):
    """The egress guard does not allow a connection to this host."""

    def __init__(self, host: str, reason: str) -> None:
        super().__init__(f"{host}: {reason}")
        self.host = host


class Undecodable(Permanent):
    """Bytes read from the server are not in the format that this service stores."""
