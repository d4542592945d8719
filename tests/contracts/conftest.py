"""Stores on real databases, each with tables of its own, and entries as a process writes them."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dramatiq_chaperone import records
from dramatiq_chaperone.store import Store, open_store

KINDS = ("sqlite", "postgres", "mysql")
NOW = 1_790_000_000.0


@dataclass(frozen=True)
class StoreSettings:
    """What a store needs of the settings."""

    database_url: str
    table_prefix: str = field(default_factory=lambda: f"t{secrets.token_hex(4)}_")
    primary_key_type: str = "id"
    auto_migrate: bool = True
    table_names: dict[str, str] = field(default_factory=dict)
    retention_completed: int = 7
    retention_failed: int = 30
    dlq_retention_days: int = 30
    worker_heartbeat: float = 5.0
    heartbeat_interval: float = 30.0
    missed_heartbeats: int = 3

    @property
    def safe_database_url(self) -> str:
        return "the store under test"


def drop_tables(store: Store) -> None:
    """Leave nothing of it behind."""
    if store.kind == "postgres":
        store.execute("DROP TABLE IF EXISTS " + ", ".join(f"{{{name}}}" for name in store.names) + " CASCADE")
    elif store.kind == "mysql":
        store.execute("SET SESSION foreign_key_checks = 0")
        store.execute("DROP TABLE IF EXISTS " + ", ".join(f"{{{name}}}" for name in store.names))


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Which database: sqlite, postgres, mysql."""
    return str(request.param)


@pytest.fixture
def database_url(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database that is there; the tables in it have a prefix of the test's own."""
    if kind == "sqlite":
        return f"sqlite:///{tmp_path / 'chaperone.sqlite3'}"
    return str(request.getfixturevalue(f"{kind}_url"))


MakeStore = Callable[..., Store]


@pytest.fixture
def make_settings(database_url: str) -> Callable[..., StoreSettings]:
    """``make_settings(**changed)``."""
    return lambda **changed: StoreSettings(database_url=database_url, **changed)


@pytest.fixture
def make_store(make_settings: Callable[..., StoreSettings]) -> Iterator[MakeStore]:
    """``make_store(**settings)``: a store with tables of its own, dropped at the end."""
    with contextlib.ExitStack() as stack:

        def make(**changed: Any) -> Store:
            store = open_store(make_settings(**changed), create=True)
            stack.callback(store.close)
            stack.callback(drop_tables, store)
            return store

        yield make


@pytest.fixture
def store(make_store: MakeStore) -> Store:
    """A store with empty tables."""
    return make_store()


def origin(name: str = "host-1-aaaa", role: str = "worker") -> records.Origin:
    return records.Origin(name, "host", "boot-1", 1, NOW, role)


def enqueued(job: str = "j1", *, at: float = NOW, retries: int = 0, **more: Any) -> tuple[Any, ...]:
    known: dict[str, Any] = {
        "actor": "work", "queue": "default", "priority": 5, "enqueued_at": NOW, "eta": None, "retry_at": None,
        "payload": '{"args": [1], "kwargs": {}, "options": {}}', "payload_complete": True, "initiator_type": None, "initiator_id": None,
        "parent_job_id": None, "tenant": None, **more,
    }  # fmt: skip
    return tuple(records.Enqueued(kind=records.ENQUEUED, at=at, job_id=job, retries=retries, **known))


def started(job: str = "j1", run: str = "r1", *, at: float = NOW, retries: int = 0, **more: Any) -> tuple[Any, ...]:
    known: dict[str, Any] = {
        "actor": "work", "queue": "default", "thread": "T-1", "priority": 5, "enqueued_at": NOW, "waited_s": 0.02,
        "timeout_at": None, "heartbeat_interval": None, "limits": None, **more,
    }  # fmt: skip
    return tuple(records.Started(kind=records.STARTED, at=at, job_id=job, run_id=run, retries=retries, **known))


def ended(
    job: str = "j1", run: str = "r1", *, at: float = NOW, retries: int = 0, outcome: str = "succeeded", status: str | None = "completed",
    **more: Any,
) -> tuple[Any, ...]:  # fmt: skip
    known: dict[str, Any] = {
        "actor": "work", "queue": "default", "duration_s": 0.5, "cpu_seconds": 0.25, "memory_peak": 1000, "memory_attribution": "exact",
        "error": None if outcome == "succeeded" else ("ValueError", "no", "Traceback", "{}"), "started_at": NOW, "thread": "T-1", **more,
    }  # fmt: skip
    return tuple(records.Ended(kind=records.ENDED, at=at, job_id=job, run_id=run, retries=retries, outcome=outcome, status=status, **known))


def booted(at: float = NOW) -> tuple[Any, ...]:
    return tuple(records.WorkerBooted(records.WORKER, at, "RedisBroker", "broker-1", '["default"]', 8, None, "{}"))


def beat(number: int, *, at: float = NOW) -> tuple[Any, ...]:
    return tuple(records.Beat(records.BEAT, at, number, 50_000_000, 1.0, 0, 0, "{}"))


def event(name: str, job: str, *, at: float = NOW) -> tuple[Any, ...]:
    return tuple(records.StoredEvent(records.EVENT, at, name, job, "host-1-aaaa", None, "{}"))


class Process:
    """A process that writes its journal to a store, slice by slice."""

    def __init__(self, store: Store, name: str = "host-1-aaaa", role: str = "worker") -> None:
        self.store, self.origin, self.position = store, origin(name, role), 0

    def writes(self, *entries: tuple[Any, ...]) -> Any:
        applied = self.store.apply(self.origin, entries, start=self.position, end=self.position + 10)
        self.position += 10
        return applied

    def dies(self, at: float = NOW) -> list[str]:
        return self.store.worker_lost(self.origin, at=at, exit_code=-9, exit_cause="SIGKILL")


def job(store: Store, job_id: str = "j1") -> dict[str, Any]:
    """A job's row, bookkeeping included."""
    cursor = store.execute("SELECT * FROM {supervised_jobs} WHERE job_id = ?", (job_id,))
    names = [column[0] for column in cursor.description]
    return dict(zip(names, cursor.fetchone(), strict=True))


def totals(store: Store, name: str) -> dict[str, float]:
    """A counter by outcome."""
    from dramatiq_chaperone.store import queries

    found: dict[str, float] = {}
    for _, labels, value in queries.counters(store, name=name):
        outcome = labels.get("outcome") or labels.get("what") or labels.get("table") or ""
        found[outcome] = found.get(outcome, 0) + value
    return found
