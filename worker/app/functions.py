"""Builds the list of jobs and crons that a worker runs: ours, and the operator's by name."""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arq.worker import Function, Worker, func

from cache.logs import get_logger
from settings import SettingsError, variable_name, why_untrusted
from worker.app.options import JOB_MARGIN_S
from worker.app.patience import patient
from worker.engine.cron_expression import CronExpression, cron_job
from worker.llm.after import delete_llm_files, send_llm_callback
from worker.llm.direct import run_llm_request
from worker.llm.jobs import flush_llm_batches, flush_llm_group, run_llm_batch
from worker.llm.prepared import (
    DELETE_LLM_FILES,
    FLUSH_LLM_BATCHES,
    FLUSH_LLM_GROUP,
    RUN_LLM_BATCH,
    RUN_LLM_REQUEST,
    SEND_LLM_CALLBACK,
)
from worker.llm.rescuer import RESCUE_LLM, RESCUE_LLM_CRON, rescue_llm
from worker.terminal import printable
from worker.webhooks.attempts import REPORT_WEBHOOK
from worker.webhooks.client import DELIVER_WEBHOOK
from worker.webhooks.jobs import deliver_webhook, report_webhook
from worker.webhooks.rescuer import RESCUE_CRON, RESCUE_WEBHOOKS, rescue_webhooks

if TYPE_CHECKING:
    from settings import Settings

log = get_logger(__name__)

# What another settings class decides itself.
_OF_OUR_CLASS = {
    "redis_url", "queue_allow_eviction", "queue_dead_max", "queue_dead_max_age_s", "webhook_on_end",
    "worker_crons", "worker_functions", "worker_job_timeout_s", "worker_keep_result_s",
    "worker_lease_s", "worker_max_jobs", "worker_max_tries", "worker_park_s", "worker_retry_base_s",
    "worker_retry_cap_s",
}  # fmt: skip

# These jobs decide themselves when to give up, so arq's limit on tries must not apply.
_NO_LIMIT = 1_000_000


def build_functions(settings: Settings) -> list[Function]:
    """Our jobs, and the operator's (LETTA_WORKER_FUNCTIONS) under their function names."""
    http_s = settings.llm_timeout_s + JOB_MARGIN_S
    ours = [
        func(
            patient(deliver_webhook),
            name=DELIVER_WEBHOOK,
            max_tries=_NO_LIMIT,
            timeout=settings.webhook_timeout_s + JOB_MARGIN_S,
        ),
        func(patient(report_webhook), name=REPORT_WEBHOOK),
        func(patient(rescue_webhooks), name=RESCUE_WEBHOOKS),
        func(patient(flush_llm_batches), name=FLUSH_LLM_BATCHES),
        func(patient(flush_llm_group), name=FLUSH_LLM_GROUP),
        func(patient(run_llm_batch), name=RUN_LLM_BATCH, max_tries=_NO_LIMIT, timeout=3600),
        func(patient(run_llm_request), name=RUN_LLM_REQUEST, max_tries=_NO_LIMIT, timeout=http_s),
        func(patient(rescue_llm), name=RESCUE_LLM),
        func(patient(send_llm_callback), name=SEND_LLM_CALLBACK),
        func(patient(delete_llm_files), name=DELETE_LLM_FILES),
    ]
    paths = [path.strip() for path in settings.worker_functions.split(",") if path.strip()]
    return ours + [func(load_coroutine(path, variable_name("worker_functions"))) for path in paths]


def warn_about_unknown_jobs(settings: Settings, functions: list[Function]) -> None:
    """Log LETTA_WEBHOOK_ON_END when no function here has that name: another worker must have it."""
    name, names = settings.webhook_on_end, [function.name for function in functions]
    if name and name not in names:
        nearest = "".join(get_close_matches(name, names, n=1))
        variable = variable_name("webhook_on_end")
        log.warning("settings.unknown_job", variable=variable, job=name, nearest=nearest)


def warn_about_class(settings: Settings, found: type) -> None:
    """Log attributes of a settings class that are misspelled, and variables that it replaces."""
    if "build_engine" in vars(found):  # our own class
        return
    accepted = inspect.signature(Worker).parameters
    for name in vars(found).keys() - accepted.keys():
        nearest = get_close_matches(name, accepted, n=1, cutoff=0.82)
        if nearest:
            variable = f"{found.__qualname__}.{name}"
            log.warning("settings.unknown_variable", variable=variable, nearest=nearest[0])
    for field in sorted(settings.model_fields_set & _OF_OUR_CLASS):
        reason = "--settings names a class, which has its own"
        log.warning("settings.no_effect", variable=variable_name(field), reason=reason)


def build_crons(settings: Settings) -> list[CronExpression]:
    """Our cron jobs, and the operator's (LETTA_WORKER_CRONS)."""
    crons = [
        _cron(
            patient(flush_llm_batches),
            f"cron:{FLUSH_LLM_BATCHES}",
            settings.llm_batch_cron,
            "llm_batch_cron",
        ),
        cron_job(patient(rescue_webhooks), f"cron:{RESCUE_WEBHOOKS}", RESCUE_CRON, quiet=True),
        cron_job(patient(rescue_llm), f"cron:{RESCUE_LLM}", RESCUE_LLM_CRON, quiet=True),
    ]
    for part in filter(None, (part.strip() for part in settings.worker_crons.split(";"))):
        path, _, expression = part.partition("=")
        coroutine = load_coroutine(path.strip(), variable_name("worker_crons"))
        crons.append(_cron(coroutine, f"cron:{path.strip()}", expression.strip(), "worker_crons"))
    return crons


def _cron(coroutine: Any, name: str, expression: str, field: str) -> CronExpression:
    try:
        return cron_job(coroutine, name, expression)
    except ValueError as exc:
        raise SettingsError(
            f"{variable_name(field)}: {exc}; accepted: five cron fields, or six with seconds first"
        ) from None


def load_coroutine(path: str, named_by: str) -> Any:
    """
    Load the coroutine function `package.module:coroutine`, also from the working directory.

    Raises:
        SettingsError: it cannot be imported, does not exist, or is not a coroutine function.
    """
    module, _, name = path.partition(":")
    found = _load(module, name, path, named_by)
    if not asyncio.iscoroutinefunction(found):
        raise SettingsError(f"{named_by}: {path} is not a coroutine function (async def)")
    return found


def _load(module: str, name: str, path: str, named_by: str) -> Any:
    here = os.getcwd()  # noqa: PTH109  (compared with sys.path's text)
    reason = why_untrusted(Path(here))
    if reason is None and here not in sys.path:
        sys.path.append(here)
    try:
        return getattr(import_module(module), name)
    except Exception as exc:  # noqa: BLE001  (whatever the operator's module raises at import)
        text = f"{named_by}: cannot load {path}: {type(exc).__name__}: {exc}"
        if reason is not None:
            text += f"; the working directory is not searched: {reason}"
        raise SettingsError(printable(text)) from None


def load_settings_class(path: str) -> type:
    """
    Load the settings class `package.module.Class`, in the form of arq's command.

    Raises:
        SettingsError: it cannot be imported, or is not a class with `functions` or `cron_jobs`.
    """
    module, _, name = path.rpartition(".")
    found = _load(module, name, path, "--settings")
    if not isinstance(found, type) or not {"functions", "cron_jobs"} & set(vars(found)):
        raise SettingsError(
            f"--settings: {path} is not an arq settings class (functions or cron_jobs)"
        )
    return found
