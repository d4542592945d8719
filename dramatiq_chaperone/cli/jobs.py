"""`chaperone jobs` and `chaperone job`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from dramatiq_chaperone.records import JobStatus

from . import formats, job_page
from .options import FAILED, OK, Moment, format_option, load_settings, reading, store_options
from .output import STATUS_STYLES, Column, is_terminal, write_heading, write_json, write_pairs, write_table
from .status import NO_JOBS

if TYPE_CHECKING:
    from dramatiq_chaperone.store import Store

#: Jobs that a prefix may stand for before it is too short to list them.
_CANDIDATES: Final = 10
#: The last of all code points that a text of a database may hold.
_LAST: Final = "\U0010fffd"

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
@click.option("--queue", help="Only this queue.")
@click.option("--actor", help="Only this actor.")
@click.option("--worker", metavar="WORKER_ID", help="Only those whose latest run is or was in this worker process.")
@click.option("--since", type=Moment(), metavar="TIME", help="First heard of since then: 30m, 2h, 1d, or a date.")
@click.option("--search", metavar="TEXT", help="The beginning of an id, or a part of an actor's name.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=25, show_default=True, help="At most so many.")
@click.option("--after", metavar="NEXT", help="The page after the one that ended with this.")
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
        try:
            found, following = queries.list_jobs(
                store, status=status, queue=queue, actor=actor, worker=worker, since=since, search=search, limit=limit, after=after
            )
        except ValueError as error:
            raise click.BadParameter("it is not what an earlier page gave as next.", param_hint="--after") from error
        is_empty = not found and not any(queries.status_summary(store)["jobs"].values())
    if output == "json":
        write_json({"jobs": found, "next": following})
    elif found:
        now = datetime.now(UTC)
        rows = [job_page.job_row(row, now, is_short=is_terminal()) for row in found]
        write_table(job_page.JOB_COLUMNS, rows, styles=STATUS_STYLES)
        if following:
            click.echo(f"There are more: the same with --after {following}", err=True)
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
        candidates = _candidates(store, job_id)
        detail = queries.job_detail(store, candidates[0]) if len(candidates) == 1 else None
    if detail is None:
        return _refuse(job_id, candidates)
    if output == "json":
        write_json(detail)
    else:
        _write(detail, datetime.now(UTC))
    return OK


def _candidates(store: Store, job_id: str) -> list[str]:
    """The job of this id, else those whose ids begin like that."""
    text = "SELECT job_id FROM {supervised_jobs} WHERE job_id >= ? AND job_id < ? ORDER BY job_id LIMIT ?"
    found = [each for (each,) in store.rows(text, (job_id, job_id + _LAST, _CANDIDATES + 1))]
    return [job_id] if job_id in found else found


def _refuse(job_id: str, candidates: Sequence[str]) -> int:
    if candidates:
        more = ["  …"] if len(candidates) > _CANDIDATES else []
        lines = [f"Several jobs begin with {job_id}:", *(f"  {each}" for each in candidates[:_CANDIDATES]), *more]
    else:
        lines = [f"No job {job_id} is on record; it may be pruned, or in another store. `chaperone jobs` lists those that are."]
    click.echo("\n".join(lines), err=True)
    return FAILED


def _write(detail: Mapping[str, Any], now: datetime) -> None:
    write_pairs([*job_page.facts(detail, now), *([("Sent", f"{len(detail['children'])} jobs")] if detail["children"] else [])])
    write_heading("Timeline")
    happened = job_page.timeline(detail, detail["errors"], detail["dead_letters"], detail["events"])
    write_pairs([(formats.clock_ms(at), what) for at, what in happened])
    _write_history(detail["heartbeats"])
    if detail["violations"]:
        write_heading("Violations")
        columns = [Column("At"), Column("Type"), Column("Limit", is_number=True), Column("Actual", is_number=True)]
        rows = [
            (formats.clock(each["created_at"]), str(each["type"]), f"{each['limit_value']:g}", f"{each['actual_value']:g}")
            for each in detail["violations"]
        ]
        write_table(columns, rows)
    if detail["errors"] and detail["errors"][-1]["trace"]:
        write_heading("The last traceback")
        click.echo(detail["errors"][-1]["trace"].rstrip())


def _write_history(heartbeats: Sequence[Mapping[str, Any]]) -> None:
    samples = [each for each in heartbeats if each["kind"] == "sample"]
    reports = [each for each in heartbeats if each["kind"] != "sample"]
    pairs = [
        (name, f"{formats.sparkline(values, 60)}  highest {show(max(values))}")
        for name, column, show in (("Memory", "memory_usage", formats.size), ("CPU", "cpu_usage", formats.percent))
        if (values := [float(each[column]) for each in samples if each[column] is not None])
    ]
    if len(samples) > 1:
        write_heading("While it ran")
        write_pairs(pairs)
    if reports:
        write_heading(f"Heartbeats: {len(reports)} kept, the last ones")
        write_pairs([(formats.clock_ms(each["created_at"]), job_page.report(each)) for each in reports[-10:]])
