"""What commands that ask a worker have in common."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from dramatiq_chaperone.errors import ChaperoneError

from . import formats

if TYPE_CHECKING:
    from dramatiq_chaperone.store import Store

    Row = Mapping[str, Any]

#: Seconds between two looks for the answer.
LOOK_S: Final = 0.05
#: The states of a job that a worker has in hand.
RUNNING: Final = ("running", "stalled")


def running_job(store: Store, job_id: str) -> Row:
    """The job, which runs in a worker that lives.  Raises ChaperoneError."""
    from dramatiq_chaperone.store import queries

    job = queries.job_row(store, job_id)
    if job is None or job["status"] not in RUNNING:
        raise ChaperoneError(f"Job {job_id} does not run: it is {job['status'] if job else 'gone'}. `chaperone job {job_id}` tells more.")
    worker = queries.worker_of(store, job["worker_id"]) if job["worker_id"] else None
    if worker is not None and worker["status"] != "running":
        cause = f" ({worker['exit_cause']})" if worker["exit_cause"] else ""
        raise ChaperoneError(f"The worker of job {job_id} is gone: {job['worker_id']} is {worker['status']}{cause}.")
    return job


def goes_on(event: Row) -> str | None:
    """What follows on a stop that a job ignores, where nothing does; None for any other event."""
    consequence = str((event["data"] or {}).get("consequence"))
    return consequence if event["name"] == "JobStopIgnored" and consequence.startswith("none") else None


def silence(worker: Row | None, worker_id: str, timeout_s: float) -> str:
    """Why there is no answer of a worker, in words."""
    heard = f"it was heard of {formats.ago(worker['last_heartbeat_at'], datetime.now(UTC))}" if worker else "it is not on record"
    return (
        f"Worker {worker_id} did not answer within {formats.seconds(timeout_s)}; {heard}.\n"
        "It may be gone, or so busy that a longer --timeout helps; `chaperone workers` lists those that live."
    )


def asker() -> str:
    """Who asks, for the record."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may give a user that has no name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"
