"""`chaperone dead-letters`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from dramatiq_chaperone.errors import ChaperoneError, CommandRefused

from . import formats
from .asking import asker
from .broker_letters import broker_letters, write_broker_letters
from .completion import names_of
from .job_page import arguments_of
from .options import (
    FAILED,
    OK,
    Moment,
    WithDefault,
    after_hint,
    broker_option,
    format_option,
    known_page,
    load_settings,
    page_options,
    reading,
    store_options,
    whole_id,
)
from .output import Column, is_terminal, write_heading, write_json, write_pairs, write_table
from .retrying import Result, Retries, progress

if TYPE_CHECKING:
    from dramatiq_chaperone.store import Store
    from dramatiq_chaperone.store.deadletters import Picked

Command = TypeVar("Command", bound=Callable[..., Any])
Row = Mapping[str, Any]

#: What --all takes unless --limit says otherwise.
BULK: Final = 1000

REASONS: Final = ("retries exhausted", "rejected", "poison", "unknown actor", "age", "not kept")


def _filters(command: Command) -> Command:
    """Add the options that pick dead letters."""
    for option in (
        click.option("--before", type=Moment(), metavar="TIME", help="Failed before then: 7d, or a date."),
        click.option("--since", type=Moment(), metavar="TIME", help="Failed since then: 30m, 2h, 1d, or a date."),
        click.option("--exception", metavar="TEXT", help="Only those whose exception has this in its name: timeout."),
        click.option("--reason", type=click.Choice(REASONS), help="Only those with this reason."),
        click.option("--queue", shell_complete=names_of("queue"), help="Only this queue."),
        click.option("--actor", shell_complete=names_of("actor_name"), help="Only this actor."),
    ):
        command = option(command)
    return command


@click.group("dead-letters", cls=WithDefault)
@store_options
def dead_letters() -> None:
    """Look at messages that failed for good, send them again, delete them."""


@dead_letters.command(
    "list",
    epilog="\b\nExamples:\n  chaperone dead-letters\n  chaperone dead-letters --actor charge --since 1d --waiting\n"
    "  chaperone dead-letters list --broker app.broker     what the broker keeps and the store does not know, too",
)
@_filters
@click.option("--retried/--waiting", "retried", default=None, help="Only those that were sent again, or only those that were not.")
@page_options
@broker_option
@store_options
@format_option
def list_(limit: int, after: str | None, output: str, **filters: Any) -> int:
    """List dead letters, the last to fail first. Exit code 1 when there is none.

    Those that the broker keeps and the store does not know are counted by queue; a broker that can be asked (--broker)
    tells which they are, RabbitMQ excepted.
    """
    settings = load_settings()
    from dramatiq_chaperone.store import queries
    from dramatiq_chaperone.store.deadletters import Picked

    picked = Picked(**filters)
    now = datetime.now(UTC)
    with reading(settings) as store:
        with known_page():
            found, following = queries.dead_letter_page(store, picked, limit=limit, after=after)
        others = broker_letters(store, settings, queue=picked.queue, now=now)
    if output == "json":
        write_json({"dead_letters": found, "next": following, "broker": others})
    else:
        if found:
            write_table(_COLUMNS, [_cells(row, now, is_short=is_terminal()) for row in found])
            after_hint(following)
        write_broker_letters(others, now)
        if not found and not others:
            is_filtered = any(value is not None for value in picked)
            click.echo("No dead letter is like that." if is_filtered else "There are no dead letters.", err=True)
    return OK if found or others else FAILED


@dead_letters.command("show", epilog="\b\nExamples:\n  chaperone dead-letters show 4f9e")
@click.argument("job_id", metavar="ID")
@store_options
@format_option
def show(job_id: str, output: str) -> int:
    """Tell everything about one dead letter. ID is that of its job, or the beginning of it."""
    settings = load_settings()
    with reading(settings) as store:
        letter = _one(store, job_id)
    if output == "json":
        write_json(letter)
        return OK
    now = datetime.now(UTC)
    pairs = [
        ("Job", letter["job_id"]),
        ("Actor", letter["actor_name"]),
        ("Queue", letter["queue"]),
        ("Failed", f"{formats.clock(letter['failed_at'])}, {formats.ago(letter['failed_at'], now)}"),
        ("Reason", letter["reason"]),
        ("Arguments", arguments_of(letter)),
        ("Sent again", _sent_again(letter, now)),
    ]
    write_pairs([(name, formats.text(value)) for name, value in pairs if value])
    if letter["exception"]:
        write_heading("Why")
        click.echo((letter["trace"] or f"{letter['exception']}: {letter['message'] or ''}").rstrip())
    return OK


def _one(store: Store, beginning: str) -> Row:
    """The latest dead letter of the one job whose id is, or begins with, that.  Raises ChaperoneError."""
    from dramatiq_chaperone.store import queries

    found = queries.dead_letters_like(store, beginning, limit=50)
    jobs = list(dict.fromkeys(row["job_id"] for row in found))
    if not jobs:
        raise ChaperoneError(f"No dead letter {beginning} is on record; `chaperone dead-letters` lists those that are.")
    if len(jobs) > 1:
        raise ChaperoneError("\n".join([f"Several dead letters begin with {beginning}:", *(f"  {each}" for each in jobs[:10])]))
    return found[0]


@dead_letters.command(
    "retry",
    epilog="\b\nExamples:\n  chaperone dead-letters retry 4f9e 81c2\n  chaperone dead-letters retry --all --actor charge --since 2h\n"
    "  chaperone dead-letters retry --all --yes --limit 5000 --format json",
)
@click.argument("job_ids", nargs=-1, metavar="[ID]...")
@_filters
@click.option("--all", "is_all", is_flag=True, help="All that are like that and were not sent again yet, the oldest first.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=BULK, show_default=True, help="With --all: at most so many.")
@click.option("--yes", "is_sure", is_flag=True, help="Do not ask.")
@click.option("--again", is_flag=True, help="Also what was claimed more than a minute ago and never showed up as a job.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(0, 3600), default=30.0, show_default=True, metavar="SECONDS",
              help="Wait so long for a worker.")  # fmt: skip
@store_options
@format_option
def retry(
    job_ids: tuple[str, ...], is_all: bool, limit: int, is_sure: bool, again: bool, timeout_s: float, output: str, **filters: Any
) -> int:
    """Send dead letters again, each once, as new jobs. ID is that of a job, or its beginning; also of a job that just failed.

    A worker that has the actor does it; while there is none, the request waits for one, for an hour. Exit code 1 unless
    all of them were sent.
    """
    from dramatiq_chaperone.store import queries
    from dramatiq_chaperone.store.deadletters import Picked

    picked = Picked(**filters, retried=False)
    if bool(job_ids) == is_all:
        raise click.UsageError("Name the jobs, or take --all, with or without filters.")
    if job_ids and any(value is not None for value in filters.values()):
        raise click.UsageError("Filters go with --all.")
    settings = load_settings()
    with reading(settings) as store:
        letters = queries.dead_letters_to_retry(store, picked, limit=limit) if is_all else [_to_retry(store, each) for each in job_ids]
        if not letters:
            click.echo("No dead letter that was not sent again is like that.", err=True)
            return FAILED
        if is_all:
            _confirm(f"Send {formats.number(len(letters))} messages again?", is_sure=is_sure)
        with progress("Sending again", len(letters)) as advance:
            results = Retries(store, who=asker(), again=again, timeout_s=timeout_s, advance=advance).run(letters)
    return _told(results, output)


def _told(results: Sequence[Result], output: str) -> int:
    sent = [each for each in results if each.retried_as]
    if output == "json":
        write_json({"results": [each._asdict() for each in results]})
    elif len(results) == 1 or not sent:
        for each in results:
            click.echo(f"{each.job_id}: {'sent again as ' + each.retried_as if each.retried_as else each.reason}", err=not each.retried_as)
    else:
        columns = (Column("Job", is_firm=True), Column("Actor"), Column("Sent as", is_firm=True), Column("Why not"))
        write_table(
            columns, [tuple(formats.text(value) for value in (each.job_id, each.actor, each.retried_as, each.reason)) for each in results]
        )
        click.echo(f"{formats.number(len(sent))} of {formats.number(len(results))} were sent again.", err=True)
    return OK if len(sent) == len(results) else FAILED


def _to_retry(store: Store, beginning: str) -> Row:
    from dramatiq_chaperone.store import deadletters, queries

    if queries.dead_letters_like(store, beginning, limit=1):
        return _one(store, beginning)
    try:
        deadletters.letter_of(store, whole_id(store, beginning))
    except CommandRefused as refusal:
        raise ChaperoneError(f"This cannot be sent again: {refusal}.") from refusal
    return _one(store, beginning)


@dead_letters.command(
    "purge",
    epilog="\b\nExamples:\n  chaperone dead-letters purge 4f9e\n  chaperone dead-letters purge --all --before 7d --reason age\n"
    "  chaperone dead-letters purge --all --retried --yes",
)
@click.argument("job_ids", nargs=-1, metavar="[ID]...")
@_filters
@click.option("--retried/--waiting", "retried", default=None, help="Only those that were sent again, or only those that were not.")
@click.option("--all", "is_all", is_flag=True, help="All that are like that.")
@click.option("--yes", "is_sure", is_flag=True, help="Do not ask.")
@store_options
@format_option
def purge(job_ids: tuple[str, ...], is_all: bool, is_sure: bool, output: str, **filters: Any) -> int:
    """Delete dead letters from the store; the broker's own stay. ID is that of a job, or its beginning."""
    settings = load_settings()
    from dramatiq_chaperone.store import audit, deadletters
    from dramatiq_chaperone.store.deadletters import Picked

    picked = Picked(**filters)
    if bool(job_ids) == is_all:
        raise click.UsageError("Name the jobs, or take --all, with or without filters.")
    if job_ids and any(value is not None for value in filters.values()):
        raise click.UsageError("Filters go with --all.")
    with reading(settings) as store:
        letters = [_one(store, each) for each in job_ids]
        total = len(letters) or deadletters.count(store, picked)
        # Who names them without a terminal has said enough.
        is_sure = is_sure or not (is_all or sys.stdin.isatty())
        _confirm(f"Delete {formats.number(total)} dead letters from {settings.safe_database_url}?", is_sure=is_sure)
        target = ", ".join(each["job_id"] for each in letters) if letters else _in_words(picked)
        row = audit.begin(store, who=asker(), what="purge dead letters", target=target, origin="cli", result="begun")
        deleted = 0
        try:
            with progress("Deleting", total) as advance:
                keys = [str(each["id"]) for each in letters]
                for count in deadletters.purge(store, picked if is_all else None, letters=keys):
                    deleted += count
                    advance(count)
        finally:
            audit.finish(store, row, f"{deleted} deleted")
    if output == "json":
        write_json({"deleted": deleted})
    else:
        click.echo(f"{formats.number(deleted)} dead letters deleted.")
    return OK


def _in_words(picked: Picked) -> str:
    return ", ".join(f"{name} {value}" for name, value in picked._asdict().items() if value is not None) or "all"


def _confirm(question: str, *, is_sure: bool) -> None:
    if is_sure:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("--all without a terminal needs --yes.")
    click.confirm(question, abort=True)


_COLUMNS: Final = (
    Column("Job", is_firm=True),
    Column("Actor"),
    Column("Queue", is_extra=True),
    Column("Failed", is_firm=True),
    Column("Reason"),
    Column("Why"),
    Column("Sent as", is_extra=True),
)


def _cells(row: Row, now: datetime, *, is_short: bool) -> tuple[str, ...]:
    why = f"{row['exception']}: {row['message'] or ''}".rstrip(": ") if row["exception"] else None
    short = formats.short_id if is_short else str
    return (
        short(str(row["job_id"])),
        formats.text(row["actor_name"]),
        formats.text(row["queue"]),
        formats.clock_near(row["failed_at"], now) if is_short else formats.clock(row["failed_at"]),
        formats.text(row["reason"]),
        formats.text(why),
        formats.text(None if row["retried_as"] is None else short(str(row["retried_as"]))),
    )


def _sent_again(letter: Row, now: datetime) -> str | None:
    if letter["retried_at"] is None:
        return None
    when = f"{formats.ago(letter['retried_at'], now)}, as {letter['retried_as']}"
    if letter["retried_status"] is None:
        return f"{when}, which is not on record: it is on its way, pruned, or was never sent (then: retry --again)"
    return f"{when}, which is {letter['retried_status']}"
