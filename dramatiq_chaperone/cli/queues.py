"""`chaperone queues`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click

from dramatiq_chaperone.errors import ChaperoneError, StoreError
from dramatiq_chaperone.settings import Settings

from . import formats
from .broker import load_broker
from .options import FAILED, OK, broker_option, format_option, load_settings, reading, store_options
from .output import Column, write_json, write_table

#: Over which the rates are taken, in minutes.
RATE_MINUTES: Final = 5

_EPILOG = """\b
Examples:
  chaperone queues
  chaperone queues --broker app.broker       ask the broker itself, now
  chaperone queues --format json | jq '.queues[] | select(.ready > 1000) | .queue'
"""


@click.command(epilog=_EPILOG)
@broker_option
@store_options
@format_option
def queues(output: str) -> int:
    """Tell what lies in each queue, and how fast it fills and empties. Exit code 1 when there is none.

    Without a broker it is the last reading that a worker took, with its age.
    """
    settings = load_settings()
    now = datetime.now(UTC)
    rates, readings = _recorded(settings, now)
    if settings.broker is not None:
        readings = _asked(settings.broker, {*rates, *(row["queue"] for row in readings)})
    known = {row["queue"] for row in readings}
    nothing = dict.fromkeys(("broker", "ready", "delayed", "dead", "oldest_at", "read_at"))
    readings = [*readings, *({**nothing, "queue": queue} for queue in rates if queue not in known)]
    rows = [_row(reading, rates.get(reading["queue"]), settings, now) for reading in sorted(readings, key=lambda row: str(row["queue"]))]
    if output == "json":
        write_json({"queues": rows})
    elif rows:
        write_table(_COLUMNS, [_cells(row, now) for row in rows])
    else:
        click.echo("No queue on record yet; a worker with broker.add_middleware(Chaperone()) reads them every 5 s.", err=True)
    return OK if rows else FAILED


Rates = Mapping[str, Mapping[str, float]]


def _recorded(settings: Settings, now: datetime) -> tuple[Rates, list[dict[str, Any]]]:
    """Rates a minute and the last readings; without a store there are none for a broker that can be asked itself."""
    from dramatiq_chaperone.store import queries

    since = (now - timedelta(minutes=RATE_MINUTES - 1)).replace(second=0, microsecond=0)
    minutes = (now - since).total_seconds() / 60
    try:
        with reading(settings) as store:
            counts, readings = queries.queue_rates(store, since=since), queries.list_queues(store)
    except StoreError as error:
        if settings.broker is None:
            raise
        click.echo(f"chaperone: {error}", err=True)
        return {}, []
    return {queue: {name: number / minutes for name, number in found.items()} for queue, found in counts.items()}, readings


def _asked(place: str, more: set[str]) -> list[dict[str, Any]]:
    """What the broker says now.  Raises ChaperoneError."""
    from dramatiq_chaperone.brokers import inspector_of

    broker = load_broker(place)
    inspector = inspector_of(broker)
    if inspector is None:
        raise ChaperoneError(f"{place} is a {type(broker).__name__}; only Redis, RabbitMQ and Stub brokers can be asked.")
    try:
        with closing(inspector):
            found = inspector.readings(more)
    except Exception as error:
        raise ChaperoneError(f"The broker {place} does not answer: {type(error).__name__}: {error}") from error
    at = datetime.now(UTC)
    return [
        {
            **each._asdict(),
            "broker": type(broker).__name__,
            "oldest_at": None if each.oldest_at is None else datetime.fromtimestamp(each.oldest_at, UTC),
            "read_at": at,
        }
        for each in found
    ]


def _row(reading: Mapping[str, Any], rates: Mapping[str, float] | None, settings: Settings, now: datetime) -> dict[str, Any]:
    from dramatiq_chaperone.supervision.policy import is_queue_supervised

    oldest = reading["oldest_at"]
    return {
        **reading,
        "oldest_age": None if oldest is None else max(0.0, (now - oldest).total_seconds()),
        "in_per_minute": None if rates is None else round(rates["jobs_in"], 2),
        "out_per_minute": None if rates is None else round(rates["runs_out"], 2),
        "supervised": is_queue_supervised(reading["queue"], settings),
    }


_COLUMNS: Final[Sequence[Column]] = (
    Column("Queue", is_firm=True),
    Column("Ready", is_number=True),
    Column("Delayed", is_number=True),
    Column("Dead", is_number=True),
    Column("Oldest", is_number=True),
    Column("In/min", is_number=True),
    Column("Out/min", is_number=True),
    Column("Supervised", is_extra=True),
    Column("Read", is_firm=True),
    Column("Broker", is_extra=True),
)


def _cells(row: Mapping[str, Any], now: datetime) -> tuple[str, ...]:
    return (
        formats.text(row["queue"]) + (" (paused)" if row.get("paused") else ""),
        *(formats.number(row[name]) for name in ("ready", "delayed", "dead")),
        formats.seconds(row["oldest_age"]),
        *(_rate(row[name]) for name in ("in_per_minute", "out_per_minute")),
        "yes" if row["supervised"] else "no",
        formats.ago(row["read_at"], max(now, row["read_at"] or now)),
        formats.text(row["broker"]),
    )


def _rate(value: float | None) -> str:
    return formats.NOTHING if value is None else f"{value:,.1f}"
