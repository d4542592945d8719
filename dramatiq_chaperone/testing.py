"""For your own tests: a pytest plugin, which is there as soon as the package is installed.

Fixtures only, and nothing happens before one is asked for; a fixture of your own with the same name wins.
See docs/testing.md.
"""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote
from uuid import uuid4

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from .models import Heartbeat, SupervisedJob, Worker
    from .store import Store
    from .store.models import Record

__all__ = ["FakeClock", "wait_until"]

T = TypeVar("T")
R = TypeVar("R", bound="Record")

_ENDED_AT: Final = {"completed": "completed_at", "skipped": "completed_at", "failed": "failed_at", "cancelled": "failed_at"}


def wait_until(condition: Callable[[], T], *, timeout_s: float = 10.0, interval_s: float = 0.01, what: str = "") -> T:
    """The first true value of *condition*, which is asked again and again.

    Parameters:
      what: what is waited for, for the message of the error.

    Raises:
      AssertionError: there was none within *timeout_s*; the message has *what* and the last value.
    """
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"after {timeout_s:g} s still waiting for {what or repr(condition)}; last: {value!r}")
        time.sleep(interval_s)
    return value


class FakeClock:
    """A clock that stands still until it is told to go on.  Called, it is ``time.time``: Unix seconds.

    Parameters:
      start: Unix seconds, or an aware datetime.
    """

    def __init__(self, start: float | datetime = 1_800_000_000.0) -> None:
        self._at = start.timestamp() if isinstance(start, datetime) else float(start)

    def __call__(self) -> float:
        """Unix seconds."""
        return self._at

    def now(self) -> datetime:
        """The same as an aware datetime in UTC."""
        return datetime.fromtimestamp(self._at, UTC)

    def advance(self, seconds: float) -> None:
        """Go on by *seconds*.  Raises ValueError where that is back."""
        if seconds < 0:
            raise ValueError(f"A clock does not go back by {-seconds:g} s.")
        self._at += seconds


@pytest.fixture(name="wait_until")
def _wait_until() -> Callable[..., Any]:
    """``wait_until(condition, timeout_s=10)``: the first true value of *condition*; an AssertionError if there is none in time."""
    return wait_until


@pytest.fixture
def fake_clock() -> FakeClock:
    """A :class:`FakeClock` that begins in January 2027."""
    return FakeClock()


@pytest.fixture
def chaperone_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """An empty store of the test's own, a SQLite file in *tmp_path*: the models read it, and the environment names it.

    Circuit breakers begin closed in it.
    """
    from .settings import Settings
    from .store import open_store
    from .store.models import bound

    state_dir = tmp_path / "chaperone"
    monkeypatch.setenv("CHAPERONE_STATE_DIR", str(state_dir))
    monkeypatch.setenv("CHAPERONE_DATABASE_URL", f"sqlite:///{quote(str(state_dir))}/chaperone.sqlite3")
    _renew_breakers()
    store = open_store(Settings.load(), create=True)
    try:
        with bound(store):
            yield store
    finally:
        _renew_breakers()
        store.close()


def _renew_breakers() -> None:
    """Each test has circuit breakers of its own, closed at first; nothing is imported for those who have none."""
    registry: Any = sys.modules.get("dramatiq_chaperone.breakers.registry")
    if registry is not None:
        registry.registry().renew()


@pytest.fixture
def supervise_inline(chaperone_store: Store) -> Callable[..., SupervisedJob]:
    """``supervise_inline(actor, *args, **kwargs)`` runs the actor here and now as a supervised job, and returns that job.

    It runs once, in the thread of the test, under the actor's own options, without your broker and its middleware and
    without retries.  Arguments go through Dramatiq's encoder as ever.  Everything that a worker would record is in
    *chaperone_store* afterwards.  What the actor raises is raised here, and the job is on record as failed.
    """
    from .models import SupervisedJob

    def run(actor: Any, /, *args: Any, **kwargs: Any) -> SupervisedJob:
        job_id = _run(actor, args, kwargs)
        found: SupervisedJob = SupervisedJob.get(SupervisedJob.job_id == job_id)
        return found

    return run


def _run(actor: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Run one message in a process that has all parts of a worker's but its threads.  Returns its id."""
    from dramatiq import Actor, Worker
    from dramatiq.brokers.stub import StubBroker
    from dramatiq.middleware import AsyncIO, CurrentMessage

    from .middleware import Chaperone

    is_async = iscoroutinefunction(getattr(actor.fn, "__wrapped__", actor.fn))
    broker = StubBroker(middleware=[CurrentMessage(), *([AsyncIO()] if is_async else [])])
    chaperone = Chaperone(enabled=True, watcher=True)
    broker.add_middleware(chaperone)
    options = {**actor.options, "isolate": False}  # it is the thread of the test that runs it
    twin = Actor(
        actor.fn, broker=broker, actor_name=actor.actor_name, queue_name=actor.queue_name, priority=actor.priority, options=options
    )
    worker = Worker(broker, worker_threads=1)
    # As under the dramatiq command: the journal waits for a watcher, and is written to the store where the worker ends.
    broker.emit_after("process_boot")
    broker.emit_before("worker_boot", worker)
    broker.emit_after("worker_boot", worker)
    try:
        message = twin.message_with_options(args=args, kwargs=kwargs, supervised=True)
        broker.enqueue(message)
        _process(broker, twin)
        return message.message_id
    finally:
        broker.emit_before("worker_shutdown", worker)
        broker.emit_after("worker_shutdown", worker)
        broker.close()


def _process(broker: Any, actor: Any) -> None:
    """What a worker thread does with a message; see ``dramatiq.worker``."""
    from dramatiq.middleware import SkipMessage

    message = next(broker.consume(actor.queue_name, timeout=1000))
    try:
        broker.emit_before("process_message", message)
        result = actor(*message.args, **message.kwargs)
    except SkipMessage:
        broker.emit_after("skip_message", message)
    except BaseException as error:
        broker.emit_after("process_message", message, exception=error)
        raise
    else:
        broker.emit_after("process_message", message, result=result)


@pytest.fixture
def make_job(chaperone_store: Store) -> Callable[..., SupervisedJob]:
    """``make_job(**columns)`` puts a job on record: completed just now, or as *status* has it; the times fit to the state."""
    from .models import SupervisedJob

    def make(**columns: Any) -> SupervisedJob:
        now, status = datetime.now(UTC), columns.get("status", "completed")
        known = {"job_id": uuid4().hex, "actor_name": "work", "queue": "default", "status": status}
        known |= dict.fromkeys(("created_at", "updated_at", "enqueued_at"), now)
        if status != "pending":
            known |= {"started_at": now, "run_id": "run-1", "attempt": 1, "deliveries": 1}
        if status in _ENDED_AT:
            known |= {"ended_at": now, _ENDED_AT[status]: now}
        return _create(SupervisedJob, known, columns)

    return make


@pytest.fixture
def make_worker(chaperone_store: Store) -> Callable[..., Worker]:
    """``make_worker(**columns)`` puts a worker process on record: one that runs, and has just been heard of."""
    from .models import Worker

    def make(**columns: Any) -> Worker:
        known = {"worker_id": f"worker-{uuid4().hex[:8]}", "host": "localhost", "pid": 1, "status": "running", "threads": 8}
        known |= dict.fromkeys(("created_at", "updated_at", "started_at", "last_heartbeat_at"), datetime.now(UTC))
        return _create(Worker, known, columns)

    return make


@pytest.fixture
def make_heartbeat(chaperone_store: Store, make_job: Callable[..., SupervisedJob]) -> Callable[..., Heartbeat]:
    """``make_heartbeat(job, **columns)`` puts a heartbeat of that job on record; without one, of a new job that runs."""
    from .models import Heartbeat

    def make(job: SupervisedJob | None = None, **columns: Any) -> Heartbeat:
        known = {"job": job or make_job(status="running"), "heartbeat_id": uuid4().hex, "kind": "manual", "created_at": datetime.now(UTC)}
        return _create(Heartbeat, known, columns)

    return make


def _create(model: type[R], known: dict[str, Any], columns: dict[str, Any]) -> R:
    unknown = columns.keys() - model._meta.fields.keys()
    if unknown:
        raise TypeError(f"{model.__name__} has no column {', '.join(sorted(unknown))}")
    created: R = model.create(**{**known, **columns})
    return created
