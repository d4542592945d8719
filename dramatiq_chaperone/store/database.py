"""The connection to the database: one per thread, renewed when it is lost, never carried over a fork.

Every error of a driver leaves here as one of ours, without the password.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sqlite3
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import peewee

from ..errors import SchemaError, SettingsError, StoreError, StoreUnavailable
from ..service import unforkable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

T = TypeVar("T")

CONNECT_TIMEOUT_S: Final = 5
#: How long a statement of SQLite waits for another writer.
BUSY_TIMEOUT_S: Final = 10
#: A server that is cut off must not hold a thread for ever; the longest statement is a batch of a few MB.
_READ_TIMEOUT_S: Final = 60
_CONFLICT_TRIES: Final = 8
#: Serialization failure, deadlock (PostgreSQL's SQLSTATE; MySQL's deadlock, lock wait timeout).
_CONFLICTS: Final = frozenset({"40001", "40P01", 1213, 1205})
#: Undefined table, undefined column.
_MISSING: Final = frozenset({"42P01", "42703", 1146, 1054})

_SCHEMES: Final = {
    "sqlite": "sqlite",
    "postgres": "postgres",
    "postgresql": "postgres",
    "mysql": "mysql",
    "mariadb": "mysql",
}

#: Connections of a parent process: closing them here would end them there.
_abandoned: list[peewee.Database] = []


class DataRefused(StoreError):
    """The database took the statement, but not these values."""


class Conflict(StoreError):
    """Two transactions wanted the same rows; this one was chosen to try again."""


class DriverMissing(StoreError):
    """The Python package that speaks to this kind of database is not installed."""


class _Ends:
    """Closes the connection of a thread that ends, or of a database that nobody holds any more."""

    def __init__(self, connection: Any) -> None:
        self._connection, self._pid = connection, os.getpid()

    def __del__(self) -> None:
        if self._pid == os.getpid():
            with contextlib.suppress(Exception):  # it was closed before, or is broken
                self._connection.close()


class _Closing(peewee.Database):
    """Threads come and go, and nobody tells us: a view's, a pool's."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        self._ends = threading.local()
        super().__init__(*arguments, **more)

    def _connect(self) -> Any:
        connection = super()._connect()  # type: ignore[misc]  # not in the stubs
        self._ends.of_connection = _Ends(connection)
        return connection


class _SQLite(_Closing, peewee.SqliteDatabase):
    def _connect(self) -> Any:
        """Whoever makes a new file write ahead needs it for himself for a moment, and SQLite does not wait for that."""
        until = time.monotonic() + BUSY_TIMEOUT_S
        while True:
            try:
                return super()._connect()
            except (sqlite3.OperationalError, peewee.OperationalError) as error:
                if "locked" not in str(error) or time.monotonic() >= until:
                    raise
                time.sleep(0.01)


class _Postgres(_Closing, peewee.PostgresqlDatabase):
    limit_s: float | None = None

    def _initialize_connection(self, conn: Any) -> None:
        if self.limit_s is not None:
            conn.wait = functools.partial(_wait, conn, self.limit_s)
        conn.execute(f"SET TIME ZONE 'UTC'; SET statement_timeout = {int((self.limit_s or 0) * 1000)}")


def _wait(conn: Any, limit_s: float, generator: Any, *arguments: Any, **more: Any) -> Any:
    """psycopg's own waits for ever on a server that holds the connection and says nothing."""
    return type(conn).wait(conn, _bounded(conn, generator, time.monotonic() + limit_s), *arguments, **more)


def _bounded(conn: Any, generator: Any, until: float) -> Any:
    try:
        state = next(generator)
        while True:
            ready = yield state
            if not ready and time.monotonic() >= until:
                conn.pgconn.finish()
                raise peewee.OperationalError("The server does not answer.")
            state = generator.send(ready)
    except StopIteration as end:
        return end.value


class _MySQL(_Closing, peewee.MySQLDatabase):
    def _initialize_connection(self, conn: Any) -> None:
        with conn.cursor() as cursor:
            cursor.execute("SET time_zone = '+00:00', sql_mode = 'TRADITIONAL,NO_ENGINE_SUBSTITUTION'")
            # Gap locks would make writers of different jobs wait for each other.
            cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")


def kind_of(url: str) -> str:
    """Which database a URL names: 'sqlite', 'postgres' or 'mysql'."""
    scheme = urlsplit(url).scheme.partition("+")[0]
    if scheme not in _SCHEMES:
        raise SettingsError("database_url must start with sqlite, postgresql, mysql or mariadb", field="database_url")
    return _SCHEMES[scheme]


def sqlite_path(url: str) -> Path:
    """The file of a ``sqlite:///`` URL."""
    return Path(unquote(urlsplit(url).path)[1:])


def connect(url: str, *, limit_s: float | None) -> peewee.Database:
    """A peewee database for this URL; it connects when first used.  A statement may take *limit_s* seconds; None: as long as it likes."""
    kind = kind_of(url)
    if kind == "sqlite":
        pragmas = {"journal_mode": "wal", "synchronous": "normal", "foreign_keys": 1, "busy_timeout": BUSY_TIMEOUT_S * 1000}
        # Each thread has its own all the same; but the last reference to a connection may go anywhere, and it is closed there.
        return _SQLite(str(sqlite_path(url)), pragmas=pragmas, timeout=BUSY_TIMEOUT_S, check_same_thread=False)
    parts = urlsplit(url)
    login = {"host": parts.hostname, "port": parts.port, "user": parts.username, "password": parts.password}
    arguments: dict[str, Any] = {name: unquote(value) if isinstance(value, str) else value for name, value in login.items() if value}
    arguments |= dict(parse_qsl(parts.query))
    database = unquote(parts.path.lstrip("/"))
    if kind == "postgres":
        arguments = {"connect_timeout": CONNECT_TIMEOUT_S, "tcp_user_timeout": _READ_TIMEOUT_S * 1000, **arguments}
        postgres = _Postgres(database or arguments.get("user", "postgres"), prefer_psycopg3=True, **arguments)
        postgres.limit_s = limit_s
        return postgres
    timeouts = {"connect_timeout": CONNECT_TIMEOUT_S, "read_timeout": limit_s, "write_timeout": limit_s}
    return _MySQL(database, **{**timeouts, **arguments})


def make_file(path: Path) -> None:
    """Make SQLite's file and its folder, for this user alone, unless they are there.  Raises StoreUnavailable."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
    except OSError as e:
        raise StoreUnavailable(f"{path} cannot be made: {e.strerror}") from e


class Connections:
    """What the store runs its statements on.

    Statements are written with ``?`` for values and ``{name}`` for tables; :meth:`sql` turns them into what this
    database wants.

    Attributes:
      kind: 'sqlite', 'postgres' or 'mysql'.
      names: the name of each table in this database.
      limit_s: so long a server may take for a statement, in seconds; see :meth:`limit`.
    """

    def __init__(self, url: str, names: Mapping[str, str]) -> None:
        self.kind = kind_of(url)
        self.names = names
        self.limit_s: float | None = _READ_TIMEOUT_S
        self._url = url
        self._password = unquote(urlsplit(url).password or "")
        self._database: peewee.Database | None = None
        self._pid = 0
        self._prepared: dict[str, str] = {}

    @property
    def database(self) -> peewee.Database:
        """The peewee database of this process."""
        if self._database is None or self._pid != os.getpid():
            if self._database is not None:
                _abandoned.append(self._database)
            self._database, self._pid = connect(self._url, limit_s=self.limit_s), os.getpid()
        return self._database

    def limit(self, limit_s: float | None) -> None:
        """Give a server so many seconds for a statement, None: as long as it likes.  For when no other thread has a connection.

        It is for the connections that are opened from now on, so this thread's is closed.
        """
        self.limit_s = limit_s
        if self._pid == os.getpid():
            self.close()
            self._database = None

    def sql(self, text: str) -> str:
        """A statement in this database's words."""
        prepared = self._prepared.get(text)
        if prepared is None:
            prepared = text.format_map({name: self.quote(table) for name, table in self.names.items()})
            if self.kind != "sqlite":
                prepared = prepared.replace("%", "%%").replace("?", "%s")
            self._prepared[text] = prepared
        return prepared

    def quote(self, name: str) -> str:
        """A table's or column's name as it stands in a statement."""
        return f"`{name}`" if self.kind == "mysql" else f'"{name}"'

    def execute(self, text: str, values: Sequence[Any] = ()) -> Any:
        """Run one statement; returns the driver's cursor.  Raises StoreError."""
        with self.translated():
            return self.database.execute_sql(self.sql(text), tuple(values))

    def execute_many(self, text: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run one statement for each row.  SQLite alone is fast at it."""
        with self.translated():
            self.database.connection().executemany(self.sql(text), rows)

    def execute_literals(self, text: str, mark: str, literals: str) -> None:
        """Run a statement of MySQL in which literals stand for *mark*."""
        statement = self.sql(text).replace(mark, literals.replace("%", "%%"))
        with self.translated():
            self.database.execute_sql(statement, ())

    def rows(self, text: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run a query; returns all rows."""
        with self.translated():
            return [tuple(row) for row in self.execute(text, values).fetchall()]

    def transact(self, work: Callable[[], T]) -> T:
        """Run *work* in one transaction; again when the database chose it as the victim of a deadlock."""
        for _ in range(_CONFLICT_TRIES):
            try:
                with self.translated(), self._atomic():
                    return work()
            except Conflict as e:
                conflict = e
            except StoreUnavailable:
                self.close()
                raise
        raise StoreUnavailable("Too many transactions want the same rows.") from conflict

    def _atomic(self) -> Any:
        # A read that becomes a write cannot wait for another writer, it fails at once.
        return self.database.atomic("IMMEDIATE") if self.kind == "sqlite" else self.database.atomic()

    @contextlib.contextmanager
    def savepoint(self) -> Iterator[None]:
        """Undo only this part when it fails."""
        with self.translated(), self.database.savepoint():
            yield

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """Turn what a driver raises into our errors; drop a connection that is of no use any more; no fork in the middle."""
        try:
            with unforkable:
                yield
        except StoreError:
            raise
        except (peewee.PeeweeException, sqlite3.Error, OSError) as e:
            raise self._translate(e) from e
        except (UnicodeError, OverflowError) as e:
            raise DataRefused(self._safe(e)) from e

    def _translate(self, error: Exception) -> StoreError:
        if isinstance(error, peewee.ImproperlyConfigured):
            return DriverMissing(f"The driver for {self.kind} is not installed; run: pip install 'dramatiq-chaperone[{self.kind}]'")
        codes = _codes(error)
        text = self._safe(error)
        if codes & _CONFLICTS:
            return Conflict(text)
        if codes & _MISSING or "no such table" in text or "no such column" in text:
            return SchemaError(found=None)
        if isinstance(error, (peewee.DataError, peewee.IntegrityError, sqlite3.IntegrityError, sqlite3.DataError)) or codes & {
            1366,
            3140,
            4025,
        }:
            return DataRefused(text)
        if "closed database" in text or isinstance(
            error, (peewee.OperationalError, peewee.InterfaceError, peewee.InternalError, sqlite3.OperationalError, OSError)
        ):
            if not self.database.in_transaction():  # else transact does, when peewee has let go of it
                self.close()
            return StoreUnavailable(text)
        return StoreError(text)

    def _safe(self, error: Exception) -> str:
        text = " ".join(str(error).split())[:500] or type(error).__name__
        return text.replace(self._password, "***") if self._password else text

    def close(self) -> None:
        """Close this thread's connection; the next statement opens a new one."""
        if self._database is None or self._pid != os.getpid():
            return
        state: Any = self._database._state  # type: ignore[attr-defined]  # closing by itself fails inside a transaction
        connection = state.conn
        state.reset()  # also when a transaction was open on it: it is gone with the connection
        if connection is not None:
            try:
                with unforkable:
                    connection.close()
            except Exception:  # noqa: BLE001  # whatever a driver raises here
                return  # it was broken already, which may be why it is closed


def _codes(error: BaseException) -> set[object]:
    """What the driver said, in its own numbering."""
    codes: set[object] = set()
    for each in (error, error.__cause__, error.__context__, *error.args):
        codes.add(getattr(each, "sqlstate", None))
        arguments = getattr(each, "args", ())
        if arguments and isinstance(arguments[0], int):
            codes.add(arguments[0])
    return codes
