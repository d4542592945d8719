"""`chaperone health`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import click

from dramatiq_chaperone.errors import ChaperoneError

from . import formats, job_page
from .options import FAILED, OK, format_option, load_settings, reading, store_options, whole_id
from .output import STATUS_STYLES, Column, is_terminal, write_heading, write_json, write_pairs, write_table

Row = Mapping[str, Any]

#: Jobs that are listed, and records of one job.
_JOBS: Final = 1000
_CHECKS: Final = 20

COLUMNS: Final = (
    Column("Job", is_firm=True),
    Column("Actor"),
    Column("Status", is_firm=True),
    Column("Health", is_firm=True),
    Column("Last check", is_firm=True),
    Column("Running", is_number=True),
    Column("Reason"),
    Column("Worker", is_extra=True),
)

_EPILOG = """\b
Examples:
  chaperone health                       running jobs that something speaks against
  chaperone health --all                 every running job
  chaperone health --unhealthy --fail    for a script: exit code 1 if any is unhealthy
  chaperone health 4f9e                  one job: its checks, and the limits that it has passed
"""


@click.command(epilog=_EPILOG)
@click.argument("job_id", metavar="[JOB]", required=False)
@click.option("--all", "is_all", is_flag=True, help="Every running job, those that are well too.")
@click.option("--unhealthy", "is_unhealthy", is_flag=True, help="Only those that are unhealthy, not the degraded ones.")
@click.option("--fail", "fails", is_flag=True, help="Exit code 1 if a job is unhealthy.")
@store_options
@format_option
def health(job_id: str | None, is_all: bool, is_unhealthy: bool, fails: bool, output: str) -> int:
    """Tell how running jobs are: degraded, unhealthy, or unknown, and why. JOB may be the beginning of its id."""
    if sum((job_id is not None, is_all, is_unhealthy)) > 1:
        raise click.UsageError("JOB, --all and --unhealthy exclude each other.")
    settings = load_settings()
    from dramatiq_chaperone.store import queries

    now = datetime.now(UTC)
    with reading(settings) as store:
        if job_id is not None:
            detail = queries.job_detail(store, whole_id(store, job_id))
            if detail is None:
                raise ChaperoneError(f"Job {job_id} was pruned just now.")
            heard = queries.heard_of(store, str(detail["job_id"]), now=now)
            return _one({**detail, **heard}, now, output=output, fails=fails)
        picked = () if is_all else ("unhealthy",) if is_unhealthy else ("degraded", "unhealthy", "unknown")
        found = queries.running_health(store, now=now, among=picked, limit=_JOBS)
        counts = queries.health_counts(store, now=now)
    if output == "json":
        write_json({"jobs": [_data(job, now) for job in found], "counts": counts})
    else:
        if found:
            write_table(COLUMNS, [row(job, now, is_short=is_terminal()) for job in found], styles=STATUS_STYLES)
        click.echo(summary(counts), err=not found)
    return FAILED if fails and counts["unhealthy"] else OK


def of(job: Row) -> str:
    """The health of a job; that of one that has ended is the last."""
    if job["status"] == "stalled":
        return "unhealthy"
    if job.get("is_unseen") and job["health"] not in {"degraded", "unhealthy"}:
        return "unknown"
    return str(job["health"] or ("healthy" if job["status"] == "running" else "unknown"))


def row(job: Row, now: datetime, *, is_short: bool) -> tuple[str, ...]:
    """A job in the list."""
    check = job["check"]
    job_id = str(job["job_id"])
    return (
        formats.short_id(job_id) if is_short else job_id,
        formats.text(job["actor_name"]),
        str(job["status"]),
        of(job),
        "never" if check is None else formats.ago(check["created_at"], now),
        formats.seconds(job_page.took_s(job, now)),
        formats.text(reason(job, now)),
        formats.text(job["worker_id"]),
    )


def reason(job: Row, now: datetime) -> str | None:
    """Why it is not well, and whether that may be out of date."""
    check = job["check"]
    reasons = [] if check is None or check["status"] != job["health"] else [check["reason"]]
    if job["status"] == "stalled":
        reasons.insert(0, "stuck")
    if job.get("is_unseen"):
        reasons.append(f"its worker was last heard {formats.ago(job['heard_at'], now)}")
    return "; ".join(each for each in reasons if each) or None


def summary(counts: Mapping[str, int]) -> str:
    """How many jobs run, and how they are."""
    total = sum(counts.values())
    if not total:
        return "No job is running."
    return f"{total} running: " + ", ".join(f"{number} {name}" for name, number in counts.items() if number)


def _data(job: Row, now: datetime) -> dict[str, Any]:
    names = ("job_id", "actor_name", "queue", "status", "started_at", "last_heartbeat_at", "worker_id")
    return {**{name: job[name] for name in names}, "health": of(job), "reason": reason(job, now), "check": job["check"]}


def _one(detail: Row, now: datetime, *, output: str, fails: bool) -> int:
    checks = [each for each in detail["health_checks"] if each["run_id"] == detail["run_id"]]
    job = {**detail, "check": checks[-1] if checks else None}
    if output == "json":
        write_json({**_data(job, now), "health_checks": detail["health_checks"], "violations": detail["violations"]})
    else:
        _write(job, now)
    return FAILED if fails and of(job) == "unhealthy" and job["status"] in {"running", "stalled"} else OK


def _write(job: Row, now: datetime) -> None:
    check = job["check"]
    pairs = [
        ("Job", str(job["job_id"])),
        ("Actor", formats.text(job["actor_name"])),
        ("Status", job_page.state_of(job, now)),
        ("Started", formats.clock(job["started_at"])),
        ("Heartbeat", formats.ago(job["last_heartbeat_at"], now)),
        ("Health", of(job)),
        ("Last check", "never" if check is None else f"{formats.clock(check['created_at'])}, {formats.ago(check['created_at'], now)}"),
        ("Reason", formats.text(reason(job, now))),
    ]
    write_pairs(pairs)
    if job["violations"]:
        write_heading("Violations")
        write_table(job_page.VIOLATION_COLUMNS, [job_page.violation(each) for each in job["violations"]])
    if job["health_checks"]:
        write_heading("Checks")
        write_table(job_page.CHECK_COLUMNS, [job_page.check(each) for each in job["health_checks"][-_CHECKS:]], styles=STATUS_STYLES)
