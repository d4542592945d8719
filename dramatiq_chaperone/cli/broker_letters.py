"""Dead letters that a broker keeps and the store does not know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import click

from dramatiq_chaperone.errors import ChaperoneError

from . import formats
from .broker import load_broker
from .output import Column, write_heading, write_table

if TYPE_CHECKING:
    from dramatiq_chaperone.settings import Settings
    from dramatiq_chaperone.store import Store

Row = Mapping[str, Any]

#: Dramatiq's brokers keep a dead letter so long, in days, unless they were told otherwise.
KEPT_DAYS: Final = 7
#: Messages of one queue that are looked at.
LOOKED_AT: Final = 10_000


def broker_letters(store: Store, settings: Settings, *, queue: str | None, now: datetime) -> list[dict[str, Any]]:
    """Queues whose broker keeps more dead letters than the store knows of.

    Each has ``queue``, ``dead`` (in the broker), ``unknown`` (how many of them are not in the store), ``read_at`` and
    ``messages``: which they are, None where the broker was not asked or cannot tell.

    Raises ChaperoneError.
    """
    if settings.broker is not None:
        return _asked(store, settings.broker, queue)
    from dramatiq_chaperone.store import queries

    known = queries.dead_letter_counts(store, since=now - timedelta(days=KEPT_DAYS))
    found = []
    for row in queries.list_queues(store):
        unknown = (row["dead"] or 0) - known.get(row["queue"], 0)
        if unknown > 0 and queue in {None, row["queue"]}:
            found.append({"queue": row["queue"], "dead": row["dead"], "unknown": unknown, "read_at": row["read_at"], "messages": None})
    return found


def _asked(store: Store, place: str, queue: str | None) -> list[dict[str, Any]]:
    from dramatiq_chaperone.brokers import inspector_of
    from dramatiq_chaperone.store import queries

    broker = load_broker(place)
    inspector = inspector_of(broker)
    if inspector is None:
        raise ChaperoneError(f"{place} is a {type(broker).__name__}; only Redis, RabbitMQ and Stub brokers can be asked.")
    now = datetime.now(UTC)
    counts = queries.dead_letter_counts(store, since=now - timedelta(days=KEPT_DAYS))
    found = []
    try:
        with closing(inspector):
            for reading in inspector.readings({row["queue"] for row in queries.list_queues(store)}):
                if not reading.dead or queue not in {None, reading.queue}:
                    continue
                letters = inspector.dead_letters(reading.queue, limit=LOOKED_AT)
                row: dict[str, Any] = {"queue": reading.queue, "dead": reading.dead, "read_at": now}
                if letters is None:
                    unknown = reading.dead - counts.get(reading.queue, 0)
                    messages = None
                else:
                    known = queries.dead_letters_of(store, [each.job_id for each in letters])
                    messages = [_message(each._asdict()) for each in letters if each.job_id not in known]
                    unknown = len(messages)
                if unknown > 0:
                    found.append({**row, "unknown": unknown, "messages": messages})
    except ChaperoneError:
        raise
    except Exception as error:
        raise ChaperoneError(f"The broker {place} does not answer: {type(error).__name__}: {error}") from error
    return found


def _message(letter: dict[str, Any]) -> dict[str, Any]:
    made_at = letter.pop("made_at")
    return {**letter, "made_at": None if made_at is None else datetime.fromtimestamp(made_at, UTC)}


def write_broker_letters(found: Sequence[Row], now: datetime) -> None:
    """As tables, below that of the store's own; nothing where there is none."""
    if not found:
        return
    write_heading("Kept by the broker, and not known to the store")
    columns = (
        Column("Queue", is_firm=True),
        Column("Dead", is_number=True),
        Column("Unknown", is_number=True),
        Column("Read", is_firm=True),
    )
    rows = [
        (
            formats.text(each["queue"]),
            formats.number(each["dead"]),
            formats.number(each["unknown"]),
            formats.ago(each["read_at"], max(now, each["read_at"])),
        )
        for each in found
    ]
    write_table(columns, rows)
    messages = [message for each in found for message in each["messages"] or ()]
    if messages:
        click.echo()
        write_table(
            (Column("Job", is_firm=True), Column("Actor"), Column("Queue"), Column("Made", is_firm=True)),
            [(str(m["job_id"]), formats.text(m["actor"]), formats.text(m["queue"]), formats.clock(m["made_at"])) for m in messages],
        )
