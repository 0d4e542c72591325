"""
Every key, channel and TTL of the queue, webhooks and LLM requests, for docs/keys.md too.

They begin with arq's own prefix, so that stock arq clients and `arq --check`
read them; everything of the queue's server is under it, and one ACL pattern
covers it.
"""

from __future__ import annotations

from dataclasses import dataclass

from cache.keys import KeySpec

QUEUE_PREFIX = "arq:"

# The newest attempts of a delivery that are kept; more are only counted.
MAX_WEBHOOK_ATTEMPTS = 100

# A batch's own record outlives its last change by this, seconds.
LLM_BATCH_TTL_S = 604_800

# Batches that are listed; an older one is forgotten when it has ended.
LLM_MAX_BATCHES = 10_000

# A group's usage is summed for this long after its last answer, seconds.
LLM_USAGE_TTL_S = 2_592_000

# The lane's state outlives its last call by this, seconds.
LLM_RATE_TTL_S = 3600


@dataclass(frozen=True, slots=True)
class QueueKeys:
    """Names on the queue's server. Ids are the caller's or 32 hex digits."""

    prefix: str = QUEUE_PREFIX

    def queue(self, priority: str = "default") -> str:
        """Sorted set: job id -> due time, Unix milliseconds. `default` is stock arq's queue."""
        return f"{self.prefix}queue" if priority == "default" else f"{self.prefix}queue:{priority}"

    @property
    def wake(self) -> str:
        return f"{self.prefix}queue:wake"

    @property
    def health(self) -> str:
        return f"{self.prefix}queue:health-check"

    def job(self, job_id: str) -> str:
        return f"{self.prefix}job:{job_id}"

    def result(self, job_id: str) -> str:
        return f"{self.prefix}result:{job_id}"

    def job_keys(self, job_id: str, priority: str = "default") -> list[str]:
        """What `_put_job.lua` writes: queue, body, result, wake token."""
        return [self.queue(priority), self.job(job_id), self.result(job_id), self.wake]

    def in_progress(self, job_id: str) -> str:
        return f"{self.prefix}in-progress:{job_id}"

    def retry(self, job_id: str) -> str:
        return f"{self.prefix}retry:{job_id}"

    @property
    def abort(self) -> str:
        return f"{self.prefix}abort"

    def webhook(self, delivery_id: str) -> str:
        return f"{self.prefix}webhook:{delivery_id}"

    def webhook_attempts(self, delivery_id: str) -> str:
        return f"{self.prefix}webhook-attempts:{delivery_id}"

    @property
    def llm_groups(self) -> str:
        return f"{self.prefix}llm:groups"

    def llm_pending(self, group: str) -> str:
        return f"{self.prefix}llm:pending:{group}"

    def llm_request(self, request_id: str) -> str:
        return f"{self.prefix}llm:request:{request_id}"

    def llm_result(self, request_id: str) -> str:
        return f"{self.prefix}llm:result:{request_id}"

    @property
    def llm_answered(self) -> str:
        """Channel: the ids of requests as they are answered."""
        return f"{self.prefix}llm:answered"

    def llm_batch(self, batch_id: str) -> str:
        return f"{self.prefix}llm:batch:{batch_id}"

    def llm_items(self, batch_id: str) -> str:
        return f"{self.prefix}llm:items:{batch_id}"

    def llm_dedupe(self, digest: str) -> str:
        return f"{self.prefix}llm:dedupe:{digest}"

    @property
    def parked(self) -> str:
        return f"{self.prefix}parked"

    @property
    def dead(self) -> str:
        return f"{self.prefix}dead"

    def dead_job(self, job_id: str) -> str:
        return f"{self.prefix}dead:{job_id}"

    def unique(self, name: str) -> str:
        return f"{self.prefix}unique:{name}"

    def gather(self, gather_id: str) -> str:
        return f"{self.prefix}gather:{gather_id}"

    def last_poll(self, worker_id: str) -> str:
        return f"{self.prefix}turn:{worker_id}"

    def last_wake_poll(self, worker_id: str) -> str:
        return f"{self.prefix}turn:{worker_id}:wake"

    def worker(self, worker_id: str) -> str:
        """One worker's heartbeat: JSON."""
        return f"{self.prefix}worker:{worker_id}"

    @property
    def workers(self) -> str:
        """Sorted set: worker id -> last heartbeat, Unix ms."""
        return f"{self.prefix}workers"

    def webhook_endpoint(self, endpoint: str) -> str:
        return f"{self.prefix}webhook-endpoint:{endpoint}"

    def webhook_target(self, target: str) -> str:
        return f"{self.prefix}webhook-target:{target}"

    def webhook_slots(self, target: str) -> str:
        return f"{self.prefix}webhook-slots:{target}"

    def webhook_parked(self, target: str) -> str:
        return f"{self.prefix}webhook-parked:{target}"

    @property
    def webhook_open(self) -> str:
        """Deliveries that have not ended -> when upkeep last looked at them, Unix ms."""
        return f"{self.prefix}webhook-open"

    def webhook_ended(self, state: str) -> str:
        """Sorted set: delivery id -> when it ended so, Unix ms."""
        return f"{self.prefix}webhook-ended:{state}"

    @property
    def webhook_disabled(self) -> str:
        """Sorted set: disabled endpoint -> since, Unix ms."""
        return f"{self.prefix}webhook-disabled"

    @property
    def webhook_events(self) -> str:
        """Stream: what happened to lanes and endpoints."""
        return f"{self.prefix}webhook-events"

    @property
    def llm(self) -> str:
        """What every key of the LLM half begins with; its scripts derive keys from it."""
        return f"{self.prefix}llm:"

    def llm_sizes(self, group: str) -> str:
        return f"{self.llm}sizes:{group}"

    def llm_open(self, batch_id: str) -> str:
        return f"{self.llm}open:{batch_id}"

    @property
    def llm_batches(self) -> str:
        """Sorted set: batch id -> when it was made, Unix ms."""
        return f"{self.llm}batches"

    def llm_usage(self, group: str) -> str:
        return f"{self.llm}usage:{group}"

    def llm_failed(self, request_id: str) -> str:
        return f"{self.llm}failed:{request_id}"

    def llm_rate(self, provider: str) -> str:
        return f"{self.llm}rate:{provider}"

    def llm_flight(self, provider: str) -> str:
        """Sorted set: call in flight -> end of its lease, Unix ms."""
        return f"{self.llm}flight:{provider}"

    def llm_reserved(self, provider: str) -> str:
        """Sorted set: request id -> the time reserved for its call, Unix ms."""
        return f"{self.llm}turns:{provider}"

    @property
    def llm_single(self) -> str:
        """Sorted set: id of a request with a job of its own -> the last look after it, Unix ms."""
        return f"{self.llm}single"

    @property
    def llm_underway(self) -> str:
        """Sorted set: id of a batch that has not ended -> the last look after it, Unix ms."""
        return f"{self.llm}underway"

    def llm_callback(self, request_id: str) -> str:
        """Hash: digest of a URL -> the job that tells it of the request's end."""
        return f"{self.llm}tell:{request_id}"


_ENDS = "deleted when the job ends"


CATALOGUE: tuple[KeySpec, ...] = (
    KeySpec(
        "arq:queue",
        "sorted set",
        "job id -> due time, Unix ms; priority DEFAULT, stock arq's",
        "one member a waiting job",
    ),
    KeySpec(
        "arq:queue:critical\\|high\\|low",
        "sorted set",
        "the same for the other priorities",
        "one member a waiting job",
    ),
    KeySpec("arq:queue:wake", "sorted set", "one token that wakes a worker", "one member"),
    KeySpec(
        "arq:queue:health-check",
        "string",
        "the newest heartbeat, for `arq --check`",
        "TTL of seconds",
    ),
    KeySpec("arq:job:<id>", "string", "msgpack {t, f, a, k, et}: the job", _ENDS),
    KeySpec(
        "arq:in-progress:<id>",
        "string",
        "the claim: token, queue, due time, lost leases",
        "deleted when the run ends; TTL 1 d after the last renewal",
    ),
    KeySpec("arq:retry:<id>", "string", "tries so far", _ENDS),
    KeySpec("arq:abort", "sorted set", "job ids whose end was asked for", "removed with the job"),
    KeySpec("arq:result:<id>", "string", "msgpack: how it ended", "TTL LETTA_WORKER_KEEP_RESULT_S"),
    KeySpec(
        "arq:webhook:<id>",
        "hash",
        "a delivery: url, event type, body, state, times",
        "none until it ends, then TTL LETTA_WEBHOOK_RETENTION_S",
    ),
    KeySpec(
        "arq:webhook-attempts:<id>",
        "list",
        "msgpack [time, status, error, ms, response] an attempt",
        "newest 100; TTL as the delivery's",
    ),
    KeySpec(
        "arq:webhook-target:<lane>",
        "hash",
        "what holds a host or endpoint id back: failures, breaker, pause, share, next turn",
        "TTL 1 d after the last change",
    ),
    KeySpec(
        "arq:webhook-slots:<lane>",
        "sorted set",
        "delivery id -> when its attempt's place lapses, Unix ms",
        "LETTA_WEBHOOK_ENDPOINT_CONCURRENCY; TTL of the attempt's limit + 10 s",
    ),
    KeySpec(
        "arq:webhook-parked:<lane>",
        "sorted set",
        "delivery id -> since when it waits for its lane, Unix ms",
        "one member a waiting delivery",
    ),
    KeySpec(
        "arq:webhook-order:<digest>",
        "sorted set",
        "delivery ids of one ordering key, in order",
        "one member a delivery that has not ended",
    ),
    KeySpec(
        "arq:webhook-endpoint:<endpoint>",
        "hash",
        "an endpoint that fails or is disabled: since when, why, its URL",
        "deleted when it takes a webhook; TTL 90 d, none while disabled",
    ),
    KeySpec(
        "arq:webhook-disabled",
        "sorted set",
        "disabled endpoint -> since, Unix ms",
        "one member a disabled endpoint",
    ),
    KeySpec(
        "arq:webhook-open",
        "sorted set",
        "delivery id -> when it was stored or upkeep last saw its job, Unix ms",
        "one member a delivery that has not ended",
    ),
    KeySpec(
        "arq:webhook-ended:delivered\\|dead\\|disabled",
        "sorted set",
        "delivery id -> when it ended so, Unix ms; for replays",
        "LETTA_WEBHOOK_RETENTION_S",
    ),
    KeySpec(
        "arq:webhook-events",
        "stream",
        "circuits opened and closed, endpoints disabled and enabled",
        "newest 1,000, about",
    ),
    KeySpec(
        "arq:llm:groups",
        "hash",
        "group id -> provider, endpoint, model, where requests wait",
        "removed when none waits",
    ),
    KeySpec(
        "arq:llm:pending:<group>",
        "list",
        "request ids that wait for a batch",
        "sealed at LETTA_LLM_BATCH_MAX_REQUESTS or LETTA_LLM_BATCH_MAX_AGE_S",
    ),
    KeySpec(
        "arq:llm:request:<id>",
        "hash",
        "an unanswered request: body, group, deadline",
        "deleted when answered",
    ),
    KeySpec("arq:llm:result:<id>", "string", "msgpack: the answer", "TTL LETTA_LLM_RESULT_TTL_S"),
    KeySpec(
        "arq:llm:dedupe:<sha256>",
        "string",
        "request id of an equal request",
        "deleted when answered; with LETTA_LLM_CACHE_TTL_S, that TTL",
    ),
    KeySpec(
        "arq:llm:batch:<id>",
        "hash",
        "a batch: state, epoch, group, provider's id, counts, usage",
        "TTL 7 d after it ends",
    ),
    KeySpec(
        "arq:llm:items:<id>",
        "list",
        "request ids of the batch, in the order of its file",
        "LETTA_LLM_BATCH_MAX_REQUESTS; TTL as the batch's",
    ),
    KeySpec(
        "arq:llm:sizes:<group>",
        "hash",
        "bytes and tokens of the requests that wait",
        "removed when none waits",
    ),
    KeySpec(
        "arq:llm:open:<batch>",
        "set",
        "ids of a batch's requests without an answer",
        "removed with the last",
    ),
    KeySpec(
        "arq:llm:batches",
        "sorted set",
        "batch id -> when it was made, Unix ms",
        "newest 10,000 that have ended; TTL 7 d, renewed",
    ),
    KeySpec(
        "arq:llm:usage:<group>",
        "hash",
        "tokens and items of a group so far",
        "TTL 30 d, renewed",
    ),
    KeySpec(
        "arq:llm:failed:<id>",
        "hash",
        "a request that ended with an error, for `batches retry`",
        "TTL LETTA_LLM_RESULT_TTL_S",
    ),
    KeySpec(
        "arq:llm:rate:<provider>",
        "hash",
        "next free times, adaptive limit and pause of the synchronous lane",
        "TTL 1 h, renewed",
    ),
    KeySpec(
        "arq:llm:flight:<provider>",
        "sorted set",
        "call in flight -> end of its lease, Unix ms",
        "LETTA_LLM_MAX_CONCURRENCY; TTL 1 h",
    ),
    KeySpec(
        "arq:llm:reserved:<provider>",
        "sorted set",
        "request id -> the time reserved for its call, Unix ms",
        "a minute of LETTA_LLM_REQUESTS_PER_MINUTE; TTL 1 h",
    ),
    KeySpec(
        "arq:llm:single",
        "sorted set",
        "id of a request with a job of its own -> the last look after it, Unix ms",
        "one member such a request, until it is answered",
    ),
    KeySpec(
        "arq:llm:underway",
        "sorted set",
        "id of a batch -> the last look after it, Unix ms",
        "one member a batch, until it has ended",
    ),
    KeySpec(
        "arq:llm:callback:<id>",
        "hash",
        "digest of a URL -> the job that tells it of the request's end",
        "deleted when answered; after an error, TTL LETTA_LLM_RESULT_TTL_S",
    ),
    KeySpec("arq:llm:answered", "channel", "request ids as they are answered", "keeps nothing"),
    KeySpec(
        "arq:queue:running",
        "sorted set",
        "id of a running job -> its lease's end, Unix ms",
        "one member a running job",
    ),
    KeySpec(
        "arq:queue:schedules",
        "sorted set",
        "id of a repeating job -> its next run, Unix ms",
        "one member a schedule",
    ),
    KeySpec(
        "arq:queue:schedules:jobs",
        "hash",
        "id of a repeating job -> msgpack: job, rhythm",
        "one field a schedule",
    ),
    KeySpec(
        "arq:queue:cron", "hash", "name of a cron job -> its last tick, Unix ms", "one field a cron"
    ),
    KeySpec(
        "arq:queue:listener",
        "string",
        "the worker that listens for stock clients' jobs",
        "TTL twelve heartbeats",
    ),
    KeySpec("arq:parked", "hash", "id of a job of unknown name -> since, Unix ms", _ENDS),
    KeySpec(
        "arq:dead",
        "sorted set",
        "id of a dead letter -> when it died, Unix ms",
        "LETTA_QUEUE_DEAD_MAX, LETTA_QUEUE_DEAD_MAX_AGE_S",
    ),
    KeySpec(
        "arq:dead:<id>",
        "hash",
        "a dead letter: raw body, reason, error, tries, times",
        "with its place in arq:dead; TTL LETTA_QUEUE_DEAD_MAX_AGE_S",
    ),
    KeySpec(
        "arq:unique:<key>",
        "string",
        "id of the job that holds a unique key",
        "freed with the job (or when it starts), or TTL of the window",
    ),
    KeySpec("arq:gather:<id>", "hash", "results of a gathering's jobs so far", "TTL 7 d"),
    KeySpec(
        "arq:poll:<worker>, :wake",
        "string",
        "the last turn of a worker, and of its waker, so that one sent twice counts once",
        "TTL four leases + 60 s",
    ),
    KeySpec("arq:worker:<id>", "string", "JSON: a worker's heartbeat", "TTL three heartbeats"),
    KeySpec(
        "arq:workers",
        "sorted set",
        "worker id -> when it was seen, Unix ms; every fourth heartbeat",
        "members not seen for twelve heartbeats are removed",
    ),
)
