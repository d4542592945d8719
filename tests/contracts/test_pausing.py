"""Pausing a worker's queues: the same on each broker, on real servers."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import pytest
from dramatiq import Broker, Worker
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.common import dq_name
from dramatiq.middleware import SkipMessage

from dramatiq_chaperone.brokers import Pausing, inspector_of, pausing_of
from tests.waiting import wait_until

#: Of a Redis worker that says nothing, in milliseconds.
LEASE_MS = 3000


class Crew:
    """A broker of its own with one worker, as another process would have them.

    Attributes:
      ran: the numbers of the jobs that began here, in their order.
    """

    def __init__(self, broker: Broker, queue: str, *, threads: int = 2) -> None:
        self.broker, self.queue = broker, queue
        self.ran: list[int] = []
        self.done: list[int] = []
        self.going = threading.Event()
        self.going.set()

        def work(number: int) -> None:
            self.ran.append(number)
            self.going.wait(30)
            self.done.append(number)

        self.actor = dramatiq.actor(work, broker=broker, queue_name=queue, actor_name="work", max_retries=0)
        self.worker = Worker(broker, worker_timeout=50, worker_threads=threads)
        found = pausing_of(broker, self.worker)
        assert found is not None
        self.pausing: Pausing = found
        self.pausing.install()

    def start(self) -> None:
        self.worker.start()

    def fetched(self) -> int:
        """What lies in the worker's hands and has not begun."""
        return self.worker.work_queue.qsize()

    def pause(self) -> None:
        """And wait until it is so."""
        self.pausing.pause(self.queue)
        wait_until(lambda: self.pausing.is_idle(self.queue), what="the pause")

    def close(self) -> None:
        self.going.set()
        with contextlib.suppress(Exception):
            self.worker.stop()
        self.pausing.uninstall()
        self.broker.close()


MakeCrew = Callable[..., Crew]


@pytest.fixture(params=["stub", "redis", "rabbitmq"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make_crew(kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeCrew]:
    """``make_crew()``: all have the same queue; only a Stub broker is alone."""
    monkeypatch.setattr("dramatiq.worker.CONSUMER_RESTART_DELAY_SECS", 0.05)
    crews: list[Crew] = []
    queue = request.getfixturevalue("rabbitmq_queue")() if kind == "rabbitmq" else f"queue-{secrets.token_hex(4)}"

    def make(**more: Any) -> Crew:
        broker: Any
        if kind == "redis":
            url = request.getfixturevalue("redis_url")
            broker = RedisBroker(url=url, heartbeat_timeout=LEASE_MS, maintenance_chance=1_000_000)  # type: ignore[no-untyped-call]
        elif kind == "rabbitmq":
            broker = RabbitmqBroker(url=request.getfixturevalue("rabbitmq_url"))
        else:
            broker = StubBroker()
        crews.append(Crew(broker, queue, **more))
        return crews[-1]

    yield make
    for crew in crews:
        crew.close()


def left(crew: Crew) -> tuple[int, int, int]:
    inspector = inspector_of(crew.broker)
    assert inspector is not None
    with contextlib.closing(inspector):
        (reading,) = [each for each in inspector.readings() if each.queue == crew.queue]
    return reading[1:4]


def test_a_paused_worker_begins_nothing_and_goes_on_at_once(make_crew: MakeCrew) -> None:
    crew = make_crew()
    crew.start()
    crew.actor.send(0)
    wait_until(lambda: crew.done == [0])
    crew.pause()
    assert crew.pausing.paused == {crew.queue: {""}}
    for number in range(1, 30):
        crew.actor.send(number)
    turns = time.monotonic() + 0.5
    wait_until(lambda: time.monotonic() > turns)
    assert crew.ran == [0]
    crew.pausing.resume(crew.queue)
    wait_until(lambda: sorted(crew.done) == list(range(30)))
    assert crew.pausing.paused == {}
    assert len(crew.ran) == 30


def test_what_was_fetched_goes_back_in_its_order(make_crew: MakeCrew) -> None:
    crew = make_crew(threads=1)
    crew.going.clear()
    for number in range(8):
        crew.actor.send(number)
    crew.start()
    wait_until(lambda: crew.ran == [0] and crew.fetched() >= 1)
    crew.pause()
    assert crew.fetched() == 0
    crew.going.set()
    wait_until(lambda: crew.done == [0])
    wait_until(lambda: left(crew)[0] == 7)
    assert crew.ran == [0]
    crew.pausing.resume(crew.queue)
    wait_until(lambda: len(crew.done) == 8)
    assert crew.ran == list(range(8))
    wait_until(lambda: left(crew) == (0, 0, 0))


@pytest.mark.parametrize("kind", ["redis", "rabbitmq"])
def test_what_runs_keeps_its_lease_and_what_waits_runs_elsewhere(make_crew: MakeCrew) -> None:
    first, other = make_crew(), make_crew(threads=4)
    first.going.clear()
    for number in range(10):
        first.actor.send(number)
    first.start()
    wait_until(lambda: len(first.ran) == 2 and first.fetched() >= 2)
    paused_at = time.monotonic()
    # The delay queue too, for what its consumer asks for renews the lease as well.
    first.pausing.pause(dq_name(first.queue))
    first.pause()
    other.start()
    wait_until(lambda: len(other.done) == 8, what="the others")
    took = time.monotonic() - paused_at
    wait_until(lambda: time.monotonic() > paused_at + 2.5 * LEASE_MS / 1000, timeout_s=20, what="the lease to run out, were it not renewed")
    first.going.set()
    wait_until(lambda: len(first.done) == 2)
    wait_until(lambda: left(first) == (0, 0, 0))
    assert sorted(first.ran + other.ran) == list(range(10))
    print(f"\nthe 8 others had run elsewhere {took:.2f} s after the pause")


@pytest.mark.parametrize("kind", ["redis", "rabbitmq"])
def test_six_rounds_under_load_lose_nothing_and_run_nothing_twice(make_crew: MakeCrew) -> None:
    first, other = make_crew(threads=4), make_crew(threads=4)
    first.start()
    other.start()
    sent: list[int] = []
    stop = threading.Event()

    def send() -> None:
        while not stop.is_set():
            first.actor.send(len(sent))
            sent.append(len(sent))
            stop.wait(0.001)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        for _ in range(6):
            before = len(first.ran)
            wait_until(lambda before=before: len(first.ran) > before + 50, timeout_s=20, what="work")  # type: ignore[misc]
            first.pause()
            still = len(first.ran)
            more = len(other.ran)
            wait_until(lambda more=more: len(other.ran) > more + 50, timeout_s=20, what="the other's work")  # type: ignore[misc]
            assert len(first.ran) <= still + 4, "it began nothing but what its threads had taken already"
            first.pausing.resume(first.queue)
    finally:
        stop.set()
        sender.join()
    wait_until(lambda: len(first.done) + len(other.done) >= len(sent), timeout_s=30)
    wait_until(lambda: left(first) == (0, 0, 0))
    assert Counter(first.ran + other.ran) == Counter(sent)


def test_another_queue_of_the_worker_goes_on(make_crew: MakeCrew, request: pytest.FixtureRequest, kind: str) -> None:
    crew, ran = make_crew(), []
    more = request.getfixturevalue("rabbitmq_queue")() if kind == "rabbitmq" else "another"
    another = dramatiq.actor(ran.append, broker=crew.broker, queue_name=more, actor_name="another")
    crew.start()
    crew.pause()
    for number in range(20):
        crew.actor.send(number)
        another.send(number)
    wait_until(lambda: sorted(ran) == list(range(20)))
    assert crew.ran == []
    assert not crew.pausing.is_idle(more)
    crew.pausing.resume(crew.queue)
    wait_until(lambda: sorted(crew.done) == list(range(20)))


def test_a_delay_queue_is_paused_by_its_own_name(make_crew: MakeCrew) -> None:
    crew = make_crew()
    crew.start()
    crew.pausing.pause(dq_name(crew.queue))
    wait_until(lambda: crew.pausing.is_idle(dq_name(crew.queue)))
    crew.actor.send_with_options(args=(1,), delay=1)
    crew.actor.send(2)
    wait_until(lambda: crew.done == [2])
    crew.pausing.resume(dq_name(crew.queue))
    wait_until(lambda: crew.done == [2, 1])


@pytest.mark.parametrize("kind", ["redis", "rabbitmq"])
def test_a_worker_that_stops_while_it_is_paused_leaves_nothing(make_crew: MakeCrew) -> None:
    first, other = make_crew(threads=1), make_crew()
    first.going.clear()
    for number in range(6):
        first.actor.send(number)
    first.start()
    wait_until(lambda: first.ran == [0])
    first.pause()
    first.going.set()
    first.worker.stop()
    other.start()
    wait_until(lambda: sorted(other.done) == list(range(1, 6)))
    assert first.done == [0]


@pytest.mark.parametrize("kind", ["redis"])
def test_a_connection_that_is_lost_while_it_is_paused(make_crew: MakeCrew, redis_url: str) -> None:
    crew = make_crew()
    crew.start()
    crew.pause()
    broker: Any = crew.broker
    crew.actor.send(1)
    broker.client.client_kill_filter(_type="normal", skipme=True)
    ids = time.monotonic() + 1.5
    wait_until(lambda: time.monotonic() > ids)
    assert crew.ran == []
    crew.pausing.resume(crew.queue)
    wait_until(lambda: crew.done == [1])


def test_pausing_twice_is_pausing_once_and_an_unknown_queue_is_nobodys(make_crew: MakeCrew) -> None:
    crew = make_crew()
    crew.start()
    crew.pausing.resume("nothing")
    for _ in range(2):
        crew.pause()
    crew.actor.send(1)
    crew.pausing.resume(crew.queue)
    crew.pausing.resume(crew.queue)
    wait_until(lambda: crew.done == [1])


def test_a_queue_stays_paused_until_each_who_paused_it_has_resumed_it(make_crew: MakeCrew) -> None:
    crew = make_crew()
    crew.start()
    crew.pausing.pause(crew.queue, by="operator")
    crew.pausing.pause(crew.queue, by="payments")
    wait_until(lambda: crew.pausing.is_idle(crew.queue))
    crew.actor.send(1)
    crew.pausing.resume(crew.queue, by="payments")
    crew.pausing.resume(crew.queue, by="somebody else")
    assert crew.pausing.paused == {crew.queue: {"operator"}}
    assert crew.pausing.is_idle(crew.queue)
    crew.pausing.resume(crew.queue, by="operator")
    wait_until(lambda: crew.done == [1])
    assert crew.pausing.paused == {}


def test_the_broker_gets_its_method_back(make_crew: MakeCrew) -> None:
    crew = make_crew()
    assert "consume" in vars(crew.broker)
    crew.pausing.uninstall()
    crew.pausing.uninstall()
    assert "consume" not in vars(crew.broker)


def test_a_broker_of_another_kind_cannot_be_paused() -> None:
    broker = Broker()
    assert pausing_of(broker, Worker(broker)) is None


class Gate(dramatiq.Middleware):
    """Pauses the queue, and gives back what comes, while it is closed."""

    def __init__(self, crew: Crew) -> None:
        self.crew, self.is_closed, self.given_back = crew, True, 0

    def before_process_message(self, broker: Broker, message: Any) -> None:
        if self.is_closed:
            self.crew.pausing.pause(message.queue_name)
            assert self.crew.pausing.give_back(message)
            self.given_back += 1
            raise SkipMessage


class Hasty(dramatiq.Middleware):
    """Gives a message back twice, the first time so slowly that it is here again before it was acknowledged."""

    def __init__(self, crew: Crew) -> None:
        self.crew, self.given_back = crew, 0

    def before_process_message(self, broker: Broker, message: Any) -> None:
        if self.given_back < 2:
            assert self.crew.pausing.give_back(message)
            self.given_back += 1
            if self.given_back == 1:
                wait_until(lambda: self.crew.fetched() == 1, what="the same message")
            raise SkipMessage


def test_what_was_given_back_and_fetched_again_is_not_acknowledged(make_crew: MakeCrew) -> None:
    crew = make_crew(threads=1)
    crew.broker.add_middleware(Hasty(crew))
    crew.actor.send(1)
    crew.start()
    wait_until(lambda: crew.done == [1], what="the message, or it is lost")
    wait_until(lambda: left(crew) == (0, 0, 0))
    assert crew.ran == [1]


@pytest.mark.parametrize("threads", [1, 4])
def test_what_a_thread_has_taken_can_be_given_back_too(make_crew: MakeCrew, threads: int, caplog: pytest.LogCaptureFixture) -> None:
    crew = make_crew(threads=threads)
    gate = Gate(crew)
    crew.broker.add_middleware(gate)
    for number in range(40):
        crew.actor.send(number)
    crew.start()
    wait_until(lambda: crew.pausing.is_idle(crew.queue))
    wait_until(lambda: left(crew) == (40, 0, 0))
    assert crew.ran == []
    assert gate.given_back <= 2 * threads, "a few, not all of them"
    gate.is_closed = False
    crew.pausing.resume(crew.queue)
    wait_until(lambda: len(crew.done) == 40)
    wait_until(lambda: left(crew) == (0, 0, 0))
    assert sorted(crew.ran) == list(range(40))
    assert "not in known tags" not in caplog.text
    if isinstance(crew.broker, StubBroker):
        crew.broker.join(crew.queue, timeout=5000)
