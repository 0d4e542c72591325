"""
What the queue, its jobs and the workers raise. Each class says what to do about it.

WorkerError
├── EnqueueRefused                 nothing was stored; the call can be mended or made again
│   ├── InvalidArgument            a value is wrong: also a ValueError
│   │   ├── InvalidWebhookURL(url)
│   │   ├── UnknownProvider(provider)
│   │   ├── NotSerializable        an argument has no safe encoding: also a TypeError
│   │   └── PayloadTooLarge(size, limit)
│   ├── QueueFull                  as many jobs wait as may: later, or raise LETTA_QUEUE_MAX_LENGTH
│   ├── QueueMemoryFull            the server's memory is over the watermark: later, or give it more
│   └── QueueUnavailable           the server cannot be reached: also a ConnectionError
├── JobFailed(kind, message)       the job ended with an exception of that class
├── JobAborted                     the job was aborted
├── ResultTimeout                  no result yet: also a TimeoutError
├── NotFound                       no job, delivery or request of that id (any more): also a LookupError
├── RequestFailed(kind, message)   an LLM request ended with its own error
├── UnsafeServer                   the queue's server may lose jobs; the message names the remedy
└── JobError                       raised inside a job, read by the retry policy
    ├── Transient                  another attempt may succeed
    └── Permanent                  never retry
        ├── TargetForbidden(host)  an address that the egress guard does not allow
        └── Undecodable            what the server gave back is not what was stored there
"""

from __future__ import annotations


class WorkerError(Exception):
    """Root of everything this package raises."""


class EnqueueRefused(WorkerError):
    """Nothing was stored."""


class InvalidArgument(EnqueueRefused, ValueError):
    """A value is wrong; the message names it and what is accepted."""


class InvalidWebhookURL(InvalidArgument):
    """Not an absolute http(s) URL that a webhook can be POSTed to."""


class UnknownProvider(InvalidArgument):
    """No LLM provider of that name is configured."""


class NotSerializable(InvalidArgument, TypeError):
    """An argument has no safe encoding; the message names its type."""


class PayloadTooLarge(InvalidArgument):
    """The encoded payload is over its limit."""

    def __init__(self, what: str, size: int, limit: int, setting: str) -> None:
        super().__init__(f"{what} is {size} bytes, over the limit of {limit} ({setting})")
        self.size = size
        self.limit = limit


class QueueFull(EnqueueRefused):
    """As many jobs wait as the queue may hold."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} jobs wait already, the most allowed (LETTA_QUEUE_MAX_LENGTH)")
        self.limit = limit


class QueueMemoryFull(EnqueueRefused):
    """The queue's server has no memory to spare for another job."""


class QueueUnavailable(EnqueueRefused, ConnectionError):
    """The queue's server cannot be reached; deliver inline or try again later."""


class JobFailed(WorkerError):
    """The job ended with an exception: `kind` is its class, `message` its text."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}" if message else kind)
        self.kind = kind
        self.message = message


class JobAborted(WorkerError):
    """The job was aborted before it ended."""


class ResultTimeout(WorkerError, TimeoutError):
    """The time given ran out; the work goes on and its result can still be read later."""


class NotFound(WorkerError, LookupError):
    """Nothing of that id: never was, or its retention has passed."""


class RequestFailed(JobFailed):
    """An LLM request ended with its own error; the other items of its batch are untouched."""


class UnsafeServer(WorkerError):
    """The queue's server is set up so that it may drop jobs; the worker does not start."""


class JobError(WorkerError):
    """Raised inside a job to say whether another attempt makes sense."""


class Transient(JobError):
    """Another attempt may succeed."""


class Permanent(JobError):
    """No attempt will succeed."""


class TargetForbidden(Permanent):
    """The egress guard does not allow connecting to this host."""

    def __init__(self, host: str, reason: str) -> None:
        super().__init__(f"{host}: {reason}")
        self.host = host


class Undecodable(Permanent):
    """What was read back from the server is not what this service stores there."""
