"""Which store the models read: the innermost ``using``, else what the process is bound to, else that of the environment."""

from __future__ import annotations

import atexit
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

import peewee

from ...settings import Settings
from .. import Store, open_store

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Of the process: the key type and the tables' names are those of the classes.
SETTINGS: Final = Settings.load()

_chosen: ContextVar[Store | None] = ContextVar("chaperone_store", default=None)
_default: Store | None = None


def current() -> Store:
    """The store that the models read here and now.

    Raises:
      SchemaError: its tables are missing or of another version.
      StoreUnavailable: the database does not answer.
    """
    global _default
    store = _chosen.get() or _default
    if store is None:
        opened = open_store(Settings.load(), create=False)
        if _default is None:  # else another thread was faster
            _default = opened
            atexit.register(opened.close)  # the connection of the main thread, which outlives this module
        store = _default
    return store


@contextmanager
def using(url: str) -> Iterator[None]:
    """Let the models read another store inside the block: that of *url*, as ``database_url`` has it.

    It holds for the code of the block and what it awaits or runs in a copied context; other threads, and a thread pool's,
    go on with theirs.  Blocks may be nested.  A query asks the store of the block in which it runs, not of the one that
    made it.  Key type and table names are those of the environment for every store.

    Raises:
      SettingsError: *url* names no database that is known.
      SchemaError: there are no tables, or of another version.
      StoreUnavailable: the database does not answer.
    """
    store = open_store(Settings.load({"database_url": url}), create=False)
    token = _chosen.set(store)
    try:
        yield
    finally:
        _chosen.reset(token)
        store.close()


@contextmanager
def bound(store: Store) -> Iterator[None]:
    """Let the whole process, every thread of it, read this store inside the block; for tests.

    Its key type and table names must be those of the environment.
    """
    global _default
    before, _default = _default, store
    try:
        yield
    finally:
        _default = before


class _StoreProxy(peewee.DatabaseProxy):
    """The database of the current store, in whatever thread and process this is."""

    __slots__ = ()

    def __init__(self) -> None:
        object.__setattr__(self, "_callbacks", [])  # peewee's own also sets obj, which is a property here

    @property
    def obj(self) -> peewee.Database:
        """What peewee passes everything on to."""
        return current().database

    def execute(self, query: Any, **options: Any) -> Any:
        """Run *query*.  Raises StoreError; a connection that was lost is renewed by the next query."""
        store = current()
        with store.translated():
            return store.database.execute(query, **options)


DATABASE: Final = _StoreProxy()
