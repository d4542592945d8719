"""`chaperone stuck`."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from . import formats
from .asking import RUNNING, asker, goes_on
from .options import FAILED, OK, Unclear, format_option, load_settings, reading, store_options
from .output import Column, write_json, write_table

if TYPE_CHECKING:
    from dramatiq_chaperone.store import Store

    Row = Mapping[str, Any]

#: A worker looks for commands once a second, and its answer takes a second more; one that is frozen gives none.
ANSWER_S: Final = 10.0
_LOOK_S: Final = 0.1

_COLUMNS: Final = (
    Column("Job", is_firm=True),
    Column("Actor", is_firm=True),
    Column("Stuck for", is_number=True),
    Column("Heartbeat", is_firm=True),
    Column("Missed", is_number=True),
    Column("Started", is_extra=True),
    Column("Worker", is_extra=True),
    Column("Diagnosis"),
)

_EPILOG = """\b
Examples:
  chaperone stuck
  chaperone stuck --threshold 300                 also those that are not called stuck yet
  chaperone stuck --fail || notify-send stuck     1 if there are any
  chaperone stuck --requeue --yes                 stop each, and have it run again
  chaperone stuck --format json | jq -r '.jobs[].diagnosis'
"""


@click.command(epilog=_EPILOG)
@click.option(
    "--threshold",
    "threshold_s",
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="Those without a heartbeat for so long, of the jobs that owe some.  [default: those that are stuck by their own contract]",
)
@click.option("--kill", "is_kill", is_flag=True, help="Have their workers end them.")
@click.option("--requeue", "is_requeue", is_flag=True, help="Have their workers stop them, and their messages run once more.")
@click.option("--yes", "is_sure", is_flag=True, help="Do not ask.")
@click.option("--fail", "is_fail", is_flag=True, help="Exit code 1 if there are any.")
@store_options
@format_option
def stuck(*, threshold_s: float | None, is_kill: bool, is_requeue: bool, is_sure: bool, is_fail: bool, output: str) -> int:
    """List the jobs that are stuck, those that are so for longest first, with the reason as far as it could be seen.

    A job owes heartbeats once its actor sets heartbeat_interval, or it has sent one; no other is ever called stuck.
    """
    if is_kill and is_requeue:
        raise Unclear("--kill and --requeue exclude each other.")
    settings = load_settings()
    from dramatiq_chaperone.store import queries

    action = "kill" if is_kill else "requeue" if is_requeue else None
    with reading(settings) as store:
        now = datetime.now(UTC)
        jobs = [_picked(job, now) for job in queries.stuck_jobs(store, now=now, threshold_s=threshold_s)]
        if action is not None and jobs and _is_wanted(action, jobs, is_sure=is_sure):
            _carry_out(store, action, jobs)
    if output == "json":
        write_json({"jobs": jobs, "next": None})
    elif jobs:
        write_table([*_COLUMNS, *([Column("Answer", is_firm=True)] if "answer" in jobs[0] else [])], [_row(job, now) for job in jobs])
    else:
        quiet = "No job is stuck." if threshold_s is None else f"No job that owes heartbeats is quiet for {formats.seconds(threshold_s)}."
        click.echo(quiet, err=True)
    has_failed = any(job.get("answer", "done") != "done" for job in jobs)
    return FAILED if has_failed or (is_fail and jobs) else OK


def _picked(job: Row, now: datetime) -> dict[str, Any]:
    heard = job["last_heartbeat_at"] or job["started_at"]
    names = ("job_id", "run_id", "actor_name", "queue", "status", "started_at", "last_heartbeat_at", "heartbeat_interval")
    return {
        **{name: job[name] for name in (*names, "missed_heartbeats", "worker_id", "diagnosis", "cause")},
        "stuck_for_s": None if heard is None else round(max(0.0, (now - heard).total_seconds()), 1),
    }


def _row(job: Row, now: datetime) -> tuple[str, ...]:
    cells = (
        str(job["job_id"]),
        formats.text(job["actor_name"]),
        formats.seconds(job["stuck_for_s"]),
        formats.ago(job["last_heartbeat_at"], now) if job["last_heartbeat_at"] else "none yet",
        formats.text(job["missed_heartbeats"]),
        formats.clock(job["started_at"]),
        formats.text(job["worker_id"]),
        formats.text(job["diagnosis"]),
    )
    return (*cells, job["answer"]) if "answer" in job else cells


def _is_wanted(action: str, jobs: Sequence[Row], *, is_sure: bool) -> bool:
    if is_sure:
        return True
    if not sys.stdin.isatty():
        raise click.UsageError(f"--{action} without a terminal needs --yes.")
    for job in jobs:
        click.echo(f"{job['job_id']}  {job['actor_name']}: {job['diagnosis'] or 'no diagnosis'}", err=True)
    what = "Kill" if action == "kill" else "Stop, and run again,"
    return click.confirm(f"{what} {'this job' if len(jobs) == 1 else f'these {len(jobs)} jobs'}?", err=True)


class _Asked:
    """A job whose worker was asked to stop it."""

    def __init__(self, job: dict[str, Any], command: str, audit: str, seen: frozenset[Any]) -> None:
        self.job, self.command, self.audit = job, command, audit
        #: Of an earlier stop, by their ids: the clock of the worker is not ours.
        self.seen = seen
        self.is_accepted = False
        self.deadline = time.monotonic() + ANSWER_S


def _carry_out(store: Store, action: str, jobs: Sequence[dict[str, Any]]) -> None:
    """Ask the workers, wait until each run has ended or goes on all the same, and put what came of it into its job."""
    from dramatiq_chaperone.store import audit, commands

    by = asker()
    waiting = []
    for job in jobs:
        row = audit.begin(store, who=by, what=f"{action} stuck job", target=job["job_id"], origin="cli", result="asked")
        arguments = {"job_id": job["job_id"], "run_id": job["run_id"], "by": by}
        seen = frozenset(event["id"] for event in _ignored(store, job))
        waiting.append(_Asked(job, commands.issue(store, job["worker_id"], action, arguments, issued_by=by), row, seen))
    while waiting:
        for each in list(waiting):
            answer = _answer(store, each)
            if answer is not None:
                each.job["answer"] = answer
                audit.finish(store, each.audit, answer)
                waiting.remove(each)
        time.sleep(_LOOK_S)


def _answer(store: Store, asked: _Asked) -> str | None:
    """What came of it; None: it is still on its way."""
    from dramatiq_chaperone.store import commands

    if not asked.is_accepted:
        outcome, detail = commands.answer(store, asked.command)
        if outcome == "done":
            asked.is_accepted, asked.deadline = True, time.monotonic() + float((detail or {}).get("grace_s", 0)) + ANSWER_S
        elif outcome is not None:
            reason = (detail or {}).get("reason")
            return f"{outcome}: {reason}" if reason else outcome
    if asked.is_accepted and (end := _end(store, asked)) is not None:
        return end
    if time.monotonic() < asked.deadline:
        return None
    return "it is still being stopped" if asked.is_accepted else "no answer yet"


def _end(store: Store, asked: _Asked) -> str | None:
    """Whether its run is over, or goes on for good."""
    from dramatiq_chaperone.store import queries

    job = asked.job
    row = queries.job_row(store, job["job_id"])
    if row is None or row["run_id"] != job["run_id"] or row["status"] not in RUNNING:
        return "done"
    consequences = (goes_on(event) for event in _ignored(store, job) if event["id"] not in asked.seen)
    return next((f"runs on: {each}" for each in consequences if each), None)


def _ignored(store: Store, job: Row) -> list[Row]:
    from dramatiq_chaperone.store import queries

    return list(queries.event_page(store, job=job["job_id"], name="JobStopIgnored", since=job["started_at"])[0])
