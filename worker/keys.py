"""
Names every key, channel and TTL of the queue, webhooks and LLM requests.

All keys begin with arq's own prefix: stock arq clients and `arq --check` can
read them, and one ACL pattern covers them. On a cluster they begin with `{arq}:`
instead, which stock clients cannot. docs/keys.md is generated from CATALOGUE.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cache.keys import KeySpec

QUEUE_PREFIX = "arq:"

# On a cluster, the hash tag of all keys: they lie in one slot, so that a script is atomic.
QUEUE_TAG = "{arq}"

# Attempts kept per delivery, newest first; older ones are only counted.
MAX_WEBHOOK_ATTEMPTS = 100

# Actions of operators that are kept, about: the stream is trimmed by whole nodes.
AUDIT_MAX = 10_000

# How long a batch's record is kept after its last change, seconds.
LLM_BATCH_TTL_S = 604_800

# Batches kept in the list; beyond it, the oldest ended ones are removed.
LLM_MAX_BATCHES = 10_000

# How long a group's usage is kept after its last answer, seconds.
LLM_USAGE_TTL_S = 2_592_000

# How long the pieces of an answer are kept that no worker ends, seconds.
LLM_PART_TTL_S = 600

# How long a large body is kept that no script has renamed, seconds.
STAGED_TTL_S = 600

# How long a provider's rate state is kept after its last direct call, seconds.
LLM_RATE_TTL_S = 3600

# A held job or schedule is so far behind its due time, ms (queue/lua/_held.lua).
HELD_MS = 1_000_000_000_000_000

# How long the key of the confirming writes is kept, seconds.
CONFIRM_TTL_S = 60

# The names of the priorities, by urgency: a queue's number is its position here, from 1.
_PRIORITIES = ("critical", "high", "default", "low")


@dataclass(frozen=True, slots=True)
class SeriesKeys:
    """
    The keys of one kind of history (queue/lua/_series.lua).

    index: sorted set: series -> the Unix minute that it is counted in.
    """

    index: str

    def total(self, series: str) -> str:
        return f"{self.index}-total:{series}"

    def hours(self, day: int, series: str) -> str:
        return f"{self.index}-hours:{day}:{series}"

    def minutes(self, hour: int, series: str) -> str:
        return f"{self.index}-minutes:{hour}:{series}"


@dataclass(frozen=True, slots=True)
class QueueKeys:
    """Builds the key names on the queue's server. Ids are the caller's, or 32 hex digits."""

    prefix: str = QUEUE_PREFIX

    @classmethod
    def of(cls, client: Any) -> QueueKeys:
        """The keys on the server of a client: with the hash tag that the client was built for."""
        tag = getattr(client.connection_pool, "tag", "")
        return cls(f"{tag}:") if tag else cls()

    def queue(self, priority: str = "default") -> str:
        """Sorted set: job id -> due time, Unix milliseconds. `default` is stock arq's queue."""
        return f"{self.prefix}queue" if priority == "default" else f"{self.prefix}queue:{priority}"

    def stored_queue(self, priority: str) -> str:
        """The queue of a stored priority. Of a key, as 0.1's development versions stored, its last part."""
        name = priority.rpartition(":")[2]
        return self.queue(name if name in _PRIORITIES else "default")

    @property
    def wake(self) -> str:
        return f"{self.prefix}queue:wake"

    @property
    def health(self) -> str:
        return f"{self.prefix}queue:health-check"

    @property
    def switches(self) -> str:
        """Hash: half of the plug-in -> "on" or "off", over what the environment says."""
        return f"{self.prefix}switches"

    @property
    def letta_callbacks(self) -> str:
        """Sorted set: webhook ids of the plug-in's callbacks by the time of their next look, ms."""
        return f"{self.prefix}letta:callbacks"

    def letta_callback_held(self, webhook_id: str) -> str:
        return f"{self.prefix}letta:callback-held:{webhook_id}"

    @property
    def letta_sweep(self) -> str:
        return f"{self.prefix}letta:sweep"

    def job(self, job_id: str) -> str:
        return f"{self.prefix}job:{job_id}"

    @property
    def confirm(self) -> str:
        """String without a value: written before each WAIT (worker/queue/confirmation.py)."""
        return f"{self.prefix}confirm"

    def staged(self, token: str) -> str:
        return f"{self.prefix}staged:{token}"

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

    def llm_part(self, token: str) -> str:
        return f"{self.prefix}llm:part:{token}"

    @property
    def llm_answered(self) -> str:
        """Channel: ids of requests, published when they are answered."""
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

    def parked_told(self, function: str) -> str:
        return f"{self.prefix}parked-told:{function}"

    @property
    def history(self) -> SeriesKeys:
        """Of jobs: a series is `<priority>:<function>`."""
        return SeriesKeys(f"{self.prefix}history")

    @property
    def webhook_history(self) -> SeriesKeys:
        """Of attempts: a series is an endpoint's key."""
        return SeriesKeys(f"{self.prefix}webhook-history")

    @property
    def llm_history(self) -> SeriesKeys:
        """Of LLM requests: a series is `<provider>:<endpoint>:<model>`."""
        return SeriesKeys(f"{self.llm}history")

    @property
    def dead(self) -> str:
        return f"{self.prefix}dead"

    def dead_job(self, job_id: str) -> str:
        return f"{self.prefix}dead:{job_id}"

    def dead_body(self, job_id: str) -> str:
        return f"{self.prefix}dead-body:{job_id}"

    @property
    def audit(self) -> str:
        """Stream: what operators changed, and who it was."""
        return f"{self.prefix}audit"

    def unique(self, name: str) -> str:
        return f"{self.prefix}unique:{name}"

    def gather(self, following_id: str) -> str:
        return f"{self.prefix}gather:{following_id}"

    def gather_part(self, following_id: str, index: int) -> str:
        return f"{self.prefix}gather-part:{index}:{following_id}"

    def last_poll(self, worker_id: str) -> str:
        return f"{self.prefix}poll:{worker_id}"

    def last_wake_poll(self, worker_id: str) -> str:
        return f"{self.prefix}poll:{worker_id}:wake"

    def worker(self, worker_id: str) -> str:
        """JSON: one worker's heartbeat."""
        return f"{self.prefix}worker:{worker_id}"

    @property
    def workers(self) -> str:
        """Sorted set: worker id -> last heartbeat, Unix ms."""
        return f"{self.prefix}workers"

    def webhook_endpoint(self, endpoint: str) -> str:
        return f"{self.prefix}webhook-endpoint:{endpoint}"

    def webhook_limits(self, endpoint: str) -> str:
        return f"{self.prefix}webhook-limits:{endpoint}"

    def webhook_slots(self, endpoint: str) -> str:
        return f"{self.prefix}webhook-slots:{endpoint}"

    def webhook_parked(self, endpoint: str) -> str:
        return f"{self.prefix}webhook-parked:{endpoint}"

    def webhook_host(self, host: str) -> str:
        return f"{self.prefix}webhook-host:{host}"

    def webhook_line(self, host: str) -> str:
        return f"{self.prefix}webhook-line:{host}"

    @property
    def webhook_open(self) -> str:
        """Sorted set: id of an open delivery -> when the rescuer last checked it, Unix ms."""
        return f"{self.prefix}webhook-open"

    def webhook_ended(self, state: str) -> str:
        """Sorted set: delivery id -> when it ended in this state, Unix ms."""
        return f"{self.prefix}webhook-ended:{state}"

    @property
    def webhook_disabled(self) -> str:
        """Sorted set: disabled endpoint -> since, Unix ms."""
        return f"{self.prefix}webhook-disabled"

    @property
    def webhook_failing(self) -> str:
        """Sorted set: endpoint that fails and is not disabled -> its last failure, Unix ms."""
        return f"{self.prefix}webhook-failing"

    @property
    def webhook_events(self) -> str:
        """Stream: changes of circuit breakers and endpoints."""
        return f"{self.prefix}webhook-events"

    @property
    def llm(self) -> str:
        """Prefix of every LLM key; the Lua scripts derive their keys from it."""
        return f"{self.prefix}llm:"

    def llm_sizes(self, group: str) -> str:
        return f"{self.llm}sizes:{group}"

    def llm_open(self, batch_id: str) -> str:
        return f"{self.llm}open:{batch_id}"

    @property
    def llm_batches(self) -> str:
        """Sorted set: batch id -> when it was created, Unix ms."""
        return f"{self.llm}batches"

    def llm_usage(self, group: str) -> str:
        return f"{self.llm}usage:{group}"

    def llm_failed(self, request_id: str) -> str:
        return f"{self.llm}failed:{request_id}"

    def llm_rate(self, provider: str) -> str:
        return f"{self.llm}rate:{provider}"

    def llm_flight(self, provider: str) -> str:
        """Sorted set: id of a call in flight -> end of its lease, Unix ms."""
        return f"{self.llm}flight:{provider}"

    def llm_reserved(self, provider: str) -> str:
        """Sorted set: request id -> the time reserved for its call, Unix ms."""
        return f"{self.llm}reserved:{provider}"

    @property
    def llm_single(self) -> str:
        """Sorted set: id of a directly called request -> when it was last checked, Unix ms."""
        return f"{self.llm}single"

    @property
    def llm_underway(self) -> str:
        """Sorted set: id of an open batch -> when it was last checked, Unix ms."""
        return f"{self.llm}underway"

    def llm_callback(self, request_id: str) -> str:
        """Hash: digest of a callback URL -> the job that calls it when the request ends."""
        return f"{self.llm}callback:{request_id}"

    @property
    def llm_callbacks(self) -> str:
        """List: ended requests whose callbacks have no job yet."""
        return f"{self.llm}callbacks"


@dataclass(frozen=True, slots=True)
class EngineKeys:
    """Keys of one queue; `queue_name` None is the prefix's default queue, as arq names it."""

    base: QueueKeys
    queue_name: str | None = None

    @property
    def default_queue(self) -> str:
        return self.queue_name or self.base.queue()

    @property
    def queues(self) -> list[str]:
        """Queue keys by number: critical, high, default, low."""
        name = self.default_queue
        return [name if p == "default" else f"{name}:{p}" for p in _PRIORITIES]

    @property
    def running(self) -> str:
        return f"{self.default_queue}:running"

    @property
    def wake(self) -> str:
        return f"{self.default_queue}:wake"

    @property
    def schedules(self) -> str:
        return f"{self.default_queue}:schedules"

    @property
    def schedule_jobs(self) -> str:
        return f"{self.default_queue}:schedules:jobs"

    @property
    def schedule_runs(self) -> str:
        """Hash: id of a repeating job -> id of its last run's job."""
        return f"{self.default_queue}:schedules:runs"

    @property
    def cron(self) -> str:
        return f"{self.default_queue}:cron"

    @property
    def cron_runs(self) -> str:
        """Hash: name of a cron -> id of its last tick's job."""
        return f"{self.default_queue}:cron:runs"

    @property
    def cron_next(self) -> str:
        """Hash: name of a cron -> `<its next tick, Unix ms>:<function>`."""
        return f"{self.default_queue}:cron:next"

    @property
    def cron_off(self) -> str:
        """Hash: name of a cron that is switched off -> since, Unix ms."""
        return f"{self.default_queue}:cron:off"

    @property
    def listener(self) -> str:
        return f"{self.default_queue}:listener"

    @property
    def paused(self) -> str:
        return f"{self.default_queue}:paused"

    def held(self, function: str) -> list[str]:
        """Sorted set of each queue: id of a held job of a paused function -> its due time."""
        return [f"{queue}:held:{function}" for queue in self.queues]


_ENDS = "deleted when the job ends"


CATALOGUE: tuple[KeySpec, ...] = (
    KeySpec(
        "arq:queue",
        "sorted set",
        "job id -> due time, Unix ms; priority DEFAULT, the queue of stock arq",
        "one member per waiting job",
    ),
    KeySpec(
        "arq:queue:critical\\|high\\|low",
        "sorted set",
        "the same for the other priorities",
        "one member per waiting job",
    ),
    KeySpec("arq:queue:wake", "sorted set", "one token that wakes a worker", "one member"),
    KeySpec(
        "arq:queue:health-check",
        "string",
        "the newest heartbeat, for `arq --check`",
        "TTL of seconds",
    ),
    KeySpec(
        "arq:switches",
        "hash",
        "agent_cache, redis_queue -> on or off, in every Letta server with the plug-in",
        "two fields",
    ),
    KeySpec(
        "arq:letta:callbacks",
        "sorted set",
        "webhook ids of a Letta server's callbacks -> time of the next look, Unix ms",
        "removed when the outcome is in Letta's tables",
    ),
    KeySpec(
        "arq:letta:callback-held:<id>",
        "string",
        "one server writes the outcome of this callback",
        "TTL 30 s",
    ),
    KeySpec("arq:letta:sweep", "string", "one server has looked for lost callbacks", "TTL 5 min"),
    KeySpec("arq:job:<id>", "string", "msgpack {t, f, a, k, et}: the job", _ENDS),
    KeySpec(
        "arq:in-progress:<id>",
        "string",
        "the claim: token, queue, due time, stalled count",
        "deleted when the run ends; TTL 1 d after the last renewal",
    ),
    KeySpec(
        "arq:confirm",
        "string",
        "written before each WAIT, so that it covers what was stored before",
        f"empty; TTL {CONFIRM_TTL_S} s",
    ),
    KeySpec(
        "arq:staged:<token>",
        "string, hash",
        "a body over 256 KiB that was sent before its script, which renames the key",
        "TTL 10 min",
    ),
    KeySpec("arq:retry:<id>", "string", "tries so far", _ENDS),
    KeySpec("arq:abort", "sorted set", "ids of jobs to abort", "removed with the job"),
    KeySpec(
        "arq:result:<id>",
        "string",
        "msgpack: the job's result or error",
        "TTL LETTA_WORKER_KEEP_RESULT_S",
    ),
    KeySpec(
        "arq:webhook:<id>",
        "hash",
        "a delivery: URL, event type, body, state, times",
        "no TTL until it ends, then LETTA_WEBHOOK_RETENTION_S",
    ),
    KeySpec(
        "arq:webhook-attempts:<id>",
        "list",
        "per attempt: msgpack [time, status, error, ms, response]",
        "newest 100; the delivery's TTL",
    ),
    KeySpec(
        "arq:webhook-limits:<endpoint>",
        "hash",
        "an endpoint's failures in a row, breaker, pause, concurrency, next free time",
        "TTL 1 d after the last change",
    ),
    KeySpec(
        "arq:webhook-slots:<endpoint>",
        "sorted set",
        "delivery id -> when its attempt's slot expires, Unix ms",
        "LETTA_WEBHOOK_ENDPOINT_CONCURRENCY; TTL of the attempt's limit + 10 s",
    ),
    KeySpec(
        "arq:webhook-parked:<endpoint>",
        "sorted set",
        "delivery id -> since when it waits for a slot, Unix ms",
        "one member per waiting delivery",
    ),
    KeySpec(
        "arq:webhook-host:<host>",
        "sorted set",
        "delivery id -> when its attempt's slot of the host expires, Unix ms",
        "LETTA_WEBHOOK_HOST_CONCURRENCY; TTL of the attempt's limit + 10 s",
    ),
    KeySpec(
        "arq:webhook-line:<host>",
        "sorted set",
        "endpoint whose deliveries found the host full -> when it was last served, Unix ms",
        "one member per waiting endpoint; TTL 2 min after the last one joined",
    ),
    KeySpec(
        "arq:webhook-order:<digest>",
        "sorted set",
        "delivery ids of one ordering key, in order",
        "one member per open delivery",
    ),
    KeySpec(
        "arq:webhook-endpoint:<endpoint>",
        "hash",
        "an endpoint that fails or is disabled: since when, why, its URL",
        "deleted when it accepts a webhook; TTL 90 d, none when disabled by an operator",
    ),
    KeySpec(
        "arq:webhook-disabled",
        "sorted set",
        "disabled endpoint -> since, Unix ms; by an operator: less 10^13",
        "newest 10,000, 90 d; those of an operator until they are enabled",
    ),
    KeySpec(
        "arq:webhook-failing",
        "sorted set",
        "endpoint that fails and is not disabled -> its last failure, Unix ms",
        "newest 10,000, 90 d",
    ),
    KeySpec(
        "arq:webhook-open",
        "sorted set",
        "delivery id -> when it was stored or the rescuer last saw its job, Unix ms",
        "one member per open delivery",
    ),
    KeySpec(
        "arq:webhook-ended:delivered\\|dead\\|disabled",
        "sorted set",
        "delivery id -> when it ended in this state, Unix ms; for replays",
        "LETTA_WEBHOOK_RETENTION_S",
    ),
    KeySpec(
        "arq:webhook-events",
        "stream",
        "circuits opened and closed, endpoints disabled and enabled",
        "about the newest 1,000",
    ),
    KeySpec(
        "arq:llm:groups",
        "hash",
        "group id -> provider, endpoint and model of waiting requests",
        "removed when no request waits",
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
    KeySpec(
        "arq:llm:part:<token>",
        "string",
        "a long answer while a worker stores it in pieces",
        "renamed at the end; TTL 10 min",
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
        "a batch: state, epoch, group, the provider's id, counts, usage",
        "TTL 7 d after it ends",
    ),
    KeySpec(
        "arq:llm:items:<id>",
        "list",
        "request ids of the batch, in the order of its file",
        "LETTA_LLM_BATCH_MAX_REQUESTS; the batch's TTL",
    ),
    KeySpec(
        "arq:llm:sizes:<group>",
        "hash",
        "bytes and tokens of the waiting requests",
        "removed when no request waits",
    ),
    KeySpec(
        "arq:llm:open:<batch>",
        "set",
        "ids of a batch's unanswered requests",
        "removed with the last one",
    ),
    KeySpec(
        "arq:llm:batches",
        "sorted set",
        "batch id -> when it was created, Unix ms",
        "newest 10,000 ended ones; TTL 7 d, renewed",
    ),
    KeySpec(
        "arq:llm:usage:<group>",
        "hash",
        "total tokens and items of a group",
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
        "next free times, adaptive limit and pause of a provider's direct calls",
        "TTL 1 h, renewed",
    ),
    KeySpec(
        "arq:llm:flight:<provider>",
        "sorted set",
        "id of a call in flight -> end of its lease, Unix ms",
        "LETTA_LLM_MAX_CONCURRENCY; TTL 1 h",
    ),
    KeySpec(
        "arq:llm:reserved:<provider>",
        "sorted set",
        "request id -> the time reserved for its call, Unix ms",
        "one minute of LETTA_LLM_REQUESTS_PER_MINUTE; TTL 1 h",
    ),
    KeySpec(
        "arq:llm:single",
        "sorted set",
        "id of a directly called request -> when it was last checked, Unix ms",
        "one member per such request, until it is answered",
    ),
    KeySpec(
        "arq:llm:underway",
        "sorted set",
        "id of a batch -> when it was last checked, Unix ms",
        "one member per batch, until it has ended",
    ),
    KeySpec(
        "arq:llm:callback:<id>",
        "hash",
        "digest of a callback URL -> the job that calls it when the request ends",
        "deleted when answered; after an error, TTL LETTA_LLM_RESULT_TTL_S",
    ),
    KeySpec(
        "arq:llm:callbacks",
        "list",
        "id, number of the end, outcome and cursor of an ended request with callbacks to enqueue",
        "one member per ended request, until the queue has room for its callbacks",
    ),
    KeySpec(
        "arq:llm:answered", "channel", "ids of requests when they are answered", "stores nothing"
    ),
    KeySpec(
        "arq:queue:running",
        "sorted set",
        "id of a running job -> its lease's end, Unix ms",
        "one member per running job",
    ),
    KeySpec(
        "arq:queue:schedules",
        "sorted set",
        "id of a repeating job -> its next run, Unix ms; one that is switched off 10^15 later",
        "one member per schedule",
    ),
    KeySpec(
        "arq:queue:schedules:jobs",
        "hash",
        "id of a repeating job -> msgpack: job, interval or cron",
        "one field per schedule",
    ),
    KeySpec(
        "arq:queue:schedules:runs",
        "hash",
        "id of a repeating job -> id of its last run's job",
        "one field per schedule",
    ),
    KeySpec(
        "arq:queue:cron",
        "hash",
        "name of a cron job -> its last tick, Unix ms",
        "one field per cron job",
    ),
    KeySpec(
        "arq:queue:cron:runs",
        "hash",
        "name of a cron job -> id of its last tick's job",
        "one field per cron job",
    ),
    KeySpec(
        "arq:queue:cron:next",
        "hash",
        "name of a cron job -> `<its next tick, Unix ms>:<function>`",
        "one field per cron job",
    ),
    KeySpec(
        "arq:queue:cron:off",
        "hash",
        "name of a cron job that is switched off -> since, Unix ms",
        "at most one field per cron job",
    ),
    KeySpec(
        "arq:queue:listener",
        "string",
        "id of the worker that listens for jobs of stock clients",
        "TTL twelve heartbeats",
    ),
    KeySpec(
        "arq:queue:paused",
        "hash",
        "priority:<name> or function:<name> -> since when it is paused, Unix ms; resume:<name> "
        "while jobs of the function go back",
        "128 fields",
    ),
    KeySpec(
        "arq:queue[:<priority>]:held:<function>",
        "sorted set",
        "id of a due job of a paused function -> its due time, Unix ms",
        "one member per held job; removed by the resume",
    ),
    KeySpec("arq:parked", "hash", "id of a job with an unknown name -> since when, Unix ms", _ENDS),
    KeySpec(
        "arq:parked-told:<function>",
        "string",
        "the job whose line in the log was the last for an unknown name",
        "TTL 1 min",
    ),
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
        "removed with its member in arq:dead; TTL LETTA_QUEUE_DEAD_MAX_AGE_S",
    ),
    KeySpec(
        "arq:dead-body:<id>",
        "string",
        "a dead letter's raw body, if it is over 256 KiB",
        "as arq:dead:<id>",
    ),
    KeySpec(
        "arq:history",
        "sorted set",
        "a series, `<priority>:<function>` -> the Unix minute that it is counted in",
        "128 series, and `<other>` of each priority; one without an end for 30 d may be replaced",
    ),
    KeySpec(
        "arq:webhook-history",
        "sorted set",
        "a series, an endpoint -> the Unix minute that its attempts are counted in",
        "128 series, and `<other>`; one without an attempt for 1 h may be replaced, with its keys",
    ),
    KeySpec(
        "arq:llm:history",
        "sorted set",
        "a series, `<provider>:<endpoint>:<model>` -> the Unix minute that its requests are counted in",
        "128 series, and `<other>` of each endpoint; one without an end for 24 h may be replaced, "
        "with its keys",
    ),
    KeySpec(
        "arq:[webhook- or llm:]history-minutes:<hour>:<series>",
        "string",
        "how what is counted ended in each minute of an hour: 60 rows of 208 bytes",
        "TTL 25 h; of a series' last hour 31 d. With its hours at most 1 MB a series",
    ),
    KeySpec(
        "arq:[webhook- or llm:]history-hours:<day>:<series>",
        "string",
        "how what is counted ended in each hour of a day: 24 rows of 208 bytes",
        "TTL 31 d",
    ),
    KeySpec(
        "arq:[webhook- or llm:]history-total:<series>",
        "string",
        "how what is counted ended since the series exists: 208 bytes",
        "TTL 31 d, renewed",
    ),
    KeySpec(
        "arq:audit",
        "stream",
        "what operators changed: time, actor, action, subject, outcome",
        "about the newest 10,000",
    ),
    KeySpec(
        "arq:unique:<key>",
        "string",
        "id of the job that holds a unique key",
        "deleted when the job starts or ends, by its scope; or TTL of the window",
    ),
    KeySpec(
        "arq:gather:<id>",
        "hash",
        "results of the finished jobs of a gathering; the id is that of the job that follows",
        "TTL 7 d",
    ),
    KeySpec(
        "arq:gather-part:<index>:<id>",
        "string",
        "one result of a gathering, if it is over 256 KiB",
        "TTL 7 d, and deleted with the gathering",
    ),
    KeySpec(
        "arq:poll:<worker>, :wake",
        "string",
        "the last poll of a worker, and of its wake-up poll: a poll sent twice counts once",
        "TTL four leases + 60 s",
    ),
    KeySpec("arq:worker:<id>", "string", "JSON: a worker's heartbeat", "TTL three heartbeats"),
    KeySpec(
        "arq:workers",
        "sorted set",
        "worker id -> when it was last seen, Unix ms; written every fourth heartbeat",
        "members not seen for twelve heartbeats are removed",
    ),
)
