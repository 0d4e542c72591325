"""
Names every key, channel and TTL of the queue, webhooks and LLM requests.

All keys begin with arq's own prefix: stock arq clients and `arq --check` can
read them, and one ACL pattern covers them. On a cluster they begin with `{arq}:`
instead, which stock clients cannot. docs/keys.md says what each key holds
and what bounds it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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

    @property
    def dead_queues(self) -> str:
        return f"{self.prefix}dead-queues"

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
