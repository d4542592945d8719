"""`chaperone stack`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from dramatiq_chaperone.errors import ChaperoneError

from . import formats
from .asking import LOOK_S, asker, running_job, silence
from .options import OK, format_option, load_settings, reading, store_options, whole_id
from .output import write_heading, write_json, write_pairs

if TYPE_CHECKING:
    from dramatiq_chaperone.store import Store

    Row = Mapping[str, Any]

_EPILOG = """\b
Examples:
  chaperone stack 4f9e
  chaperone stack 4f9e --timeout 30               of a worker that is very busy
  chaperone stack 4f9e --format json | jq -r .stack[]
"""


@click.command(epilog=_EPILOG)
@click.argument("job_id", metavar="JOB")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0.1, 600),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="Wait so long for the answer.",
)
@store_options
@format_option
def stack(job_id: str, timeout_s: float, output: str) -> int:
    """Show where a running job is in its code, now. JOB may be the beginning of its id, if no other begins like that.

    Its worker is asked, through the store; it takes up to three seconds. Exit code 1 when the job does not run, its
    worker is gone, or does not answer.
    """
    settings = load_settings()
    with reading(settings) as store:
        job = running_job(store, whole_id(store, job_id))
        lines, diagnosis = _asked(store, job, timeout_s)
    if output == "json":
        picked = {name: job[name] for name in ("job_id", "actor_name", "queue", "status", "started_at", "worker_id", "thread")}
        write_json({**picked, "stack": lines, "diagnosis": diagnosis})
        return OK
    now = datetime.now(UTC)
    ran = formats.ago(job["started_at"], now)
    pairs = [
        ("Job", job["job_id"]),
        ("Actor", job["actor_name"]),
        ("Status", f"{job['status']}, began {ran}"),
        ("Worker", job["worker_id"]),
        *([("Diagnosis", diagnosis)] if diagnosis else []),
    ]
    write_pairs([(name, formats.text(value)) for name, value in pairs])
    write_heading("Its stack, the innermost call last")
    click.echo("\n".join(lines) or "The thread has just ended.")
    return OK


def _asked(store: Store, job: Row, timeout_s: float) -> tuple[list[str], str | None]:
    """The stack, as its worker tells it, and what it makes of it.  Raises ChaperoneError."""
    from dramatiq_chaperone.store import commands, queries

    job_id, worker_id = job["job_id"], job["worker_id"]
    asked = commands.issue(store, worker_id, "stack", {"job_id": job_id}, issued_by=asker(), seconds=timeout_s)
    deadline = time.monotonic() + timeout_s
    while True:
        outcome, detail = commands.answer(store, asked)
        if outcome == "done":
            return [str(line) for line in detail["stacks"][job_id]], detail.get("diagnoses", {}).get(job_id)
        if outcome == "refused":
            now = queries.job_row(store, job_id)
            raise ChaperoneError(f"Job {job_id} does not run any more: it is {now['status'] if now else 'gone'}.")
        if outcome == "failed":
            raise ChaperoneError(f"Worker {worker_id} could not tell: {(detail or {}).get('reason')}")
        if outcome == "expired" or time.monotonic() > deadline:
            raise ChaperoneError(silence(queries.worker_of(store, worker_id), worker_id, timeout_s))
        time.sleep(LOOK_S)
