"""A caller's trace goes on in its jobs, by OpenTelemetry's SDK in a process of its own."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from tests.support.servers import run
from worker import tracing

pytestmark = pytest.mark.integration

Span = dict[str, Any]


@pytest.fixture(scope="module")
def found(valkey_url: str) -> dict[str, Any]:
    done = run([sys.executable, "-m", "tests.support.tracing_run", valkey_url])
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture
def spans(found: dict[str, Any]) -> list[Span]:
    spans: list[Span] = found["spans"]
    return spans


def one(spans: list[Span], name: str, message: str | None = None) -> Span:
    (found,) = (
        span
        for span in spans
        if span["name"] == name
        and message in {None, span["attributes"].get("messaging.message.id")}
    )
    return found


def test_a_jobs_run_is_a_part_of_its_callers_trace(spans: list[Span]) -> None:
    request = one(spans, "request")
    sent = one(spans, "send default", "first")
    ran = one(spans, "process default", "first")
    assert sent["parent"] == request["id"]
    assert ran["parent"] == sent["id"]
    assert ran["trace"] == request["trace"]
    assert ran["id"] in {span["parent"] for span in spans if span["name"] == "inside"}
    assert (sent["kind"], ran["kind"]) == ("PRODUCER", "CONSUMER")


@pytest.mark.parametrize("message", ["then", "fails"])
def test_jobs_that_follow_and_many_at_once_are_too(spans: list[Span], message: str) -> None:
    assert one(spans, "process default", message)["trace"] == one(spans, "request")["trace"]


def test_a_webhook_is_sent_in_its_callers_trace(spans: list[Span]) -> None:
    assert one(spans, "send default", "webhook:hook")["trace"] == one(spans, "request")["trace"]


def test_an_urgent_request_is_traced_and_a_shared_batch_is_not(
    found: dict[str, Any],
) -> None:
    traced = found["traced"]
    assert (traced["run_llm_request"], traced["flush_llm_group"]) == (True, False)


def test_names_and_attributes_are_those_of_the_conventions(spans: list[Span]) -> None:
    assert one(spans, "process default", "first")["attributes"] == {
        "messaging.system": "letta_redis",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "default",
        "messaging.message.id": "first",
        "letta_redis.task": "inside",
        "letta_redis.try": 1,
    }
    assert one(spans, "send")["attributes"]["messaging.batch.message_count"] == 1


def test_a_failure_shows_its_class_and_not_its_text(spans: list[Span]) -> None:
    failed = one(spans, "process default", "fails")
    assert (failed["status"], failed["attributes"]["error.type"]) == ("ERROR", "ValueError")
    assert "hunter2" not in "".join(span["text"] for span in spans)


def test_a_run_that_asks_for_another_try_is_no_failure(spans: list[Span]) -> None:
    tries = [span for span in spans if span["attributes"].get("messaging.message.id") == "again"]
    tries = [span for span in tries if span["kind"] == "CONSUMER"]
    assert [span["attributes"]["letta_redis.try"] for span in tries] == [1, 2]
    assert {span["status"] for span in tries} == {"UNSET"}


@pytest.mark.parametrize("message", ["at_start", "at_end"])
def test_a_broken_span_processor_costs_no_job(spans: list[Span], message: str) -> None:
    # Each of its two runs would leave a span "inside".
    sent = [span for span in spans if span["name"] == "ran"]
    assert [span["attributes"]["job"] for span in sent].count(message) == 1


def test_a_trace_that_cannot_be_read_is_ignored(spans: list[Span]) -> None:
    ran = one(spans, "process default", "alone")
    assert (ran["parent"], ran["status"]) == (None, "UNSET")


def test_without_a_provider_there_is_nothing_to_carry() -> None:
    assert not tracing.is_on()
    assert tracing.carried() == {}
