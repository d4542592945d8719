"""A broker with its workers, once as Dramatiq has it and once with Chaperone, so that the two can be compared."""

from __future__ import annotations

import contextlib
import re
import secrets
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import dramatiq
import pika
import pytest
import redis
from dramatiq import Broker, Worker
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Middleware

from dramatiq_chaperone import Chaperone, records
from dramatiq_chaperone.service import internal_errors
from tests.integration.conftest import Tape
from tests.servers import delete_rabbitmq_queues
from tests.waiting import wait_until

T = TypeVar("T")

HOOKS: Final = [name for name in vars(Middleware) if name.startswith(("before_", "after_"))]
BROKERS: Final = ("stub", "redis", "rabbitmq")


class Spy(Middleware):
    """Sees every hook, and knows when no message is under way any more.

    Attributes:
      calls: (hook, message id, or None where the hook is about none), in their order.
      delays: what each message was delayed by when it was enqueued.
      wire: what reached the broker, in its order.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, str | None]] = []
        self.delays: list[int | None] = []
        self.wire: list[bytes] = []
        self.under_way = 0
        self._lock = threading.Lock()

    def note(self, hook: str, subject: Any, *args: Any) -> None:
        with self._lock:
            self.calls.append((hook, getattr(subject, "message_id", None)))
            if hook == "before_enqueue":
                self.under_way += 1  # before: a worker may be done with it before the enqueue returns
            elif hook == "after_enqueue":
                self.delays.append(args[0])
                self.wire.append(subject.encode())
            elif hook in {"after_ack", "after_nack"}:
                self.under_way -= 1

    def of(self, message_id: str) -> list[str]:
        """The hooks that a message went through."""
        return [hook for hook, found in self.calls if found == message_id]

    def count(self, hook: str) -> int:
        return sum(found == hook for found, _ in self.calls)


def _seen(hook: str) -> Callable[..., None]:
    def method(self: Spy, broker: Broker, subject: Any = None, *args: Any, **kwargs: Any) -> None:
        self.note(hook, subject, *args)

    return method


for _hook in HOOKS:
    setattr(Spy, _hook, _seen(_hook))


class _TakeJournals(Middleware):
    """Holds the journal before the worker runs, so that nobody in this process has to write to a store."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:
        self._tape.entries()


class Stage:
    """One broker, supervised or not, with its workers in this process.

    Attributes:
      kind: ``stub``, ``redis`` or ``rabbitmq``.
      queue: the name of its queue.
      spy: a middleware of the user's.
    """

    def __init__(self, kind: str, url: str, queue: str, chaperone: Chaperone | None, middleware: list[Middleware] | None) -> None:
        self.kind, self.url, self.queue = kind, url, queue
        self.chaperone = chaperone
        self.broker = self._broker(middleware)
        self.spy = Spy()
        self.broker.add_middleware(self.spy)
        self.tape: Tape | None = None
        if chaperone is not None:
            self.tape = Tape(chaperone.settings.journal_dir)
            self.broker.add_middleware(chaperone)
            self.broker.add_middleware(_TakeJournals(self.tape))
        self.broker.declare_queue(queue)
        self._workers: list[Worker] = []

    def _broker(self, middleware: list[Middleware] | None) -> Broker:
        if self.kind == "redis":
            return RedisBroker(url=self.url, middleware=middleware)  # type: ignore[no-untyped-call]
        if self.kind == "rabbitmq":
            return RabbitmqBroker(url=self.url, middleware=middleware)
        return StubBroker(middleware=middleware)

    def actor(self, fn: Callable[..., Any] | None = None, **options: Any) -> Any:
        """``dramatiq.actor`` on this broker and its queue."""
        options = {"broker": self.broker, "queue_name": self.queue, **options}
        return dramatiq.actor(**options) if fn is None else dramatiq.actor(fn, **options)

    def boot(self) -> None:
        """What the ``dramatiq`` command does first in a process: only then TimeLimit limits anything."""
        self.broker.emit_after("process_boot")

    def work(self, *, threads: int = 2, queues: set[str] | None = None, prefetch: int | None = None) -> Worker:
        """Start a worker."""
        worker = Worker(self.broker, worker_timeout=25, worker_threads=threads, queues=queues)
        worker.queue_prefetch = prefetch or worker.queue_prefetch
        worker.start()
        self._workers.append(worker)
        return worker

    def join(self, *, timeout_s: float = 20.0) -> None:
        """Wait until every message has been acknowledged, or is a dead letter."""
        wait_until(lambda: self.spy.under_way == 0, timeout_s=timeout_s, what=f"{self.spy.under_way} messages")

    def run(self, *, threads: int = 2) -> None:
        """Start a worker, and wait until there is nothing left to do."""
        self.work(threads=threads)
        self.join()

    def waiting(self) -> list[bytes]:
        """What lies in the queue, oldest first.  Without a worker only; RabbitMQ gives it away."""
        return self._read(self.queue)

    def delayed(self) -> list[bytes]:
        """What lies in the delay queue.  As above."""
        return self._read(f"{self.queue}.DQ")

    def dead(self) -> list[bytes]:
        """The dead letters, oldest first.  As above."""
        if isinstance(self.broker, StubBroker):
            return [letter.encode() for letter in self.broker.dead_letters_by_queue[self.queue]]
        return self._read(f"{self.queue}.XQ")

    def _read(self, queue: str) -> list[bytes]:
        if isinstance(self.broker, StubBroker):
            return list(self.broker.queues[queue].queue)
        return _read_redis(self.url, queue) if self.kind == "redis" else _read_rabbitmq(self.url, queue)

    def entries(self, kind: int) -> list[Any]:
        """What Chaperone has written down; nothing where there is none."""
        return [] if self.tape is None else self.tape.entries(kind)

    def stop(self) -> None:
        """Stop the workers."""
        for worker in self._workers:
            worker.stop()
        self._workers.clear()

    def close(self) -> None:
        self.stop()
        if self.tape is not None:
            assert self.chaperone is not None
            self.tape.entries()
            self.chaperone.close()
        self.broker.flush(self.queue)
        self.broker.close()
        if self.tape is not None:
            self.tape.close()


def _read_redis(url: str, queue: str) -> list[bytes]:
    with contextlib.closing(redis.Redis.from_url(url)) as client:
        key = f"dramatiq:{queue}"
        ids: Any = client.zrange(key, 0, -1) if queue.endswith(".XQ") else client.lrange(key, 0, -1)
        return [data for each in ids if (data := client.hget(f"{key}.msgs", each)) is not None]  # type: ignore[misc]


def _read_rabbitmq(url: str, queue: str) -> list[bytes]:
    found = []
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(url))) as connection:
        channel = connection.channel()
        while (got := channel.basic_get(queue, auto_ack=True))[0] is not None:
            found.append(got[2])
    return found


class MakeStage(Protocol):
    """Makes a stage; *middleware* and *add* are called for each, for no two brokers may share a middleware."""

    def __call__(
        self,
        kind: str = "stub",
        *,
        supervised: bool = True,
        middleware: Callable[[], list[Middleware]] | None = None,
        **settings: object,
    ) -> Stage: ...


@pytest.fixture(autouse=True)
def quick_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A consumer that lost its connection, or was paused, waits three seconds before it comes back."""
    monkeypatch.setattr("dramatiq.worker.CONSUMER_RESTART_DELAY_SECS", 0.05)


@pytest.fixture
def make_stage(request: pytest.FixtureRequest, chaperone_env: Callable[..., None], state_dir: Path) -> Iterator[MakeStage]:
    """``make_stage("redis", supervised=False)``; at the end nothing may have gone wrong inside Chaperone."""
    stages: list[Stage] = []
    rabbitmq_urls: set[str] = set()
    own_queue = f"chaperone-test-{secrets.token_hex(6)}"
    before = internal_errors.copy()

    def make(
        kind: str = "stub",
        *,
        supervised: bool = True,
        middleware: Callable[[], list[Middleware]] | None = None,
        **settings: object,
    ) -> Stage:
        url = "" if kind == "stub" else request.getfixturevalue(f"{kind}_url")
        if kind == "rabbitmq":
            rabbitmq_urls.add(url)
        chaperone = Chaperone(state_dir=str(state_dir), **settings) if supervised else None
        stages.append(
            Stage(kind, url, own_queue if url in rabbitmq_urls else "default", chaperone, None if middleware is None else middleware())
        )
        return stages[-1]

    yield make
    for stage in stages:
        stage.close()
    for url in rabbitmq_urls:
        delete_rabbitmq_queues(url, own_queue)
    assert internal_errors == before


@pytest.fixture
def stage(make_stage: MakeStage) -> Stage:
    """A supervised Stub broker with Dramatiq's default middleware."""
    return make_stage()


@pytest.fixture(params=BROKERS)
def broker_kind(request: pytest.FixtureRequest) -> str:
    """Each of Dramatiq's brokers."""
    return str(request.param)


@pytest.fixture
def each_stage(make_stage: MakeStage, broker_kind: str) -> Stage:
    """A supervised broker of each kind, with Dramatiq's default middleware."""
    return make_stage(broker_kind)


class Same(Protocol):
    """Plays a scenario without and with Chaperone."""

    def __call__(
        self, scenario: Callable[[Stage], T], kind: str = "stub", *, middleware: Callable[[], list[Middleware]] | None = None
    ) -> T: ...


@pytest.fixture
def same(make_stage: MakeStage) -> Same:
    """``same(scenario)``: what it returns, which has to be the same without and with Chaperone."""

    def play(scenario: Callable[[Stage], T], kind: str = "stub", *, middleware: Callable[[], list[Middleware]] | None = None) -> T:
        bare = make_stage(kind, supervised=False, middleware=middleware)
        without = scenario(bare)
        bare.stop()
        bare.broker.flush(bare.queue)
        supervised = make_stage(kind, middleware=middleware)
        found = scenario(supervised)
        assert found == without
        assert supervised.entries(records.ENQUEUED), "it was not supervised at all"
        return found

    return play


def plain(messages: list[bytes]) -> list[bytes]:
    """*messages* without what differs from one time to the next: ids are numbered as they come, points in time are 0."""
    names: dict[bytes, bytes] = {}

    def name(found: re.Match[bytes]) -> bytes:
        return names.setdefault(found[0], b"id-%d" % len(names))

    return [
        re.sub(rb"\b\d{13}\b", b"0", re.sub(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", name, each, flags=re.IGNORECASE))
        for each in messages
    ]
