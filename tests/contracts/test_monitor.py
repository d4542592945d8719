"""The monitor: one holder in a whole fleet, and old rows go by the clock."""

from __future__ import annotations

from typing import Any

from dramatiq_chaperone.monitor import LEASE, RETENTION_EVERY_S, Monitor
from dramatiq_chaperone.store import Store, leases
from tests.contracts.conftest import NOW, MakeStore, StoreSettings, enqueued, origin, started


class Clock:
    """Monotonic seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def holder_of(store: Store) -> Any:
    return store.rows("SELECT holder FROM {leases} WHERE name = ?", (LEASE,))[0][0]


def old_job(store: Store, job: str, *, start: int) -> None:
    """A job that was sent and begun in 2026, by a process of which nothing is left: older than any limit."""
    store.apply(origin("host-1-gone", role="producer"), [enqueued(job), started(job, f"run-{job}")], start=start, end=start + 10)
    store.execute("UPDATE {supervised_jobs} SET created_at = ?, updated_at = ?", (_long_ago(store), _long_ago(store)))


def _long_ago(store: Store) -> Any:
    from dramatiq_chaperone.store.applying import stored_time

    return stored_time(store.kind, NOW - 400 * 86_400)


def jobs(store: Store) -> int:
    return int(store.rows("SELECT count(*) FROM {supervised_jobs}")[0][0])


def test_one_of_two_holds_the_lease_and_leaves_it_to_the_other(make_store: MakeStore) -> None:
    store = make_store()
    settings: Any = StoreSettings("")
    first, second = Monitor(settings, "first", clock=Clock()), Monitor(settings, "second", clock=(later := Clock()))
    first.turn(store)
    second.turn(store)
    assert holder_of(store) == "first"
    first.leave(store)
    later.now = 100.0
    second.turn(store)
    assert holder_of(store) == "second"
    second.leave(store)
    assert holder_of(store) is None


def test_old_rows_go_once_an_hour(make_store: MakeStore) -> None:
    store, clock = make_store(), Clock()
    monitor = Monitor(StoreSettings(""), "only", clock=clock)  # type: ignore[arg-type]  # what it needs of the settings
    old_job(store, "j1", start=0)
    monitor.turn(store)
    assert jobs(store) == 0
    old_job(store, "j2", start=10)
    clock.now = RETENTION_EVERY_S - 1
    monitor.turn(store)
    assert jobs(store) == 1
    clock.now = RETENTION_EVERY_S + 1
    monitor.turn(store)
    assert jobs(store) == 0


def test_who_does_not_hold_the_lease_deletes_nothing(make_store: MakeStore) -> None:
    store = make_store()
    assert leases.acquire(store, LEASE, "another", seconds=60) is not None
    old_job(store, "j1", start=0)
    Monitor(StoreSettings(""), "late", clock=Clock()).turn(store)  # type: ignore[arg-type]  # as above
    assert jobs(store) == 1
