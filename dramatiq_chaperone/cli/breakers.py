"""`chaperone breakers`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from dramatiq_chaperone import circuits
from dramatiq_chaperone.circuits import Policy
from dramatiq_chaperone.errors import ChaperoneError

from . import formats
from .asking import asker
from .options import FAILED, OK, Unclear, format_option, load_settings, reading, store_options
from .output import Column, write_heading, write_json, write_pairs, write_table

if TYPE_CHECKING:
    from dramatiq_chaperone.settings import Settings
    from dramatiq_chaperone.store import Store

Row = Mapping[str, Any]

NO_BREAKERS: Final = "No circuit breaker is on record yet. One is as soon as a call was guarded: with breaker('payments'): …"

COLUMNS: Final = (
    Column("Service", is_firm=True),
    Column("State", is_firm=True),
    Column("Mode", is_firm=True),
    Column("Failures", is_number=True),
    Column("Last failure", is_firm=True, is_extra=True),
    Column("Last success", is_firm=True, is_extra=True),
    Column("Opened", is_firm=True),
    Column("Trials from", is_firm=True),
    Column("Last error", is_extra=True),
)
HISTORY_COLUMNS: Final = (Column("At", is_firm=True), Column("Event", is_firm=True), Column("Data"))
STYLES: Final = {
    "closed": "green",
    "open": "red",
    "half open": "yellow",
    "forced open": "red",
    "disabled": "magenta",
    "metrics only": "magenta",
}

_ABOUT: Final = {
    "closed": "calls are let through and counted",
    "open": "no call is let through until trials are",
    "half_open": "some trial calls are let through",
}
_ABOUT_MODE: Final = {
    "auto": "it decides by itself",
    "forced_open": "no call is let through until --auto",
    "disabled": "every call is let through and nothing is recorded, until --auto",
    "metrics_only": "every call is let through and counted, until --auto",
}
_ACTIONS: Final = {
    "open": "open it now; after its timeout it lets trial calls through",
    "close": "let all calls through; the count of failures stays",
    "reset": "close it, and forget every failure",
    "force_open": "let no call through, until --auto",
    "disable": "let every call through and record nothing, until --auto",
    "metrics_only": "let every call through and only count, until --auto",
    "auto": "have it decide by itself again",
}

_EPILOG = """\b
Examples:
  chaperone breakers
  chaperone breakers payments --history
  chaperone breakers payments --force-open        until --auto, in every process within a second
  chaperone breakers --format json | jq -r '.breakers[] | select(.state != "closed") | .service'
"""


def _action_options(command: Any) -> Any:
    for name, help_ in reversed(_ACTIONS.items()):
        flag = f"--{name.replace('_', '-')}"
        command = click.option(flag, f"is_{name}", is_flag=True, help=f"{help_[0].upper()}{help_[1:]}.")(command)
    return command


@click.command(epilog=_EPILOG)
@click.argument("service", required=False)
@_action_options
@click.option("--history", is_flag=True, help="What happened to it too, the newest first.")
@click.option("--yes", "is_sure", is_flag=True, help="Do not ask.")
@store_options
@format_option
def breakers(service: str | None, history: bool, is_sure: bool, output: str, **chosen: bool) -> int:
    """List circuit breakers, show one, or set one by hand.

    Exit code 1 when there is none, or none of that name, or when it is not clear what to do. What is set by hand is in
    every process within a second.
    """
    orders = [name for name in _ACTIONS if chosen[f"is_{name}"]]
    if len(orders) > 1:
        raise Unclear("Only one of " + ", ".join(f"--{name.replace('_', '-')}" for name in orders) + " at a time.")
    if (orders or history) and service is None:
        raise Unclear("Which SERVICE?")
    settings = load_settings()
    from dramatiq_chaperone.store import queries

    with reading(settings) as store:
        if orders and service is not None:
            known_row(queries.list_breakers(store), service)
            if not is_sure and sys.stdin.isatty():
                click.confirm(f"{_ACTIONS[orders[0]].capitalize()}: {service}?", abort=True, err=True)
            give(store, settings, service, orders[0])
        rows = queries.list_breakers(store)
        events = queries.service_events(store, service) if history and service is not None else None
    now = datetime.now(UTC)
    if service is None:
        return show_all(rows, now, output)
    return show_one(known_row(rows, service), events, now, output)


def known_row(rows: Sequence[Row], service: str) -> Row:
    """The row of *service*.  Raises ChaperoneError."""
    for row in rows:
        if row["service"] == service:
            return row
    raise ChaperoneError(f"No circuit breaker {service} is on record. `chaperone breakers` lists those that are.")


def give(store: Store, settings: Settings, service: str, what: str) -> None:
    """Carry an order out, with a row in the audit log."""
    from dramatiq_chaperone.breakers.registry import numbers_of
    from dramatiq_chaperone.store import audit
    from dramatiq_chaperone.store.breakers import alter

    policy = Policy(**numbers_of(settings, service, {}))

    def operation(circuit: circuits.Circuit, now: float) -> circuits.Step:
        own = policy if circuit.timeout is None else policy._replace(timeout=circuit.timeout)
        return circuits.order(circuit, own, what, now)

    row = audit.begin(store, who=asker(), what=f"breaker {what}", target=service, origin="cli", result="begun")
    changed = alter(store, service, operation).step.is_changed
    audit.finish(store, row, "done" if changed else "no change")
    if not changed:
        click.echo(f"Nothing to do: {service} is so already.", err=True)


def show_all(rows: Sequence[Row], now: datetime, output: str) -> int:
    """A list of them."""
    if output == "json":
        write_json({"breakers": rows, "next": None})
    elif rows:
        write_table(COLUMNS, [breaker_row(row, now) for row in rows], styles=STYLES)
        states = Counter(words(row["state"]) for row in rows)
        click.echo(f"\n{len(rows)} in all: " + ", ".join(f"{number} {state}" for state, number in sorted(states.items())))
    else:
        click.echo(NO_BREAKERS, err=True)
    return OK if rows else FAILED


def show_one(row: Row, events: Sequence[Row] | None, now: datetime, output: str) -> int:
    """One of them, with what happened to it."""
    if output == "json":
        write_json({"breakers": [row], "next": None} if events is None else {"breakers": [row], "history": events, "next": None})
        return OK
    write_pairs(
        [
            ("service", row["service"]),
            ("state", f"{words(row['state'])}: {_ABOUT.get(row['state'], '')}"),
            ("mode", f"{words(row['mode'])}: {_ABOUT_MODE.get(row['mode'], '')}"),
            ("failures", formats.number(row["failure_count"])),
            ("trial successes", formats.number(row["success_count"])),
            ("last failure", formats.clock(row["last_failure_at"])),
            ("last success", formats.clock(row["last_success_at"])),
            ("opened", formats.clock(row["opened_at"])),
            ("trials from", formats.clock(row["reopens_at"])),
            ("last error", formats.text(row["last_error"])),
        ]
    )
    if events is not None:
        write_heading("History")
        write_table(HISTORY_COLUMNS, [(formats.clock(each["created_at"]), each["name"], said(each["data"])) for each in events])
    return OK


def breaker_row(row: Row, now: datetime) -> tuple[str, ...]:
    """A breaker in a list."""
    return (
        str(row["service"]),
        words(row["state"]),
        words(row["mode"]),
        formats.number(row["failure_count"]),
        formats.ago(row["last_failure_at"], now),
        formats.ago(row["last_success_at"], now),
        formats.ago(row["opened_at"], now),
        formats.clock_near(row["reopens_at"], now),
        formats.text(row["last_error"]),
    )


def words(state: str) -> str:
    """A state or mode for people."""
    return str(state).replace("_", " ")


def said(data: Mapping[str, Any] | None) -> str:
    """The fields of an event, without those that stand beside it."""
    known = {name: value for name, value in (data or {}).items() if value is not None and name != "service" and not name.endswith("_at")}
    return formats.text(", ".join(f"{words(name)} {value}" for name, value in known.items()))
