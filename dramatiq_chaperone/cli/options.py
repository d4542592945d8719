"""What the commands have in common: exit codes, the options that choose a store, and how it is opened."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from dramatiq_chaperone.errors import ChaperoneError, SchemaError, StoreError, StoreUnavailable
from dramatiq_chaperone.settings import Settings

if TYPE_CHECKING:
    from dramatiq_chaperone.store import Store

Command = TypeVar("Command", bound=Callable[..., Any])

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 130
PIPE_CLOSED: Final = 141

#: What each exit code means; docs/cli.md says the same.
EXIT_CODES: Final = {
    OK: "done, and something was found",
    FAILED: "a problem: no store, an old one, a job that is not there; nothing found",
    USAGE: "wrong usage: an option, an argument or a setting",
    INTERRUPTED: "Ctrl-C",
    PIPE_CLOSED: "whoever read the output has had enough, as `| head` does",
}

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


class Unclear(click.UsageError):
    """The options are right, and do not say what to do: nothing is done."""

    exit_code = FAILED


class WithDefault(click.Group):
    """A group whose `list` need not be written."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the name of the default in front, unless a command or the help is asked for."""
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


def store_options(command: Command) -> Command:
    """Add --database-url and --config; on the group and on its commands, where the nearer one wins."""
    for name, metavar, text in (
        ("--config", "FILE", "A chaperone.toml; else the one in the working directory."),
        ("--database-url", "URL", "The store: sqlite:///path, postgresql://… or mysql://…"),
    ):
        command = click.option(name, metavar=metavar, callback=_remember, expose_value=False, help=text)(command)
    return command


def broker_option(command: Command) -> Command:
    """Add --broker, the setting of that name; see :mod:`.broker`."""
    text = "Where your broker is, to ask it now; also CHAPERONE_BROKER."
    return click.option("--broker", metavar="MODULE[:ATTRIBUTE]", callback=_remember, expose_value=False, help=text)(command)


def _remember(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        context.ensure_object(dict)[parameter.name] = value


def format_option(command: Command) -> Command:
    """Add --format table|json."""
    choice = click.Choice(["table", "json"])
    return click.option("--format", "output", type=choice, default="table", show_default=True, help="How it is printed.")(command)


def page_options(command: Command) -> Command:
    """Add --limit and --after, for a list that comes in pages."""
    command = click.option("--after", metavar="NEXT", help="The page after the one that ended with this.")(command)
    number = click.IntRange(1, 10_000)
    return click.option("--limit", type=number, default=25, show_default=True, help="At most so many.")(command)


@contextmanager
def known_page() -> Iterator[None]:
    """Have a wrong --after be wrong usage."""
    try:
        yield
    except ValueError as error:
        raise click.BadParameter("it is not what an earlier page gave as next.", param_hint="--after") from error


def after_hint(following: str | None) -> None:
    """Say on standard error how the next page is read, if there is one."""
    if following:
        click.echo(f"There are more: the same with --after {following}", err=True)


def load_settings() -> Settings:
    """The settings in effect; an option of the command line is an argument.  Raises SettingsError."""
    return Settings.load(click.get_current_context().ensure_object(dict))


@contextmanager
def reading(settings: Settings) -> Iterator[Store]:
    """The store, which must be there: no reader creates or upgrades it.

    Raises:
      StoreError: it cannot be read; the message says why, and what to run.
    """
    from dramatiq_chaperone.store import open_store

    if is_missing(settings):
        raise StoreUnavailable(f"There is no store yet at {settings.safe_database_url}. {_ADVICE_MISSING}")
    with told(settings):
        store = open_store(settings, create=False)
        try:
            yield store
        finally:
            store.close()


#: Jobs that the beginning of an id may stand for before it is too short to list them.
_CANDIDATES: Final = 10


def whole_id(store: Store, beginning: str) -> str:
    """The id of the one job whose id is, or begins with, *beginning*.

    Raises:
      ChaperoneError: there is none, or there are several; the message lists them.
    """
    from dramatiq_chaperone.store import queries

    found = queries.ids_like(store, beginning, limit=_CANDIDATES + 1)
    if len(found) == 1:
        return found[0]
    if found:
        more = ["  …"] if len(found) > _CANDIDATES else []
        raise ChaperoneError("\n".join([f"Several jobs begin with {beginning}:", *(f"  {each}" for each in found[:_CANDIDATES]), *more]))
    lost = f"No job {beginning} is on record; it may be pruned, or in another store."
    raise ChaperoneError(f"{lost} `chaperone jobs` lists those that are.")


@contextmanager
def told(settings: Settings) -> Iterator[None]:
    """Have every error of the store say which store, and what to do."""
    try:
        yield
    except StoreError as error:
        raise explained(error, settings) from error


_ADVICE_MISSING: Final = (
    "The first worker with broker.add_middleware(Chaperone()) makes it; `chaperone demo` shows one.\n"
    "Is it elsewhere? Give --database-url, or set CHAPERONE_DATABASE_URL or CHAPERONE_STATE_DIR as your workers have it."
)


def is_missing(settings: Settings) -> bool:
    """Whether the store is a SQLite file that does not exist."""
    from dramatiq_chaperone.store.database import kind_of, sqlite_path

    url = settings.database_url
    try:
        return kind_of(url) == "sqlite" and not sqlite_path(url).exists()
    except OSError as error:
        raise StoreUnavailable(f"{sqlite_path(url)} cannot be read: {error.strerror}") from error


def explained(error: StoreError, settings: Settings) -> StoreError:
    """*error*, with the store that it is about and what to do."""
    from dramatiq_chaperone.store.database import DriverMissing

    where = settings.safe_database_url
    if isinstance(error, DriverMissing):
        return error
    if isinstance(error, SchemaError):
        if error.found is None:
            return SchemaError(f"There are no tables of Chaperone in {where}; run `chaperone db upgrade`.", **error.__dict__)
        return SchemaError(f"{error} ({where})", **error.__dict__)
    return type(error)(f"The store at {where} does not answer: {error}\nIs the URL right? `chaperone config` shows where it came from.")


def moment(text: str, now: datetime) -> datetime:
    """A time in the past: ``2h`` (s, m, h, d, w) before *now*, or a date, with or without a time, in the reader's zone.

    Raises:
      ValueError: it is neither.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw])", text.strip())
    if found:
        return now - timedelta(seconds=float(found[1]) * _UNITS[found[2]])
    return datetime.fromisoformat(text).astimezone(UTC)


class Moment(click.ParamType[datetime]):
    """A click parameter: :func:`moment`."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """A time in UTC."""
        try:
            return moment(str(value), datetime.now(UTC))
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is no time; write 30m, 2h, 1d, 2026-01-31 or '2026-01-31 14:00'.", param, ctx)


class Span(click.ParamType[float]):
    """A duration in seconds: ``30m``, ``2h``, ``1d``, or a number of seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw]?)", str(value).strip())
        if not found or not 0 < float(found[1]) * _UNITS[found[2] or "s"] <= 365 * 86_400:
            self.fail(f"{value!r} is no duration up to a year; write 30m, 2h or 1d.", param, ctx)
        return float(found[1]) * _UNITS[found[2] or "s"]
