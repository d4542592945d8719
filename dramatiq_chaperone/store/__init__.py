"""The store: facts about jobs and their runs, in SQLite, PostgreSQL or MySQL.  The only package that imports peewee.

:func:`open_store` gives a :class:`Store`; a worker's journal comes in through :meth:`Store.apply`, everything that is
read goes out through :mod:`.queries`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from ..errors import SchemaError
from . import migrations
from .applying import Applied, apply
from .database import Connections, make_file, sqlite_path
from .keys import new_key
from .losses import worker_lost
from .times import stored_time

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Protocol

    from ..records import Origin

    class StoreSettings(Protocol):
        """What the store needs of the settings."""

        @property
        def database_url(self) -> str: ...
        @property
        def table_prefix(self) -> str: ...
        @property
        def table_names(self) -> Mapping[str, str]: ...
        @property
        def primary_key_type(self) -> str: ...
        @property
        def auto_migrate(self) -> bool: ...


__all__ = ["Applied", "Store", "open_store", "upgrade"]

_MAX_BROKERS: Final = 1000


class Store(Connections):
    """A database with Chaperone's tables in it; usable from any thread, and again after a fork.

    Attributes:
      key_type: 'id', 'ulid' or 'uuid'.
      ordered: False takes the order of reports away; only for the test that shows what that breaks.
    """

    def __init__(self, settings: StoreSettings) -> None:
        names = {table: settings.table_prefix + table for table in migrations.TABLES}
        names |= settings.table_names
        names["schema"] = f"{settings.table_prefix}chaperone_schema"
        super().__init__(settings.database_url, names)
        self.key_type = settings.primary_key_type
        self.ordered = True
        self._brokers: dict[str, str | None] = {}

    def new_key(self) -> str | None:
        """A key for a new row; None where the database counts."""
        return new_key(self.key_type)

    def position(self, worker_id: str) -> int:
        """Up to where this process's journal is in the store; 0 if nothing of it is.  Raises StoreUnavailable, SchemaError."""
        found = self.rows("SELECT sequence FROM {flushes} WHERE process = ?", (worker_id,))
        return int(found[0][0]) if found else 0

    def keep_positions(self, worker_ids: Sequence[str]) -> None:
        """Say that these journals are still in use, however quiet their processes are: retention leaves them alone."""
        now = stored_time(self.kind, time.time())
        for worker_id in sorted(worker_ids):
            self.execute("UPDATE {flushes} SET updated_at = ? WHERE process = ?", (now, worker_id))

    def apply(self, origin: Origin, entries: Sequence[tuple[Any, ...]], *, start: int, end: int) -> Applied:
        """Write a slice of a journal, once: one transaction moves its position from *start* to *end*.

        Where the position is not at *start* nothing is changed.  Raises StoreUnavailable, SchemaError.
        """
        return apply(self, origin, entries, start=start, end=end)

    def worker_lost(
        self, origin: Origin, *, at: float, exit_code: int | None, exit_cause: str | None, is_certain: bool = False
    ) -> list[str]:
        """Record that a worker died and what it ran; see :func:`.losses.worker_lost`."""
        return worker_lost(self, origin, at=at, exit_code=exit_code, exit_cause=exit_cause, is_certain=is_certain)

    def broker_of(self, origin: Origin) -> str | None:
        """The kind of broker that a worker is on; asked of the database once."""
        if origin.role != "worker":
            return None
        if origin.worker_id not in self._brokers:
            found = self.rows("SELECT broker FROM {workers} WHERE worker_id = ?", (origin.worker_id,))
            self.remember_broker(origin.worker_id, found[0][0] if found else None)
        return self._brokers.get(origin.worker_id)

    def remember_broker(self, worker_id: str, broker: str | None) -> None:
        """Keep what a worker's boot said."""
        if broker is not None:
            if len(self._brokers) >= _MAX_BROKERS:
                self._brokers.clear()
            self._brokers[worker_id] = broker


def open_store(settings: StoreSettings, *, create: bool, limit_s: float | None = None) -> Store:
    """The store of these settings.

    Parameters:
      create: the caller writes: SQLite's file and tables are made and upgraded, a server's with ``auto_migrate`` alone.
      limit_s: so long a server may take for a statement, in seconds; default: a minute.

    Raises:
      SchemaError: the tables are missing or of another version.
      StoreUnavailable: the database does not answer.
    """
    store = Store(settings)
    if limit_s is not None:
        store.limit(limit_s)
    if store.kind == "sqlite":
        path = sqlite_path(settings.database_url)
        if not create and not path.exists():
            raise SchemaError(f"There is no store at {path} yet; the first worker makes it.", found=None, wanted=migrations.VERSION)
        if create:
            make_file(path)
    try:
        if create and (store.kind == "sqlite" or settings.auto_migrate):
            migrations.upgrade(store, store.key_type)
        migrations.check(store)
    except BaseException:
        store.close()
        raise
    return store


def upgrade(settings: StoreSettings) -> int:
    """Bring the tables to the version of this release, whatever ``auto_migrate`` says.  Returns the steps taken."""
    store = Store(settings)
    if store.kind == "sqlite":
        make_file(sqlite_path(settings.database_url))
    try:
        return migrations.upgrade(store, store.key_type)
    finally:
        store.close()
