"""`chaperone alerts`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import click

from dramatiq_chaperone.errors import ChaperoneError, SettingsError

from . import formats
from .asking import asker
from .options import FAILED, OK, Span, WithDefault, format_option, load_settings, reading, store_options
from .output import Column, write_heading, write_json, write_pairs, write_table

if TYPE_CHECKING:
    from dramatiq_chaperone.store import Store

Row = Mapping[str, Any]

COLUMNS: Final = (
    Column("Alert", is_firm=True),
    Column("Severity", is_firm=True),
    Column("Status", is_firm=True),
    Column("What"),
    Column("First", is_firm=True),
    Column("Last", is_firm=True, is_extra=True),
    Column("Seen", is_number=True, is_extra=True),
    Column("Told", is_firm=True),
    Column("Looked after by", is_extra=True),
)
DELIVERY_COLUMNS: Final = (
    Column("At", is_firm=True),
    Column("Channel", is_firm=True),
    Column("Attempt", is_number=True),
    Column("Result", is_firm=True),
    Column("Took", is_number=True),
    Column("Error"),
)
SILENCE_COLUMNS: Final = (
    Column("Silence", is_firm=True),
    Column("Kind", is_firm=True),
    Column("Matches"),
    Column("From", is_firm=True),
    Column("Until", is_firm=True),
    Column("By", is_extra=True),
    Column("Reason"),
)
LIMIT_COLUMNS: Final = (
    Column("Type", is_firm=True),
    Column("About"),
    Column("Key"),
    Column("Told", is_firm=True),
    Column("Quiet until", is_firm=True),
)
STYLES: Final = {
    "firing": "red",
    "resolved": "green",
    "critical": "bold red",
    "error": "red",
    "warning": "yellow",
    "sent": "green",
    "failed": "red",
    "flood": "magenta",
}
#: Limits are looked for among what was told within so many seconds.
_LIMITS_S: Final = 86_400.0
_STATISTICS_S: Final = 3600.0


@click.group("alerts", cls=WithDefault)
@store_options
def alerts() -> None:
    """See alerts, say that somebody looks after one, and keep some quiet for a while."""


@alerts.command("list", epilog="\b\nExamples:\n  chaperone alerts\n  chaperone alerts list --firing --format json")
@click.option("--firing", "is_firing", is_flag=True, help="Only those that fire.")
@click.option("--type", "type_", metavar="TYPE", help="Only these: job_stuck, worker_lost, …")
@click.option("--limit", type=click.IntRange(1, 10_000), default=25, show_default=True, help="At most so many.")
@store_options
@format_option
def list_(is_firing: bool, type_: str | None, limit: int, output: str) -> int:
    """List alerts, the newest first. Exit code 1 when there is none."""
    from dramatiq_chaperone.alerts.trial import type_named
    from dramatiq_chaperone.store import alerts as rows

    if type_ is not None:
        type_ = _known(type_named, type_)
    now = datetime.now(UTC)
    with reading(load_settings()) as store:
        found = rows.list_alerts(store, status="firing" if is_firing else None, type_=type_, limit=limit)
    if output == "json":
        write_json({"alerts": [data(row) for row in found], "next": None})
    elif found:
        write_table(COLUMNS, [cells(row, now) for row in found], styles=STYLES)
    else:
        click.echo("No alert fires." if is_firing else "No alert is on record.", err=True)
    return OK if found else FAILED


@alerts.command("show", epilog="\b\nExample:\n  chaperone alerts show 17")
@click.argument("key", metavar="ID")
@store_options
@format_option
def show(key: str, output: str) -> int:
    """Tell all about one alert: what was seen, and each attempt at telling somebody."""
    from dramatiq_chaperone.store import deliveries

    with reading(load_settings()) as store:
        row = known_alert(store, key)
        attempts = deliveries.of_alert(store, row["id"])
    if output == "json":
        told = [
            {**each._asdict(), **{name: moment(getattr(each, name)) for name in ("created_at", "next_at", "finished_at")}}
            for each in attempts
        ]
        write_json({**data(row), "deliveries": told})
        return OK
    pairs = [
        ("alert", row["id"]),
        ("what", headline(row)),
        ("severity", row["severity"]),
        ("priority", row["priority"]),
        ("status", said(row)),
    ]
    pairs += [("first seen", formats.clock(moment(row["first_seen_at"]))), ("last seen", formats.clock(moment(row["last_seen_at"])))]
    pairs += [("seen", f"{row['number']} times")]
    pairs += [(str(name).lower(), formats.text(value)) for name, value in row["evidence"].get("details", ())]
    write_pairs(pairs)
    if row["evidence"].get("text"):
        write_heading("Evidence")
        click.echo(row["evidence"]["text"])
    if attempts:
        write_heading("Deliveries")
        lines = []
        for each in attempts:
            at = each.finished_at or each.next_at or each.created_at
            lines.append(
                (
                    formats.clock(moment(at)),
                    each.channel,
                    str(each.attempt),
                    each.result,
                    formats.seconds(each.seconds),
                    formats.text(each.error),
                )
            )
        write_table(DELIVERY_COLUMNS, lines, styles=STYLES)
    return OK


@alerts.command("ack", epilog="\b\nExample:\n  chaperone alerts ack 17 18")
@click.argument("keys", metavar="ID...", nargs=-1, required=True)
@store_options
def ack(keys: Sequence[str]) -> int:
    """Say that you look after alerts: they are not repeated, and escalate no further. Exit code 1 where one does not fire."""
    from dramatiq_chaperone.store import alerts as rows
    from dramatiq_chaperone.store import audit

    with reading(load_settings()) as store:
        known = [str(known_alert(store, key)["id"]) for key in keys]
        done = rows.acknowledge(store, known, asker(), time.time())
        for key in done:
            audit.begin(store, who=asker(), what="alert ack", target=key, origin="cli", result="done")
    for key in known:
        click.echo(
            f"{key}: acknowledged" if key in done else f"{key}: it does not fire, or somebody looks after it already", err=key not in done
        )
    return OK if len(done) == len(set(known)) else FAILED


@alerts.command(
    "silence",
    epilog="\b\nExamples:\n  chaperone alerts silence actor=import_* --for 2h --reason 'the feed is down'\n"
    "  chaperone alerts silence type=queue_length queue=bulk --for 1d --reason backfill",
)
@click.argument("matchers", metavar="LABEL=PATTERN...", nargs=-1, required=True)
@click.option("--for", "seconds", type=Span(), required=True, metavar="DURATION", help="How long: 30m, 2h, 1d.")
@click.option("--reason", required=True, help="Why; whoever reads the list of silences will ask.")
@store_options
def silence(matchers: Sequence[str], seconds: float, reason: str) -> int:
    """Keep alerts quiet that match: they are on record, and told when it ends if they still fire.

    LABEL is type, severity, priority, actor, queue, worker, host, service or job_id; PATTERN may have * in it.
    """
    return _quiet(matcher_of(matchers), 0.0, seconds, reason, "silence")


@alerts.command(
    "maintenance",
    epilog="\b\nExamples:\n  chaperone alerts maintenance --for 30m --reason deploy\n"
    "  chaperone alerts maintenance --in 8h --for 1h --reason 'database update' queue=reports",
)
@click.argument("matchers", metavar="[LABEL=PATTERN...]", nargs=-1)
@click.option("--for", "seconds", type=Span(), required=True, metavar="DURATION", help="How long: 30m, 2h.")
@click.option("--in", "later", type=Span(), metavar="DURATION", help="Beginning then, rather than now.")
@click.option("--reason", default="maintenance", show_default=True, help="Why.")
@store_options
def maintenance(matchers: Sequence[str], seconds: float, later: float | None, reason: str) -> int:
    """Keep all alerts quiet for a while, now or later; or those that match."""
    return _quiet(matcher_of(matchers), later or 0.0, seconds, reason, "maintenance")


def _quiet(match: Mapping[str, Sequence[str]], later_s: float, seconds: float, reason: str, notice: str) -> int:
    from dramatiq_chaperone.store import alerts as rows
    from dramatiq_chaperone.store import audit

    begin = time.time() + later_s
    with reading(load_settings()) as store:
        key = rows.silence(store, match, starts_at=begin, until=begin + seconds, reason=reason, owner=asker(), notice=notice)
        audit.begin(store, who=asker(), what=f"alert {notice}", target=key, origin="cli", result="done")
    click.echo(f"{notice} {key} until {formats.clock(moment(begin + seconds))}; end it with: chaperone alerts unsilence {key}")
    return OK


@alerts.command("silences")
@store_options
@format_option
def silences(output: str) -> int:
    """List silences and maintenance windows that hold now, or will. Exit code 1 when there is none."""
    from dramatiq_chaperone.alerts.routing import windows_of
    from dramatiq_chaperone.store import alerts as rows

    settings = load_settings()
    now = time.time()
    with reading(settings) as store:
        found = rows.silences(store, now=now)
    found += [each._asdict() for each in windows_of(settings) if each.until > now]
    if output == "json":
        write_json(
            {"silences": [{**row, "starts_at": moment(row["starts_at"]), "until": moment(row["until"])} for row in found], "next": None}
        )
    elif found:
        write_table(SILENCE_COLUMNS, [_silence_cells(row) for row in found])
    else:
        click.echo("Nothing is silenced.", err=True)
    return OK if found else FAILED


@alerts.command("unsilence")
@click.argument("key", metavar="ID")
@store_options
def unsilence(key: str) -> int:
    """End a silence or a maintenance window before its time."""
    from dramatiq_chaperone.store import alerts as rows
    from dramatiq_chaperone.store import audit

    with reading(load_settings()) as store:
        if not rows.end_silence(store, key, time.time()):
            raise ChaperoneError(f"No silence {key} holds. `chaperone alerts silences` lists those that do.")
        audit.begin(store, who=asker(), what="alert unsilence", target=key, origin="cli", result="done")
    click.echo(f"{key}: ended")
    return OK


@alerts.command("limits", epilog="\b\nExamples:\n  chaperone alerts limits\n  chaperone alerts limits --clear circuit_breaker payments")
@click.argument("type_", metavar="[TYPE]", required=False)
@click.argument("key", metavar="[KEY]", required=False)
@click.option("--clear", "is_clearing", is_flag=True, help="Let them be told again at once: all, of a TYPE, or of a KEY.")
@store_options
@format_option
def limits(type_: str | None, key: str | None, is_clearing: bool, output: str) -> int:
    """List what was told so lately that it is not told again, should it come anew; or clear that. Exit code 1 when there is none."""
    from dramatiq_chaperone.alerts.kinds import fingerprint
    from dramatiq_chaperone.alerts.routing import limit_s
    from dramatiq_chaperone.alerts.trial import type_named
    from dramatiq_chaperone.store import alerts as rows
    from dramatiq_chaperone.store import audit

    settings = load_settings()
    name = None if type_ is None else _known(type_named, type_)
    now = time.time()
    with reading(settings) as store:
        if is_clearing:
            number = rows.clear_limits(store, name, fingerprint(name, key) if name and key else None)
            audit.begin(
                store,
                who=asker(),
                what="alert limits clear",
                target=" ".join(filter(None, (name, key))) or "all",
                origin="cli",
                result="done",
            )
            click.echo(f"{number} cleared")
            return OK
        found = [row for row in rows.limits(store, since=now - _LIMITS_S) if now - row["limited_from"] < limit_s(row["type"], settings)]
    found = [row for row in found if name in {None, row["type"]} and key in {None, row["key"]}]
    if output == "json":
        write_json({"limits": [{**row, "limited_from": moment(row["limited_from"])} for row in found], "next": None})
    elif found:
        until = [moment(row["limited_from"] + limit_s(row["type"], settings)) for row in found]
        write_table(
            LIMIT_COLUMNS,
            [
                (
                    row["type"],
                    formats.text(row["subject"]),
                    formats.text(row["key"]),
                    formats.clock(moment(row["limited_from"])),
                    formats.clock(end),
                )
                for row, end in zip(found, until, strict=True)
            ],
        )
    else:
        click.echo("No limit holds.", err=True)
    return OK if found else FAILED


@alerts.command("stats")
@click.option("--since", "seconds", type=Span(), default=str(int(_STATISTICS_S)), metavar="DURATION", help="Of how long; default: an hour.")
@store_options
@format_option
def stats(seconds: float, output: str) -> int:
    """Tell how deliveries went: healthy while under 5 % of the attempts fail. Exit code 1 where they are not."""
    from dramatiq_chaperone.store import deliveries

    with reading(load_settings()) as store:
        health = deliveries.health(deliveries.statistics(store, since=(now := time.time()) - seconds, now=now))
    if output == "json":
        write_json(health)
    else:
        word = {True: "healthy", False: "unhealthy", None: "unknown: nothing was sent"}[health["healthy"]]
        found = health["stats"]
        write_pairs(
            [
                ("health", word),
                ("overdue", str(found["overdue"])),
                ("sent", str(found["total_sent"])),
                ("failed", f"{found['total_failed']} ({health['failure_rate']} %)"),
            ]
        )
        for title, name in (("By channel", "by_channel"), ("By type", "by_type")):
            if found[name]:
                write_heading(title)
                columns = (Column(title[3:].title(), is_firm=True), Column("Sent", is_number=True), Column("Failed", is_number=True))
                write_table(
                    columns, [(each, str(numbers["sent"]), str(numbers["failed"])) for each, numbers in sorted(found[name].items())]
                )
    return FAILED if health["healthy"] is False else OK


def known_alert(store: Store, key: str) -> Row:
    """The alert of this id.  Raises ChaperoneError."""
    from dramatiq_chaperone.store import alerts as rows

    row = rows.find(store, key)
    if row is None:
        raise ChaperoneError(f"No alert {key} is on record. `chaperone alerts` lists those that are.")
    return row


def matcher_of(texts: Sequence[str]) -> dict[str, list[str]]:
    """``actor=import_*`` and the like, as a matcher; a label twice is either.  Raises click.UsageError."""
    from dramatiq_chaperone.settings import checked_matcher

    found: dict[str, list[str]] = {}
    for text in texts:
        label, sign, pattern = text.partition("=")
        if not sign or not pattern:
            raise click.UsageError(f"{text!r} is no LABEL=PATTERN, such as actor=import_*.")
        found.setdefault(label, []).append(pattern)
    try:
        return checked_matcher(found)
    except SettingsError as error:
        raise click.UsageError(str(error)) from error


def _known(named: Any, name: str) -> str:
    try:
        return str(named(name))
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def moment(at: float | None) -> datetime | None:
    """Unix seconds as an aware datetime; for ever is the last moment there is."""
    if at is None:
        return None
    return datetime.max.replace(tzinfo=UTC) - timedelta(days=2) if at == float("inf") else datetime.fromtimestamp(at, UTC)


def headline(row: Row) -> str:
    """What it is."""
    from dramatiq_chaperone.alerts.kinds import kind_of

    return formats.text(f"{row['evidence'].get('title') or kind_of(row['type']).title}: {row['subject']}")


def said(row: Row) -> str:
    """Its status, and what was made of it."""
    parts = [row["status"]]
    if row["acknowledged_at"] is not None:
        parts.append(f"{row['acknowledged_by']} looks after it since {formats.clock(moment(row['acknowledged_at']))}")
    if row["resolved_at"] is not None:
        parts.append(f"over since {formats.clock(moment(row['resolved_at']))}")
    if row["suppressed"]:
        parts.append(f"nobody was told: {row['suppressed']}")
    return "; ".join(parts)


def cells(row: Row, now: datetime) -> tuple[str, ...]:
    """An alert in the list."""
    told = formats.ago(moment(row["told_at"]), now) if row["told_at"] is not None else row["suppressed"] or "not yet"
    return (
        str(row["id"]),
        row["severity"],
        row["status"],
        headline(row),
        formats.ago(moment(row["first_seen_at"]), now),
        formats.ago(moment(row["last_seen_at"]), now),
        str(row["number"]),
        told,
        formats.text(row["acknowledged_by"]),
    )


def data(row: Row) -> dict[str, Any]:
    """An alert as JSON has it."""
    times = {name: moment(value) for name, value in row.items() if name.endswith("_at") or name == "limited_from"}
    return {**row, **times}


def _silence_cells(row: Row) -> tuple[str, ...]:
    match = " ".join(f"{label}={','.join(patterns)}" for label, patterns in row["match"].items()) or "everything"
    forever = row["until"] == float("inf")
    until = "for ever" if forever else formats.clock(moment(row["until"]))
    return (
        row["id"],
        row["notice"],
        formats.text(match),
        formats.clock(moment(row["starts_at"])),
        until,
        formats.text(row["owner"]),
        formats.text(row["reason"]),
    )
