"""`chaperone events`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import click

from dramatiq_chaperone.events import EVENTS

from . import formats
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
from .output import Column, is_terminal, write_json, write_table
from .status import NO_JOBS

if TYPE_CHECKING:
    from dramatiq_chaperone.store import Store

    Row = Mapping[str, Any]

#: Seconds between two looks.
_FOLLOW_S: Final = 1.0
#: An event is written a moment after it happened, and another process's may come before it; so far back each look goes.
_OVERLAP: Final = timedelta(minutes=2)
_PAGE: Final = 500
_NAMES: Final = tuple(sorted(kind.__name__ for kind, stored in EVENTS.items() if stored))
_NAME_WIDTH: Final = max(map(len, _NAMES))

EVENT_COLUMNS: Final = (
    Column("At", is_firm=True),
    Column("Event", is_firm=True),
    Column("Job"),
    Column("Worker", is_extra=True),
    Column("Service", is_extra=True),
    Column("Data"),
)

_EPILOG = """\b
Examples:
  chaperone events --since 1h
  chaperone events --job 4f9e --name JobLost
  chaperone events --follow                       until Ctrl-C
  chaperone events --follow --format json | jq -r 'select(.name == "WorkerLost") | .worker_id'
"""


@click.command(epilog=_EPILOG)
@click.option("--follow", is_flag=True, help="Oldest first, and then those that come, until Ctrl-C; with --format json one object a line.")
@click.option("--job", metavar="ID", help="Only those about this job; the beginning of its id will do.")
@click.option("--name", type=click.Choice(_NAMES, case_sensitive=False), metavar="NAME", help="Only those of this kind, as JobLost.")
@click.option("--since", type=Moment(), metavar="TIME", help="Only what happened since then: 30m, 2h, 1d, or a date.")
@page_options
@store_options
@format_option
def events(follow: bool, job: str | None, name: str | None, since: datetime | None, limit: int, after: str | None, output: str) -> int:
    """List what happened, the newest first. Exit code 1 when there is nothing.

    Those events are kept that matter: docs/events.md tells which. With --follow it ends with 0.
    """
    if follow and after:
        raise click.UsageError("--follow and --after exclude each other.")
    settings = load_settings()
    from dramatiq_chaperone.store import queries

    with reading(settings) as store:
        picked = {"job": _job(store, job), "name": name}
        if follow:
            return _follow(store, picked, since, limit, output)
        with known_page():
            found, following = queries.event_page(store, **picked, since=since, limit=limit, after=after)
        is_empty = not found and not queries.list_jobs(store, limit=1)[0]
    if output == "json":
        write_json({"events": found, "next": following})
    else:
        if found:
            write_table(EVENT_COLUMNS, [event_row(row, is_short=is_terminal()) for row in found])
        else:
            click.echo(NO_JOBS if is_empty else "No event is like that.", err=True)
        after_hint(following)
    return OK if found else FAILED


def event_row(event: Row, *, is_short: bool) -> tuple[str, ...]:
    """An event in a list.  *is_short*: for a terminal, with a short id."""
    job_id = event["job_id"]
    return (
        formats.clock(event["created_at"]),
        str(event["name"]),
        formats.NOTHING if job_id is None else formats.short_id(job_id) if is_short else job_id,
        formats.text(event["worker_id"]),
        formats.text(event["service"]),
        data_text(event["data"]),
    )


def event_line(event: Row, *, is_short: bool, width: int | None = None) -> str:
    """An event on a line of its own, in columns; at most *width* characters."""
    at, name, *rest = event_row(event, is_short=is_short)
    text = "  ".join([at, name.ljust(_NAME_WIDTH), *(part for part in rest if part != formats.NOTHING)])
    return text if width is None else formats.cut(text, width)


def data_text(data: Any) -> str:
    """What an event tells beside its job and its worker: ``reason=age, queue=mail``; what is empty is left out."""
    known = data if isinstance(data, Mapping) else {}
    parts = [
        f"{name}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)}"
        for name, value in known.items()
        if value not in (None, "", [], {})
    ]
    return formats.text(", ".join(parts))


def _job(store: Store, job: str | None) -> str | None:
    """Events outlive their jobs: an id that is not known is taken as it is."""
    from dramatiq_chaperone.store import queries

    return whole_id(store, job) if job is not None and queries.ids_like(store, job) else job


def _follow(store: Store, picked: dict[str, Any], since: datetime | None, limit: int, output: str) -> int:
    screen = is_terminal()
    from .output import console

    try:
        for event in followed(store, picked, since, limit):
            if output == "json":
                click.echo(json.dumps(formats.as_data(event), ensure_ascii=False))
            else:
                click.echo(event_line(event, is_short=screen, width=console().width if screen else None))
            sys.stdout.flush()
    except KeyboardInterrupt:
        pass
    return OK


def followed(store: Store, picked: dict[str, Any], since: datetime | None, limit: int) -> Iterator[Row]:
    """The newest *limit* events, oldest first, then each one that comes; without end.  Raises StoreError."""
    from dramatiq_chaperone.store import queries

    rows, _ = queries.event_page(store, **picked, since=since, limit=limit)
    began = datetime.now(UTC)
    newest = rows[0]["created_at"] if rows else began
    # What is older than the first page was there before; what is younger than its end is new, if it was not in it.
    seen = {row["id"]: row["created_at"] for row in _all(store, picked, since=min(newest, began) - _OVERLAP)}
    seen |= {row["id"]: row["created_at"] for row in rows}
    yield from reversed(rows)
    while True:
        time.sleep(_FOLLOW_S)
        since = newest - _OVERLAP
        fresh = [row for row in _all(store, picked, since=since) if row["id"] not in seen]
        newest = max([newest, *(row["created_at"] for row in fresh)])
        seen = {key: at for key, at in seen.items() if at >= newest - _OVERLAP}
        seen |= {row["id"]: row["created_at"] for row in fresh}
        yield from sorted(fresh, key=lambda row: row["created_at"])


def _all(store: Store, picked: dict[str, Any], since: datetime) -> list[Row]:
    from dramatiq_chaperone.store import queries

    found, after = queries.event_page(store, **picked, since=since, limit=_PAGE)
    while after is not None:
        more, after = queries.event_page(store, **picked, since=since, limit=_PAGE, after=after)
        found += more
    return list(found)
