"""What a broker says of its queues: the same of each of them, on real servers."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import dramatiq
import pika
import pytest
from dramatiq import Broker, Message, Worker
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker

from dramatiq_chaperone.brokers import Inspector, QueueReading, inspector_of
from tests.proxy import Proxy
from tests.waiting import wait_until

MakeQueue = Callable[[], str]


@pytest.fixture(params=["stub", "redis", "rabbitmq"])
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    made: Any
    if request.param == "redis":
        made = RedisBroker(url=request.getfixturevalue("redis_url"), namespace="elsewhere")  # type: ignore[no-untyped-call]
    elif request.param == "rabbitmq":
        made = RabbitmqBroker(url=request.getfixturevalue("rabbitmq_url"))
    else:
        made = StubBroker()
    yield made
    made.close()


@pytest.fixture
def make_queue(broker: Broker, request: pytest.FixtureRequest) -> MakeQueue:
    if isinstance(broker, RabbitmqBroker):
        found: MakeQueue = request.getfixturevalue("rabbitmq_queue")
        return found
    return lambda: f"queue-{secrets.token_hex(4)}"


@pytest.fixture
def inspector(broker: Broker) -> Iterator[Inspector]:
    found = inspector_of(broker)
    assert found is not None
    with contextlib.closing(found):
        yield found


def message(queue: str, **more: Any) -> Message[Any]:
    return Message(queue_name=queue, actor_name="work", args=(), kwargs={}, options={}, **more)


def reads(inspector: Inspector, queue: str) -> tuple[int, int, int]:
    """(ready, delayed, dead); RabbitMQ counts a moment later what it was sent."""
    (found,) = [each for each in inspector.readings() if each.queue == queue]
    return found[1:4]


def test_a_queue_that_is_only_declared_is_empty(broker: Broker, inspector: Inspector, make_queue: MakeQueue) -> None:
    queue = make_queue()
    broker.declare_queue(queue)
    assert inspector.readings() == [QueueReading(queue, 0, 0, 0, None)]
    assert inspector.readings() == [QueueReading(queue, 0, 0, 0, None)]


def test_what_waits_is_counted_by_kind(broker: Broker, inspector: Inspector, make_queue: MakeQueue) -> None:
    queue = make_queue()
    broker.declare_queue(queue)
    for _ in range(3):
        broker.enqueue(message(queue))
    for _ in range(2):
        broker.enqueue(message(queue), delay=3_600_000)
    wait_until(lambda: reads(inspector, queue) == (3, 2, 0))
    assert [reading.queue for reading in inspector.readings()] == [queue], "a delay queue is none of its own"


def test_dead_letters_are_counted(broker: Broker, inspector: Inspector, make_queue: MakeQueue) -> None:
    queue = make_queue()

    @dramatiq.actor(broker=broker, queue_name=queue, max_retries=0)
    def fail() -> None:
        raise ValueError("always")

    worker = Worker(broker, worker_timeout=25, worker_threads=1)
    worker.start()
    try:
        first, second = fail.send(), fail.send()
        wait_until(lambda: reads(inspector, queue) == (0, 0, 2))
    finally:
        worker.stop()
    kept = inspector.dead_letters(queue, limit=10)
    if isinstance(broker, RabbitmqBroker):
        assert kept is None
        return
    assert kept is not None
    assert {(each.job_id, each.actor, each.queue) for each in kept} == {(each.message_id, "fail", queue) for each in (first, second)}
    assert abs((kept[0].made_at or 0) - time.time()) < 60
    assert len(inspector.dead_letters(queue, limit=1) or ()) == 1
    assert inspector.dead_letters(f"{queue}-other", limit=10) == []


def test_the_message_that_is_next_tells_since_when_it_waits(broker: Broker, inspector: Inspector, make_queue: MakeQueue) -> None:
    queue = make_queue()
    broker.declare_queue(queue)
    made = int(time.time() * 1000) - 90_000
    for later in (0, 30_000):
        broker.enqueue(message(queue, message_timestamp=made + later))
    wait_until(lambda: reads(inspector, queue) == (2, 0, 0))
    expected = None if isinstance(broker, RabbitmqBroker) else made / 1000
    assert [reading.oldest_at for reading in inspector.readings()] == [expected]


def test_more_queues_can_be_asked_for_by_name(broker: Broker, inspector: Inspector, make_queue: MakeQueue) -> None:
    queue, other = make_queue(), make_queue()
    broker.declare_queue(queue)
    assert [reading.queue for reading in inspector.readings([other])] == sorted([queue, other])
    assert [reading.queue for reading in inspector.readings()] == [queue]


def test_it_goes_on_after_it_was_closed(broker: Broker, inspector: Inspector, make_queue: MakeQueue) -> None:
    queue = make_queue()
    broker.declare_queue(queue)
    broker.enqueue(message(queue))
    wait_until(lambda: reads(inspector, queue) == (1, 0, 0))
    inspector.close()
    inspector.close()
    assert reads(inspector, queue) == (1, 0, 0)


def test_a_connection_that_has_ended_meanwhile_is_made_anew(
    rabbitmq_url: str, rabbitmq_queue: MakeQueue, proxy: Callable[[str, int], Proxy]
) -> None:
    parts = urlsplit(rabbitmq_url)
    between = proxy(parts.hostname or "", parts.port or 5672)
    broker = RabbitmqBroker(url=f"amqp://{parts.username}:{parts.password}@127.0.0.1:{between.port}")
    queue = rabbitmq_queue()
    broker.declare_queue(queue, ensure=True)
    inspector = inspector_of(broker)
    assert inspector is not None
    assert reads(inspector, queue) == (0, 0, 0)
    between.cut()
    between.restore()
    assert reads(inspector, queue) == (0, 0, 0)
    between.cut()
    for _ in range(2):
        with pytest.raises(pika.exceptions.AMQPConnectionError):
            inspector.readings()
    between.restore()
    assert reads(inspector, queue) == (0, 0, 0)
    inspector.close()
    broker.close()


def test_the_work_does_not_grow_with_the_queue(redis_url: str) -> None:
    broker = RedisBroker(url=redis_url)  # type: ignore[no-untyped-call]
    for n in range(20):
        broker.declare_queue(f"queue{n}")
        broker.enqueue(message(f"queue{n}"))
    inspector = inspector_of(broker)
    assert inspector is not None
    before = broker.client.info("stats")["total_commands_processed"]
    assert len(inspector.readings()) == 20
    # Five commands a queue, and the question how many there were.
    assert broker.client.info("stats")["total_commands_processed"] - before <= 20 * 5 + 4
    broker.close()


def test_a_message_that_is_no_message_has_no_age(redis_url: str) -> None:
    broker = RedisBroker(url=redis_url)  # type: ignore[no-untyped-call]
    broker.declare_queue("default")
    broker.client.rpush("dramatiq:default", "one")
    broker.client.hset("dramatiq:default.msgs", "one", b"\x80 no JSON")
    inspector = inspector_of(broker)
    assert inspector is not None
    assert inspector.readings() == [QueueReading("default", 1, 0, 0, None)]
    broker.close()


def test_a_broker_of_another_kind_has_no_inspector_and_a_subclass_has_one() -> None:
    class Own(StubBroker):
        pass

    assert inspector_of(Broker()) is None
    assert inspector_of(Own()) is not None
