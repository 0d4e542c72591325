"""Encodes the jobs of the LLM feature for the scripts that store them."""

from __future__ import annotations

from worker.llm.grouping import Group
from worker.queue.encoder import JobEncoder, PreparedJob
from worker.webhooks.secrets import DeliverySecrets

FLUSH_LLM_BATCHES = "flush_llm_batches"
FLUSH_LLM_GROUP = "flush_llm_group"
# Ids of the flushes of groups whose oldest request has waited long enough: this, and the request's id.
AGE_FLUSH = "llm:age:"
RUN_LLM_BATCH = "run_llm_batch"
RUN_LLM_REQUEST = "run_llm_request"
DELETE_LLM_FILES = "delete_llm_files"
SEND_LLM_CALLBACK = "send_llm_callback"


class PreparedJobs:
    """
    Prepares jobs by their purpose. A job's id derives from its request or batch, so
    each job is stored once.
    """

    def __init__(self, encoder: JobEncoder, secrets: DeliverySecrets) -> None:
        self._encoder = encoder
        self._secrets = secrets

    def batch(self, batch_id: str) -> PreparedJob:
        """Runs a batch."""
        body = self._encoder.encode(RUN_LLM_BATCH, [batch_id])
        return PreparedJob(f"llm:batch:{batch_id}", body)

    def single(self, request_id: str) -> PreparedJob:
        """Answers one request by a direct call."""
        body = self._encoder.encode(RUN_LLM_REQUEST, [request_id])
        return PreparedJob(f"llm:single:{request_id}", body)

    def files(self, batch_id: str) -> PreparedJob:
        """Deletes an ended batch's files at the provider."""
        body = self._encoder.encode(DELETE_LLM_FILES, [batch_id])
        return PreparedJob(f"llm:files:{batch_id}", body)

    def flush(self, job_id: str, group: Group, *, full_only: bool = False) -> PreparedJob:
        """Seals a group's waiting requests; `full_only`: only those that fill a batch."""
        row = [group.provider, group.endpoint, group.model]
        kwargs = {"full_only": True} if full_only else {}
        # The requests of a group have many callers, and this body is used again.
        body = self._encoder.encode(FLUSH_LLM_GROUP, row, kwargs, traced=False)
        return PreparedJob(job_id, body)

    def callback_body(self, url: str) -> bytes:
        """The body of the job that sends the webhook of a request's end; the job's id names the request."""
        stored = self._secrets.hide_url(url, owner=SEND_LLM_CALLBACK)
        return self._encoder.encode(SEND_LLM_CALLBACK, [stored])

    def callback_url(self, stored: str | bytes) -> str:
        """
        The URL in the body of such a job.

        Raises:
            InvalidArgument: it was sealed with a key that this process lacks.
        """
        return self._secrets.open_url(stored, owner=SEND_LLM_CALLBACK)
