"""Leases: one holder at a time, with an epoch that grows with each new one.  Time is the database's own clock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from .times import unix_time

if TYPE_CHECKING:
    from collections.abc import Callable

    from . import Store

T = TypeVar("T")

#: Of who does what has to be done once in a whole fleet.
MONITOR_LEASE: Final = "monitor"
#: Now, and now plus a number of seconds, in each database's words and in the store's form of a time.
NOW: Final = {
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f000+00:00', 'now')",
    "postgres": "clock_timestamp()",
    "mysql": "UTC_TIMESTAMP(6)",
}
LATER: Final = {
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f000+00:00', 'now', '+' || ? || ' seconds')",
    "postgres": "clock_timestamp() + ?::float8 * INTERVAL '1 second'",
    "mysql": "UTC_TIMESTAMP(6) + INTERVAL ? SECOND",
}
#: A number of seconds ago.
AGO: Final = {
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f000+00:00', 'now', '-' || ? || ' seconds')",
    "postgres": "clock_timestamp() - ?::float8 * INTERVAL '1 second'",
    "mysql": "UTC_TIMESTAMP(6) - INTERVAL ? SECOND",
}
#: A holder that is frozen in the middle of its transaction keeps its successor waiting: so the server ends it after 10 s.  MySQL
#: takes what is for MariaDB as a comment and cannot do that; there the successor waits for as long as the lock does.
_END_THE_FROZEN: Final = {
    "postgres": "SET LOCAL idle_in_transaction_session_timeout = 10000",
    "mysql": "SET @chaperone = 1 /*M!100300 , SESSION idle_transaction_timeout = 10 */",
}


class LeaseLost(Exception):
    """The lease is another's, or has run out: nothing was written."""


class Lease(NamedTuple):
    """A lease that was got."""

    name: str
    holder: str
    epoch: int


def acquire(store: Store, name: str, holder: str, *, seconds: float) -> int | None:
    """Take a lease that is free or has run out, or renew one's own.

    Parameters:
      holder: unique for each process and start.
      seconds: after which another may take it, unless it is renewed.

    Returns the epoch, which grows whenever the lease changes hands; None if another holds it.
    """
    return store.transact(lambda: _acquire(store, name, holder, seconds))


def _acquire(store: Store, name: str, holder: str, seconds: float) -> int | None:
    now, later = NOW[store.kind], LATER[store.kind]
    key = store.new_key()
    columns, values = ("name, epoch", [name]) if key is None else ("name, epoch, id", [name, key])
    marks = "?, 0" if key is None else "?, 0, ?"
    ignore, conflict = ("IGNORE ", "") if store.kind == "mysql" else ("", " ON CONFLICT (name) DO NOTHING")
    store.execute(f"INSERT {ignore}INTO {{leases}} ({columns}) VALUES ({marks}){conflict}", values)
    text = (
        f"UPDATE {{leases}} SET epoch = CASE WHEN holder = ? THEN epoch ELSE epoch + 1 END, holder = ?, expires_at = {later} "
        f"WHERE name = ? AND (holder IS NULL OR holder = ? OR expires_at < {now})"
    )
    store.execute(text, (holder, holder, seconds, name, holder))
    found = store.rows("SELECT epoch FROM {leases} WHERE name = ? AND holder = ?", (name, holder))
    return int(found[0][0]) if found else None


def holds(store: Store, name: str, holder: str, epoch: int) -> bool:
    """Whether the lease is still held; asked in the transaction of a write, it makes that write conditional."""
    lock = "" if store.kind == "sqlite" else " FOR UPDATE"
    text = f"SELECT 1 FROM {{leases}} WHERE name = ? AND holder = ? AND epoch = ? AND expires_at >= {NOW[store.kind]}{lock}"
    return bool(store.rows(text, (name, holder, epoch)))


def under(store: Store, lease: Lease, work: Callable[[], T]) -> T:
    """Run *work* in a transaction that is kept only if the lease is held at its beginning and still at its end.

    Whoever holds it was perhaps frozen since it last looked, also between these two.

    Raises:
      LeaseLost: it is not held; whatever *work* wrote is undone.
    """

    def guarded() -> T:
        if store.kind in _END_THE_FROZEN:
            store.execute(_END_THE_FROZEN[store.kind])
        if not holds(store, *lease):
            raise LeaseLost(lease.name)
        done = work()
        if not holds(store, *lease):
            raise LeaseLost(lease.name)
        return done

    return store.transact(guarded)


def release(store: Store, name: str, holder: str) -> bool:
    """Give the lease up at once; False if it was not held."""
    text = "UPDATE {leases} SET holder = NULL, expires_at = NULL WHERE name = ? AND holder = ?"
    return store.transact(lambda: bool(store.execute(text, (name, holder)).rowcount == 1))


def holder_of(store: Store, name: str) -> tuple[str, float] | None:
    """Who holds the lease or held it last without giving it up, and when it runs out, Unix seconds; None: it is free."""
    found = store.rows("SELECT holder, expires_at FROM {leases} WHERE name = ? AND holder IS NOT NULL", (name,))
    return (str(found[0][0]), unix_time(found[0][1]) or 0.0) if found else None


def is_held(store: Store, name: str) -> bool:
    """Whether anybody holds the lease."""
    text = f"SELECT 1 FROM {{leases}} WHERE name = ? AND holder IS NOT NULL AND expires_at >= {NOW[store.kind]}"
    return bool(store.rows(text, (name,)))
