"""Options that people build themselves have the defaults of the settings."""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass, replace

import pytest

from cache.connection.pool import PoolOptions
from cache.opening import cache_options
from cache.options import CacheOptions
from settings import Settings
from worker.app.options import QueueOptions, pool_options
from worker.app.service import child_options, engine_options
from worker.app.supervision import supervisor_options
from worker.engine import EngineOptions, RetryPolicy
from worker.llm.options import BatchOptions, FlushRules, LLMOptions, Retention
from worker.llm.rate_policy import RateLimits
from worker.process.child import ChildOptions
from worker.process.policy import SupervisorOptions
from worker.queue.options import JobOptions
from worker.webhooks.limits import EndpointLimits
from worker.webhooks.options import DeliveryOptions, WebhookOptions
from worker.webhooks.policy import RetrySchedule

pytestmark = pytest.mark.unit

SETTINGS = Settings()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (CacheOptions(), cache_options(SETTINGS)),
        (PoolOptions(), pool_options(SETTINGS)),
        (EngineOptions(retry=RetryPolicy()), engine_options(SETTINGS)),
        (SupervisorOptions(), supervisor_options(SETTINGS)),
        (ChildOptions(), replace(child_options(SETTINGS), configuration_errors=())),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_default_is_the_default_of_its_setting(ours: object, theirs: object) -> None:
    assert ours == theirs


@pytest.mark.parametrize(
    "options",
    [
        BatchOptions,
        DeliveryOptions,
        FlushRules,
        JobOptions,
        LLMOptions,
        EndpointLimits,
        QueueOptions,
        RateLimits,
        Retention,
        RetrySchedule,
        WebhookOptions,
    ],
)
def test_options_that_only_settings_fill_have_no_defaults(options: type) -> None:
    assert is_dataclass(options)
    found = [f for f in fields(options) if (f.default, f.default_factory) != (MISSING, MISSING)]
    assert found == []
