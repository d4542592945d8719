"""`chaperone monitor`."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from dramatiq_chaperone.errors import StoreError

from . import formats
from .options import OK, explained, load_settings, reading, store_options
from .output import STATUS_STYLES, Column, console, fitting, is_terminal, plain_table, rich_table, write_json
from .status import NO_JOBS

if TYPE_CHECKING:
    from rich.console import RenderableType

    from dramatiq_chaperone.settings import Settings
    from dramatiq_chaperone.store import Store

    Row = Mapping[str, Any]

#: Rows of each kind that are shown; with --format json.
_ROWS: Final = 50
_JSON_ROWS: Final = 1000
_RECENT: Final = timedelta(hours=1)
#: Lines of a section beside its rows: a blank one, its title, those around a table.
_FRAME: Final = 6

_EPILOG = """\b
Examples:
  chaperone monitor
  chaperone monitor --refresh 1 --format compact
  chaperone monitor --format json | jq '.stuck_jobs[].id'
"""


@dataclass(frozen=True)
class Snapshot:
    """What is going on at one moment; lists are cut, totals are not."""

    at: datetime
    active: Sequence[Row]
    active_total: int
    stuck: Sequence[Row]
    stuck_total: int
    #: Of the last hour.
    violations: Sequence[Row]
    violations_total: int
    breakers: Sequence[Row]
    #: No job is on record at all.
    is_empty: bool = False

    @property
    def open_breakers(self) -> int:
        """Circuit breakers that are open."""
        return sum(breaker["state"] == "open" for breaker in self.breakers)


class Section(NamedTuple):
    """A part of the screen."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]


@click.command(epilog=_EPILOG)
@click.option(
    "--refresh",
    "refresh_s",
    type=click.FloatRange(0.2, 3600),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How often it looks.",
)
@click.option(
    "--format",
    "output",
    type=click.Choice(["table", "compact", "json"]),
    default="table",
    show_default=True,
    help="How it is printed; json once.",
)
@store_options
def monitor(refresh_s: float, output: str) -> int:
    """Watch what runs, is stuck, passes its limits, and which breakers are open, until Ctrl-C.

    A job is stuck when its status is stalled. In a pipe one picture follows the other. --format json prints one and ends.
    """
    settings = load_settings()
    # The terminal is put in order at the end, whoever ends it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with reading(settings) as store:
            if output == "json":
                snapshot = look(store, datetime.now(UTC), rows=_JSON_ROWS)
                write_json(as_json(snapshot))
                if snapshot.is_empty:
                    click.echo(NO_JOBS, err=True)
            else:
                _watch(settings, store, refresh_s, is_compact=output == "compact")
    except KeyboardInterrupt:
        pass
    return OK


def look(store: Store, now: datetime, *, rows: int = _ROWS) -> Snapshot:
    """What the store says at *now*, at most so many *rows* of each kind.  Raises StoreError."""
    from dramatiq_chaperone.store import queries

    counts = queries.job_counts(store, ("running", "stalled"))
    active, _ = queries.list_jobs(store, status=("running", "stalled"), limit=rows)
    stuck, _ = queries.list_jobs(store, status="stalled", limit=rows)
    violations, total = queries.list_violations(store, since=now - _RECENT, limit=rows)
    is_empty = not active and not queries.list_jobs(store, limit=1)[0]
    return Snapshot(now, active, sum(counts.values()), stuck, counts["stalled"], violations, total, queries.list_breakers(store), is_empty)


def stuck_s(job: Row, now: datetime) -> float | None:
    """Seconds since the job was last heard of: its last heartbeat, else its start."""
    since = job["last_heartbeat_at"] or job["started_at"]
    return None if since is None else max(0.0, (now - since).total_seconds())


def as_json(snapshot: Snapshot) -> dict[str, Any]:
    """The picture as data; jobs are named by their message's id."""
    now = snapshot.at
    return {
        "timestamp": now,
        "active_jobs": [
            {"id": job["job_id"], "job_class": job["actor_name"], **{n: job[n] for n in ("started_at", "last_heartbeat_at", "status")}}
            for job in snapshot.active
        ],
        "stuck_jobs": [
            {
                "id": job["job_id"],
                "job_class": job["actor_name"],
                "stuck_duration_seconds": stuck_s(job, now),
                "last_heartbeat_at": job["last_heartbeat_at"],
            }
            for job in snapshot.stuck
        ],
        "resource_violations": [
            {"supervised_job_id": each["job_id"], "recorded_at": each["created_at"], **{n: each[n] for n in ("type", "limit", "actual")}}
            for each in snapshot.violations
        ],
        "circuit_breakers": [
            {"failures": each["failure_count"], **{n: each[n] for n in ("service", "state", "last_failure_at", "opened_at")}}
            for each in snapshot.breakers
        ],
    }


def sections(snapshot: Snapshot, *, is_short: bool) -> list[Section]:
    """The picture as tables.  *is_short*: for a terminal, with short ids and no date of today."""
    now = snapshot.at

    def name(job_id: str | None) -> str:
        return formats.NOTHING if job_id is None else formats.short_id(job_id) if is_short else job_id

    def clock(at: datetime | None) -> str:
        return formats.clock_near(at, now) if is_short else formats.clock(at)

    job, actor, heard = Column("ID", is_firm=True), Column("Job Class"), Column("Last Heartbeat", is_firm=True)
    return [
        Section(
            _title("Active jobs", len(snapshot.active), snapshot.active_total),
            (job, actor, Column("Started", is_firm=True), heard, Column("Status", is_firm=True)),
            [
                (
                    name(each["job_id"]),
                    formats.text(each["actor_name"]),
                    clock(each["started_at"]),
                    formats.ago(each["last_heartbeat_at"], now),
                    str(each["status"]),
                )
                for each in snapshot.active
            ],
        ),
        Section(
            _title("Stuck jobs", len(snapshot.stuck), snapshot.stuck_total),
            (job, actor, Column("Stuck Duration", is_number=True), heard),
            [
                (
                    name(each["job_id"]),
                    formats.text(each["actor_name"]),
                    formats.seconds(stuck_s(each, now)),
                    formats.ago(each["last_heartbeat_at"], now),
                )
                for each in snapshot.stuck
            ],
        ),
        Section(
            _title("Violations of the last hour", len(snapshot.violations), snapshot.violations_total),
            (
                Column("Job ID", is_firm=True),
                Column("Type"),
                Column("Limit", is_number=True),
                Column("Actual", is_number=True),
                Column("Recorded At", is_firm=True),
            ),
            [
                (
                    name(each["job_id"]),
                    str(each["type"]),
                    formats.amount(each["type"], each["limit"]),
                    formats.amount(each["type"], each["actual"]),
                    clock(each["created_at"]),
                )
                for each in snapshot.violations
            ],
        ),
        Section(
            f"Circuit breakers: {len(snapshot.breakers)}, {snapshot.open_breakers} open",
            (
                Column("Service"),
                Column("State", is_firm=True),
                Column("Failures", is_number=True),
                Column("Last Failure"),
                Column("Opened At"),
            ),
            [
                (
                    str(each["service"]),
                    str(each["state"]),
                    formats.number(each["failure_count"]),
                    clock(each["last_failure_at"]),
                    clock(each["opened_at"]),
                )
                for each in snapshot.breakers
            ],
        ),
    ]


def compact(snapshot: Snapshot) -> list[str]:
    """The picture in four lines."""
    counts = (
        ("Active Jobs", snapshot.active_total),
        ("Stuck Jobs", snapshot.stuck_total),
        ("Violations (Last Hour)", snapshot.violations_total),
        ("Open Circuit Breakers", snapshot.open_breakers),
    )
    return [f"{title + ':':24}{formats.number(count):>8}" for title, count in counts]


def plain(snapshot: Snapshot, *, is_compact: bool) -> list[str]:
    """The picture as lines, without colours and boxes."""
    lines = [formats.clock(snapshot.at), *([NO_JOBS] if snapshot.is_empty else ())]
    if is_compact:
        return [*lines, *compact(snapshot)]
    for section in sections(snapshot, is_short=False):
        lines += ["", section.title, *(plain_table(section.columns, section.rows) if section.rows else ())]
    return lines


def room(lengths: Sequence[int], lines: int) -> list[int]:
    """How many of so many rows each section gets on a screen; what one does not need goes to the others."""
    left = lines - sum(_FRAME if length else 2 for length in lengths)
    given = [0] * len(lengths)
    while left > 0 and given != list(lengths):
        for place, length in enumerate(lengths):
            if given[place] < length and left > 0:
                given[place] += 1
                left -= 1
    return given


def _title(what: str, shown: int, total: int) -> str:
    return f"{what}: {formats.number(total)}" if shown >= total else f"{what}: {formats.number(total)}, the newest {shown}"


def _watch(settings: Settings, store: Store, refresh_s: float, *, is_compact: bool) -> None:
    if not is_terminal():
        for number, (snapshot, trouble) in enumerate(_looks(settings, store, refresh_s)):
            if trouble:
                click.echo(f"chaperone: {trouble}", err=True)
            else:
                click.echo("\n".join([*([""] if number else []), *plain(snapshot, is_compact=is_compact)]))
        return
    from rich.live import Live

    screen = console()
    with Live(console=screen, screen=True, auto_refresh=False) as live:
        for snapshot, trouble in _looks(settings, store, refresh_s):
            size = screen.size
            live.update(_picture(snapshot, trouble, refresh_s, size.width, size.height, is_compact=is_compact), refresh=True)


def _looks(settings: Settings, store: Store, refresh_s: float) -> Iterator[tuple[Snapshot, str | None]]:
    """A look every *refresh_s*; once one has succeeded, the last one and what the matter is while the store is away."""
    snapshot = look(store, datetime.now(UTC))
    yield snapshot, None
    while True:
        time.sleep(refresh_s)
        trouble = None
        try:
            snapshot = look(store, datetime.now(UTC))
        except StoreError as error:
            trouble = str(explained(error, settings))
        yield snapshot, trouble


def _picture(snapshot: Snapshot, trouble: str | None, refresh_s: float, width: int, height: int, *, is_compact: bool) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    head = f"Chaperone, {formats.clock(snapshot.at)}; every {formats.seconds(refresh_s)}; Ctrl-C ends it"
    parts: list[RenderableType] = [Text(head, style="dim", no_wrap=True)]
    trouble = trouble or (NO_JOBS if snapshot.is_empty else None)
    if trouble:
        parts.append(Text(trouble, style="bold yellow"))
    if is_compact:
        return Group(*parts, Text("\n" + "\n".join(compact(snapshot))))
    shown = sections(snapshot, is_short=True)
    for section, rows in zip(shown, room([len(each.rows) for each in shown], height - 1 - 3 * bool(trouble)), strict=True):
        cut = f" ({rows} fit)" if rows < len(section.rows) else ""
        parts.append(Text(f"\n{section.title}{cut}", style="bold"))
        if section.rows:
            places = fitting(section.columns, section.rows[:rows], width)
            cells = [[row[place] for place in places] for row in section.rows[:rows]]
            parts.append(rich_table([section.columns[place] for place in places], cells, styles=STATUS_STYLES))
    return Group(*parts)
