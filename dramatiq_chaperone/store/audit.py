"""The audit log: who did what to what, from where, and what came of it.  Rows are only added; the result may come later."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .leases import NOW
from .times import aware

if TYPE_CHECKING:
    from datetime import datetime

    from . import Store


class Entry(NamedTuple):
    """A row of it."""

    created_at: datetime
    who: str
    #: The command, in a word: ``'kill'``.
    what: str
    #: The job, worker or queue that it was done to.
    target: str
    #: From where: ``'cli'``, ``'models'``, ``'dashboard'``, with an address where there is one.
    origin: str
    #: In words; None while it is not known.
    result: str | None


def record(store: Store, who: str, what: str, target: str, origin: str, result: str | None) -> str:
    """Add a row; also for the inside of the transaction of what was done.  Returns its key, for :func:`finish`.

    Parameters:
      who: a user and a host.
      what: the act, in a few words, at most 40 characters.
      target: the job, worker or queue that it was done to.
      origin: from where: ``'cli'``, ``'models'``.
      result: what came of it, in words; None: it is not known yet.
    """
    values = [who[:255], what[:40], target[:255], origin[:255], result]
    key = store.new_key()
    columns, marks = ("", "") if key is None else (", id", ", ?")
    returning = " RETURNING id" if store.kind == "postgres" and key is None else ""
    cursor = store.execute(
        f"INSERT INTO {{audit_log}} (created_at, who, what, target, origin, result{columns}) "
        f"VALUES ({NOW[store.kind]}, ?, ?, ?, ?, ?{marks}){returning}",
        values if key is None else [*values, key],
    )
    return key if key is not None else str(cursor.fetchone()[0] if returning else cursor.lastrowid)


def begin(store: Store, *, who: str, what: str, target: str, origin: str, result: str | None = None) -> str:
    """Note that somebody does something, before it is done.  Returns the row's key, for :func:`finish`."""
    return store.transact(lambda: record(store, who, what, target, origin, result))


def finish(store: Store, key: str, result: str) -> None:
    """Note what came of it."""
    store.transact(lambda: store.execute("UPDATE {audit_log} SET result = ? WHERE id = ?", (result, key)))


def entries(store: Store, *, limit: int = 100) -> list[Entry]:
    """The newest first, at most *limit*."""
    text = f"SELECT created_at, who, what, target, origin, result FROM {{audit_log}} ORDER BY created_at DESC, id DESC LIMIT {int(limit)}"
    return [Entry(aware(row[0]), *row[1:]) for row in store.rows(text)]  # type: ignore[arg-type]  # no row is without a time
