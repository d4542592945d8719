"""Alerting on a store of its own, with a clock that is moved by hand and a channel that keeps what it got."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from dramatiq_chaperone import events, records
from dramatiq_chaperone.alerts import Message, alert_channel, channels
from dramatiq_chaperone.alerts.dispatcher import Alerting
from dramatiq_chaperone.settings import Settings
from dramatiq_chaperone.store import Store, leases
from dramatiq_chaperone.store import alerts as rows
from dramatiq_chaperone.store.leases import Lease
from dramatiq_chaperone.store.rows import put_events
from tests.contracts.conftest import NOW, enqueued, origin, started
from tests.waiting import wait_until

AT = datetime.fromtimestamp(NOW, UTC)


class Post:
    """A channel: what was sent, and how it answers."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.answer: Callable[[Message], Any] = lambda message: None

    def __call__(self, message: Message) -> Any:
        given = self.answer(message)
        if given is None or given:
            self.sent.append(message)
        return given

    @property
    def titles(self) -> list[str]:
        return [message.title for message in self.sent]

    @property
    def last(self) -> str:
        return self.sent[-1].text("text")


class Stage:
    """Alerting under a lease of its own, with a clock that is moved by hand."""

    def __init__(self, store: Store, post: Post, **settings: Any) -> None:
        self.store, self.post, self.now = store, post, NOW
        arguments: dict[str, Any] = {"alert_group_wait": 30, "alert_channels": ["post"], **settings}
        self.settings = Settings.load(arguments, environ={"HOME": "/nonexistent"})
        self.lease = self.take("first")
        self.alerting = Alerting(self.settings, "first", clock=lambda: self.now)

    def take(self, holder: str) -> Lease:
        self.store.execute("UPDATE {leases} SET holder = NULL, expires_at = NULL")
        epoch = leases.acquire(self.store, "monitor", holder, seconds=3600)
        assert epoch is not None
        return Lease("monitor", holder, epoch)

    def replace(self, holder: str) -> None:
        """The holder is gone, and another has its lease."""
        self.leave()
        self.lease = self.take(holder)
        self.alerting = Alerting(self.settings, holder, clock=lambda: self.now)

    def leave(self) -> None:
        self.alerting.let_go()

    def happens(self, *found: events.Event) -> None:
        lines = []
        for event in found:
            about = [getattr(event, name, None) for name in ("job_id", "worker_id", "service")]
            lines.append([self.now, type(event).__name__, *about, json.dumps(dataclasses.asdict(event), default=str)])
        self.store.transact(lambda: put_events(self.store, lines))

    def passes(self, seconds: float = 0.0) -> None:
        """Time passes, and everything that is due is done."""
        self.now += seconds
        wait_until(self._turn)
        for _ in range(3):
            self.alerting.turn(self.store, self.lease)
            assert self.alerting._begun is not None
            senders = self.alerting._begun.senders
            wait_until(lambda senders=senders: not senders.in_flight() or bool(senders._landed))
        self.alerting.turn(self.store, self.lease)

    def _turn(self) -> bool:
        """One turn; what it needs may be being loaded."""
        self.alerting.turn(self.store, self.lease)
        return self.alerting._begun is not None

    def given_up(self) -> None:
        """Wait until a delivery counts as failed though its channel hangs."""

        def is_so() -> bool:
            self.alerting.turn(self.store, self.lease)
            assert self.alerting._begun is not None
            return not self.alerting._begun.senders.in_flight()

        wait_until(is_so)

    def alerts(self) -> list[dict[str, Any]]:
        return rows.list_alerts(self.store)[::-1]

    def open(self, job: str = "j1") -> None:
        """A job runs."""
        if not hasattr(self, "_end"):
            self._end = 0
        entries = [enqueued(job), started(job, f"r-{job}")]
        self.store.apply(origin(), entries, start=self._end, end=self._end + 1)
        self._end += 1

    def end(self, job: str = "j1") -> None:
        self.store.execute("UPDATE {supervised_jobs} SET status = 'completed' WHERE job_id = ?", (job,))


def stuck(job: str = "j1", actor: str = "import_feed", **more: Any) -> events.JobStuck:
    return events.JobStuck(job_id=job, actor_name=actor, queue="default", worker_id="host-1-a", stuck_duration=1800.0, **more)


def dead(job: str = "j1", actor: str = "charge", reason: str = "retries exhausted") -> events.JobMovedToDeadLetterQueue:
    return events.JobMovedToDeadLetterQueue(
        job_id=job, actor_name=actor, queue="default", exception="ValueError", failed_at=AT, reason=reason
    )


def opened(service: str = "payments") -> events.CircuitBreakerOpened:
    return events.CircuitBreakerOpened(service=service, failure_count=5, opened_at=AT, last_error="ConnectionError: no")


def closed(service: str = "payments") -> events.CircuitBreakerClosed:
    return events.CircuitBreakerClosed(service=service, closed_at=AT)


@pytest.fixture
def post() -> Iterator[Post]:
    post = Post()
    alert_channel("post")(post)
    yield post
    channels._registered.pop("post")


@pytest.fixture
def stage(store: Store, post: Post) -> Iterator[Callable[..., Stage]]:
    made: list[Stage] = []

    def make(**settings: Any) -> Stage:
        made.append(Stage(store, post, **settings))
        return made[-1]

    yield make
    for each in made:
        each.leave()


def queue_read(ready: int, at: float) -> tuple[Any, ...]:
    """A broker's queue was read."""
    return tuple(records.QueueRead(records.QUEUE_READ, at, "RedisBroker", "default", ready, 0, 0, at))
