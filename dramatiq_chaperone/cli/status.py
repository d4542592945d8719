"""`chaperone status`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import click

from . import formats
from .options import FAILED, OK, format_option, load_settings, reading, store_options
from .output import STATUS_STYLES, Column, write_heading, write_json, write_table
from .workers import WORKER_COLUMNS, worker_row

#: Workers that are listed.
_WORKERS = 100

NO_JOBS = "No jobs on record yet. A job is recorded when it is sent or run by a process with broker.add_middleware(Chaperone())."


@click.command(epilog="\b\nExamples:\n  chaperone status\n  chaperone status --format json | jq .jobs.failed")
@store_options
@format_option
def status(output: str) -> int:
    """Tell how things are: jobs by state, queues, what jobs wait for, workers. Exit code 1 while no job is on record."""
    settings = load_settings()
    from dramatiq_chaperone.store import queries

    with reading(settings) as store:
        summary = queries.status_summary(store)
        workers = queries.list_workers(store, status="running", limit=_WORKERS)
        waiting = queries.waiting_jobs(store, datetime.now(UTC))
    has_jobs = any(summary["jobs"].values())
    if output == "json":
        write_json({**summary, "waiting": waiting, "database_url": settings.safe_database_url})
    else:
        _write(summary, waiting, workers, datetime.now(UTC))
        if not has_jobs:
            click.echo(f"\n{NO_JOBS}", err=True)
    return OK if has_jobs else FAILED


def _write(summary: Mapping[str, Any], waiting: Mapping[str, int], workers: list[dict[str, Any]], now: datetime) -> None:
    states = [(state, formats.number(count)) for state, count in summary["jobs"].items()]
    write_table([Column("Jobs", is_firm=True), Column("", is_number=True)], states, styles=STATUS_STYLES)
    if summary["queues"]:
        write_heading("Not ended, by queue")
        shown = [state for state in summary["jobs"] if any(state in counts for counts in summary["queues"].values())]
        rows = [(queue, *(formats.number(counts.get(state, 0)) for state in shown)) for queue, counts in summary["queues"].items()]
        write_table([Column("Queue"), *(Column(state.title(), is_number=True) for state in shown)], rows)
    if waiting:
        write_heading("Waiting")
        rows = [(formats.number(count), reason) for reason, count in waiting.items()]
        write_table([Column("Jobs", is_number=True), Column("For", is_firm=True)], rows)
    counts = ", ".join(f"{count} {state}" for state, count in sorted(summary["workers"].items())) or "none yet"
    write_heading(f"Workers: {counts}")
    if workers:
        write_table(WORKER_COLUMNS, [worker_row(worker, now) for worker in workers], styles=STATUS_STYLES)
