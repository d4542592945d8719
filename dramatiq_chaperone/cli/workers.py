"""`chaperone workers`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import click

from . import formats
from .options import FAILED, OK, after_hint, format_option, known_page, load_settings, page_options, reading, store_options
from .output import STATUS_STYLES, Column, write_json, write_table
from .worker_page import worker_detail, write_worker

STATES: Final = ("running", "stopped", "lost")

NO_WORKERS = "No worker is on record yet. One is as soon as it boots with broker.add_middleware(Chaperone()); `chaperone demo` shows some."

WORKER_COLUMNS: Final = (
    Column("Worker", is_firm=True),
    Column("Status", is_firm=True, is_extra=True),
    Column("Up", is_number=True),
    Column("Heard", is_firm=True),
    Column("Memory", is_number=True),
    Column("CPU", is_number=True),
    Column("Runs", is_number=True),
    Column("Failed", is_number=True),
    Column("Threads", is_number=True, is_extra=True),
    Column("Queues", is_extra=True),
    Column("Host", is_extra=True),
    Column("Broker", is_extra=True),
)

_EPILOG = """\b
Examples:
  chaperone workers
  chaperone workers --status lost                 those that died
  chaperone workers web1-4711                     one of them: what it ran, and what may have killed it
  chaperone workers --all --format json | jq -r '.workers[].host' | sort | uniq -c
"""


@click.command(epilog=_EPILOG)
@click.argument("worker_id", metavar="[WORKER]", required=False)
@click.option(
    "--status", "statuses", multiple=True, type=click.Choice(STATES), help="Only these states; may be repeated.  [default: running]"
)
@click.option("--all", "is_all", is_flag=True, help="Those that have stopped or died too.")
@page_options
@store_options
@format_option
def workers(worker_id: str | None, statuses: tuple[str, ...], is_all: bool, limit: int, after: str | None, output: str) -> int:
    """List worker processes, those that came last first. Exit code 1 when there is none.

    With WORKER, an id or its beginning: everything about that one, and what may have killed it.
    """
    if is_all and statuses:
        raise click.UsageError("--all and --status exclude each other.")
    if worker_id is not None and (is_all or statuses or after):
        raise click.UsageError("Options that pick from the list do not go with WORKER.")
    settings = load_settings()
    if worker_id is not None:
        with reading(settings) as store:
            write_worker(worker_detail(store, worker_id), output)
        return OK
    from dramatiq_chaperone.store import queries

    with reading(settings) as store:
        with known_page():
            picked = () if is_all else statuses or ("running",)
            found, following = queries.worker_page(store, statuses=picked, limit=limit, after=after)
        is_empty = not found and not queries.list_workers(store, limit=1)
    if output == "json":
        write_json({"workers": found, "next": following})
    elif found:
        now = datetime.now(UTC)
        write_table(WORKER_COLUMNS, [worker_row(row, now) for row in found], styles=STATUS_STYLES)
        after_hint(following)
    else:
        click.echo(NO_WORKERS if is_empty else "No worker is like that; `chaperone workers --all` lists every one on record.", err=True)
    return OK if found else FAILED


def worker_row(worker: Mapping[str, Any], now: datetime) -> tuple[str, ...]:
    """A worker process in a list."""
    until = now if worker["status"] == "running" else worker["stopped_at"] or worker["last_heartbeat_at"]
    up = None if worker["started_at"] is None or until is None else (until - worker["started_at"]).total_seconds()
    return (
        str(worker["worker_id"]),
        str(worker["status"]),
        formats.seconds(up),
        formats.ago(worker["last_heartbeat_at"], now),
        formats.size(worker["rss"]),
        formats.percent(worker["cpu"]),
        formats.number(worker["jobs_processed"]),
        formats.number(worker["jobs_failed"]),
        formats.number(worker["threads"]),
        formats.text(", ".join(json.loads(worker["queues"] or "[]"))),
        formats.text(worker["host"]),
        formats.text((worker["broker"] or "").removesuffix("Broker")),
    )
