"""`chaperone jobs` and `chaperone job`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import click

from dramatiq_chaperone.errors import ChaperoneError
from dramatiq_chaperone.records import JobStatus

from . import formats, job_page
from .charts import chart
from .completion import names_of
from .options import (
    FAILED,
    OK,
    Moment,
    after_hint,
    format_option,
    known_page,
    load_settings,
    page_options,
    reading,
    store_options,
    whole_id,
)
from .output import STATUS_STYLES, console, is_terminal, write_heading, write_json, write_pairs, write_table
from .status import NO_JOBS

#: Characters that a chart is wide, at most.
_CHART_WIDTH: Final = 100
#: Records of its health, the last ones.
_CHECKS: Final = 10

_JOBS_EPILOG = """\b
Examples:
  chaperone jobs --status failed --since 1d
  chaperone jobs --actor import_orders --status running --status pending
  chaperone jobs --search 4f9e               ids that begin with it, actors that contain it
  chaperone jobs --format json | jq -r '.jobs[].job_id'
"""
_JOB_EPILOG = """\b
Examples:
  chaperone job 4f9e2b61-0d0c-4f0e-9d51-3a0c6f3a2b11
  chaperone job 4f9e
  chaperone job 4f9e --format json | jq .errors
"""


@click.command(epilog=_JOBS_EPILOG)
@click.option("--status", multiple=True, type=click.Choice([each.value for each in JobStatus]), help="Only these states; may be repeated.")
@click.option("--queue", shell_complete=names_of("queue"), help="Only this queue.")
@click.option("--actor", shell_complete=names_of("actor_name"), help="Only this actor.")
@click.option("--worker", metavar="WORKER_ID", help="Only those whose latest run is or was in this worker process.")
@click.option("--since", type=Moment(), metavar="TIME", help="First heard of since then: 30m, 2h, 1d, or a date.")
@click.option("--search", metavar="TEXT", help="The beginning of an id, or a part of an actor's name.")
@page_options
@store_options
@format_option
def jobs(
    status: tuple[str, ...],
    queue: str | None,
    actor: str | None,
    worker: str | None,
    since: datetime | None,
    search: str | None,
    limit: int,
    after: str | None,
    output: str,
) -> int:
    """List jobs, the newest first. Exit code 1 when there is none."""
    settings = load_settings()
    from dramatiq_chaperone.store import queries

    with reading(settings) as store:
        with known_page():
            found, following = queries.list_jobs(
                store, status=status, queue=queue, actor=actor, worker=worker, since=since, search=search, limit=limit, after=after
            )
        is_empty = not found and not any(queries.status_summary(store)["jobs"].values())
    if output == "json":
        write_json({"jobs": found, "next": following})
    elif found:
        now = datetime.now(UTC)
        rows = [job_page.job_row(row, now, is_short=is_terminal()) for row in found]
        write_table(job_page.JOB_COLUMNS, rows, styles=STATUS_STYLES)
        after_hint(following)
    else:
        click.echo(NO_JOBS if is_empty else "No job is like that.", err=True)
    return OK if found else FAILED


@click.command(epilog=_JOB_EPILOG)
@click.argument("job_id", metavar="ID")
@store_options
@format_option
def job(job_id: str, output: str) -> int:
    """Tell everything about one job. ID may be the beginning of its id, if no other begins like that."""
    settings = load_settings()
    from dramatiq_chaperone.store import queries

    with reading(settings) as store:
        detail = queries.job_detail(store, whole_id(store, job_id))
    if detail is None:
        raise ChaperoneError(f"Job {job_id} was pruned just now.")
    if output == "json":
        write_json(detail)
    else:
        _write(detail, datetime.now(UTC))
    return OK


def _write(detail: Mapping[str, Any], now: datetime) -> None:
    write_pairs([*job_page.facts(detail, now), *([("Sent", f"{len(detail['children'])} jobs")] if detail["children"] else [])])
    if found := job_page.diagnosis(detail, detail["events"]):
        at, text, stack = found
        write_heading(f"Diagnosis, of {formats.ago(at, now)}")
        click.echo("\n".join([text, *(f"  {line}" for line in stack)]))
    write_heading("Timeline")
    happened = job_page.timeline(detail, detail["errors"], detail["dead_letters"], detail["events"])
    write_pairs([(formats.clock_ms(at), what) for at, what in happened])
    runs = job_page.runs(detail, detail["errors"], now)
    if len(runs) > 1 or any(each["outcome"] == "lost" for each in detail["errors"]):
        write_heading("Runs")
        write_table(job_page.RUN_COLUMNS, runs, styles=STATUS_STYLES)
    _write_history(detail["heartbeats"], detail["run_id"])
    if detail["violations"]:
        write_heading("Violations")
        write_table(job_page.VIOLATION_COLUMNS, [job_page.violation(each) for each in detail["violations"]])
    if detail["health_checks"]:
        write_heading("Health")
        write_table(job_page.CHECK_COLUMNS, [job_page.check(each) for each in detail["health_checks"][-_CHECKS:]], styles=STATUS_STYLES)
    if detail["errors"] and detail["errors"][-1]["trace"]:
        write_heading("The last traceback")
        click.echo(detail["errors"][-1]["trace"].rstrip())


def _write_history(heartbeats: Sequence[Mapping[str, Any]], run_id: str | None) -> None:
    for title, points, show, axis in job_page.curves(heartbeats, run_id):
        values = [value for _, value in points]
        write_heading(f"{title}: lowest {show(min(values))}, highest {show(max(values))}, last {show(values[-1])}")
        if is_terminal():
            began, ended = (formats.clock_ms(datetime.fromtimestamp(points[place][0], UTC))[:-4] for place in (0, -1))
            low, high = axis
            width = min(console().width, _CHART_WIDTH)
            click.echo("\n".join(chart(points, width=width, label=show, ends=(began, ended), low=low, high=high)))
    reports = [each for each in heartbeats if each["kind"] != "sample"]
    if reports:
        write_heading(f"Heartbeats: {len(reports)} kept, the last ones")
        write_pairs([(formats.clock_ms(each["created_at"]), job_page.report(each)) for each in reports[-10:]])
