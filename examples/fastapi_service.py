"""
Uses the queue in FastAPI: the application's lifespan opens it, and routes get it by `Depends`.

    .venv/bin/python -m examples.fastapi_service

The service runs under any ASGI server: `uvicorn examples.fastapi_service:app`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import httpx
from fastapi import Depends, FastAPI, HTTPException, Query, Request
from pydantic import BaseModel

from examples.running import run, serving
from letta_redis import JobFailed, JobQueue, QueueUnavailable, ResultTimeout, open_queue


async def send_welcome(_ctx: dict[str, Any], address: str) -> str:
    """Run in a worker process, so the request does not wait for the mail server."""
    return f"welcome mail sent to {address}"


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with open_queue() as queue:
        app.state.queue = queue
        yield


app = FastAPI(lifespan=lifespan)


def get_queue(request: Request) -> JobQueue:
    queue: JobQueue = request.app.state.queue
    return queue


Jobs = Annotated[JobQueue, Depends(get_queue)]


class Signup(BaseModel):
    address: str


class Accepted(BaseModel):
    job_id: str


@app.post("/signups", status_code=202)
async def sign_up(signup: Signup, queue: Jobs) -> Accepted:
    try:
        # A repeated request gets the same job until the mail is sent.
        job = await queue.enqueue(
            "send_welcome", signup.address, unique=f"welcome:{signup.address}"
        )
    except QueueUnavailable:
        raise HTTPException(503, "try again later", headers={"Retry-After": "5"}) from None
    return Accepted(job_id=job.id)


@app.get("/jobs/{job_id}")
async def read_job(
    job_id: str, queue: Jobs, wait_s: Annotated[float, Query(gt=0, le=60)] = 1.0
) -> dict[str, Any]:
    job = queue.jobs.get(job_id)
    status = await job.status()
    if status == "not_found":
        raise HTTPException(404, "no such job, or its result is no longer kept")
    try:
        return {"status": "complete", "result": await job.result(timeout_s=wait_s)}
    except ResultTimeout:
        return {"status": status}
    except JobFailed as exc:
        return {"status": "failed", "error": str(exc)}


async def main() -> None:
    """Start the service and send requests to it."""
    async with serving(app) as url, httpx.AsyncClient(base_url=url, timeout=90) as browser:
        accepted = await browser.post("/signups", json={"address": "ada@example.com"})
        print(accepted.status_code, list(accepted.json()))
        found = await browser.get(f"/jobs/{accepted.json()['job_id']}", params={"wait_s": 60})
        print(found.status_code, found.json())
        missing = await browser.get("/jobs/unknown")
        print(missing.status_code, missing.json()["detail"])


if __name__ == "__main__":
    run(main, worker_functions="examples.fastapi_service:send_welcome")
