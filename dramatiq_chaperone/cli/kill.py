"""`chaperone kill`."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import click

from dramatiq_chaperone.errors import ChaperoneError

from . import formats
from .asking import RUNNING, asker, goes_on, running_job, silence
from .options import FAILED, INTERRUPTED, OK, format_option, load_settings, reading, store_options, whole_id
from .output import STATUS_STYLES, Column, write_json, write_table

if TYPE_CHECKING:
    from dramatiq_chaperone.store import Store

    Row = Mapping[str, Any]

#: Seconds between two looks at the jobs.
_LOOK_S: Final = 0.2
#: A worker looks for commands once a second, its watcher brings them once a second; so long it may take, in seconds.
_ANSWER_S: Final = 15.0
#: After the grace its process has to end, and that to be written down; seconds.
_END_S: Final = 20.0
#: The end of a run is on record after so many seconds.
_RECORD_S: Final = 5.0
#: Events of a job that are looked at.
_EVENTS: Final = 100

_COLUMNS: Final = (
    Column("Job", is_firm=True),
    Column("Actor"),
    Column("Outcome", is_firm=True),
    Column("What happened"),
)
_EPILOG = """\b
Examples:
  chaperone kill 4f9e --reason "wrong file"
  chaperone kill 4f9e --force                     whatever else its worker runs
  chaperone jobs --status running --actor import --format json | jq -r '.jobs[].job_id' | xargs chaperone kill --yes
"""


@dataclass(slots=True)
class _Kill:
    """One job that is killed."""

    job: Row
    command: str | None = None
    #: The row in the audit log.
    audit: str | None = None
    #: What the worker answered.
    answer: Row | None = None
    #: Why it would not.
    failure: str = ""
    deadline: float = 0.0
    #: A state of the job, 'refused' or 'no answer'; None while it is waited for.
    outcome: str | None = None
    detail: str = ""
    seen: set[Any] = field(default_factory=set)


@click.command(epilog=_EPILOG)
@click.argument("job_ids", nargs=-1, required=True, metavar="JOB...")
@click.option("--reason", metavar="TEXT", default="", help="Why; it is on record with the job.")
@click.option(
    "--force", is_flag=True, help="If need be end its worker process, whatever else that runs: other jobs in it are lost, and run again."
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0.1, 86_400),
    metavar="SECONDS",
    help="Wait so long for the end of a job.  [default: kill_grace and 20 s]",
)
@click.option("--yes", "is_sure", is_flag=True, help="Do not ask.")
@store_options
@format_option
def kill(job_ids: Sequence[str], reason: str, force: bool, timeout_s: float | None, is_sure: bool, output: str) -> int:
    """End running jobs for good: cancelled, dead-lettered, not retried. JOB may be the beginning of an id.

    A job is told in its next heartbeat, or interrupted. Where it ignores that for kill_grace (10 s, unless set otherwise),
    as in C code, its worker process ends, if that is replaceable and runs nothing else, or with --force. Exit code 1 when
    a job did not run, or runs on.
    """
    settings = load_settings()
    with reading(settings) as store:
        found = [whole_id(store, each) for each in dict.fromkeys(job_ids)]
        kills = [_found(store, job_id) for job_id in dict.fromkeys(found)]
        todo = [each for each in kills if each.outcome is None]
        if todo and not is_sure and sys.stdin.isatty():
            _confirm(todo, force=force)
        for each in todo:
            _ask(store, each, reason=reason, force=force)
        try:
            _wait(store, todo, timeout_s)
        except KeyboardInterrupt:
            waited_for = [each.job["job_id"] for each in todo if each.outcome is None]
            click.echo(f"\nNot waited for any more; the kill stays in place: {', '.join(waited_for)}", err=True)
            return INTERRUPTED
    _write(kills, output)
    return OK if all(each.outcome in {"cancelled", "completed", "failed", "skipped"} for each in kills) else FAILED


def _found(store: Store, job_id: str) -> _Kill:
    """The job; with its outcome where there is nothing to kill."""
    from dramatiq_chaperone.store import queries

    try:
        return _Kill(running_job(store, job_id))
    except ChaperoneError as error:
        job = queries.job_row(store, job_id) or {"job_id": job_id, "actor_name": None, "queue": None, "worker_id": None}
        return _Kill(job, outcome="refused", detail=str(error))


def _confirm(kills: Sequence[_Kill], *, force: bool) -> None:
    for each in kills:
        click.echo(f"  {each.job['job_id']}  {each.job['actor_name']}, in {each.job['worker_id']}", err=True)
    what, whose = ("this job", "its worker process") if len(kills) == 1 else (f"these {len(kills)} jobs", "their worker processes")
    more = f", and if need be {whose}, whatever else runs there" if force else ""
    click.confirm(f"Kill {what} for good{more}?", abort=True, err=True)


def _ask(store: Store, kill_: _Kill, *, reason: str, force: bool) -> None:
    from dramatiq_chaperone.store import audit, commands, queries

    job_id, who = kill_.job["job_id"], asker()
    kill_.seen |= {event["id"] for event in queries.event_page(store, job=job_id, limit=_EVENTS)[0]}
    kill_.audit = audit.begin(store, who=who, what="kill", target=job_id, origin="cli", result="asked")
    kill_.command = commands.kill(store, job_id, kill_.job["worker_id"], by=who, reason=reason, force=force, seconds=_ANSWER_S)


def _wait(store: Store, kills: Sequence[_Kill], timeout_s: float | None) -> None:
    """Until each has ended, or cannot be ended, or takes too long."""
    from dramatiq_chaperone.store import audit

    now = time.monotonic()
    for each in kills:
        each.deadline = now + (timeout_s or _ANSWER_S)
    while waiting := [each for each in kills if each.outcome is None]:
        for each in waiting:
            _look(store, each, timeout_s)
            if each.outcome is not None and each.audit is not None:
                audit.finish(store, each.audit, f"{each.outcome}: {each.detail}" if each.detail else each.outcome)
        if any(each.outcome is None for each in waiting):
            time.sleep(_LOOK_S)


def _look(store: Store, kill_: _Kill, timeout_s: float | None) -> None:
    """See how it stands with one job."""
    if kill_.answer is None and not kill_.failure:
        _hear(store, kill_, timeout_s)
    _follow(store, kill_)
    if kill_.outcome is not None or time.monotonic() < kill_.deadline:
        return
    if kill_.answer is not None:
        kill_.outcome, kill_.detail = "running", "it is still being stopped"
    else:
        kill_.outcome, kill_.detail = ("refused", kill_.failure) if kill_.failure else ("no answer", _silence(store, kill_, timeout_s))


def _hear(store: Store, kill_: _Kill, timeout_s: float | None) -> None:
    """Take its worker's answer, if there is one."""
    from dramatiq_chaperone.store import commands

    outcome, detail = commands.answer(store, str(kill_.command))
    now = time.monotonic()
    if outcome == "done":
        kill_.answer = detail
        if timeout_s is None:
            kill_.deadline = now + float(detail["grace_s"]) + _END_S
    elif outcome == "expired":
        kill_.deadline = now
    elif outcome is not None:  # most often its run has just ended: that is on record soon
        kill_.failure, kill_.deadline = str((detail or {}).get("reason") or "its worker could not"), min(kill_.deadline, now + _RECORD_S)


def _silence(store: Store, kill_: _Kill, timeout_s: float | None) -> str:
    from dramatiq_chaperone.store import queries

    worker_id = kill_.job["worker_id"]
    return silence(queries.worker_of(store, worker_id), worker_id, timeout_s or _ANSWER_S)


def _follow(store: Store, kill_: _Kill) -> None:
    """Tell each step of it on a terminal, and note the last one."""
    from dramatiq_chaperone.store import queries

    job_id = kill_.job["job_id"]
    row = queries.job_row(store, job_id)
    events, _ = queries.event_page(store, job=job_id, since=kill_.job["started_at"], limit=_EVENTS)
    for event in reversed(events):
        step = _step(event)
        if step is None or event["id"] in kill_.seen:
            continue
        kill_.seen.add(event["id"])
        if sys.stderr.isatty():
            click.echo(f"{job_id}: {step}", err=True)
        if goes_on(event):
            kill_.outcome, kill_.detail = "running", f"{step}; --force ends its worker process all the same"
    before = kill_.job["run_id"]
    run_id = before if kill_.answer is None else kill_.answer["run_id"]
    if row is not None and row["run_id"] == before != run_id:
        return  # a later run was stopped than the one on record, which lags behind
    if row is None or row["run_id"] != run_id or row["status"] not in RUNNING:
        kill_.outcome, kill_.detail = ("gone", "") if row is None else (str(row["status"]), _how(row["status"], events))


def _step(event: Row) -> str | None:
    """A rung of the ladder, in words; None for any other event."""
    data = event["data"] or {}
    match event["name"]:
        case "JobStopRequested":
            return "it is asked to stop"
        case "JobStopDelivered":
            return "it was told in a heartbeat" if data.get("means") == "ask" else "it was interrupted"
        case "JobStopIgnored":
            return f"it ignores that for {formats.seconds(data.get('waited'))}; what follows: {data.get('consequence')}"
    return None


def _how(status: str, events: Sequence[Row]) -> str:
    """What ended it."""
    killed = next((event["data"] or {} for event in events if event["name"] == "JobKilled"), None)
    if killed is None:
        if status == "pending":
            return "its run ended before it was stopped; it waits for its next one"
        return "it ended before it was stopped" if status in {"completed", "failed", "skipped"} else ""
    how = {"ask": "told in a heartbeat", "interrupt": "interrupted", "process": "its process was ended"}
    return how.get(str(killed.get("means")), "")


def _write(kills: Sequence[_Kill], output: str) -> None:
    if output == "json":
        names = ("job_id", "actor_name", "queue", "worker_id")
        write_json(
            {"jobs": [{**{name: each.job[name] for name in names}, "outcome": each.outcome, "detail": each.detail} for each in kills]}
        )
        return
    rows = [(str(each.job["job_id"]), formats.text(each.job["actor_name"]), str(each.outcome), formats.text(each.detail)) for each in kills]
    write_table(_COLUMNS, rows, styles=STATUS_STYLES)
