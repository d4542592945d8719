"""Putting one message off: the same on each broker, on real servers."""

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
import redis
from dramatiq import Broker, Message
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.common import dq_name

from dramatiq_chaperone.brokers import Deferrer, deferrer_of, inspector_of
from tests.proxy import Proxy
from tests.waiting import wait_until


class Hooks(dramatiq.Middleware):
    """Notes what is enqueued."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any, int | None]] = []

    def before_enqueue(self, broker: Broker, message: Any, delay: int | None) -> None:
        self.seen.append(("before", message, delay))

    def after_enqueue(self, broker: Broker, message: Any, delay: int | None) -> None:
        self.seen.append(("after", message, delay))


class Bench:
    """A broker with one message that was fetched, and is not acknowledged."""

    def __init__(self, broker: Any, queue: str, **options: Any) -> None:
        self.broker, self.queue = broker, queue
        broker.declare_queue(queue)
        self.sent = broker.enqueue(Message(queue_name=queue, actor_name="work", args=(1, "ü"), kwargs={"a": 2}, options=options))
        self.consumer = broker.consume(queue, prefetch=10, timeout=50)
        self.proxy = wait_until(lambda: next(self.consumer), what="the message")
        self.hooks = Hooks()
        broker.add_middleware(self.hooks)
        found = deferrer_of(broker)
        assert found is not None
        self.deferrer: Deferrer = found

    def counts(self) -> tuple[int, int, int]:
        """(ready, delayed, dead)."""
        inspector = inspector_of(self.broker)
        assert inspector is not None
        with contextlib.closing(inspector):
            (reading,) = [each for each in inspector.readings() if each.queue == self.queue]
        return reading[1:4]

    def acknowledge(self) -> None:
        self.consumer.ack(self.proxy)
        if isinstance(self.broker, RabbitmqBroker):
            self.consumer.connection.process_data_events(0)

    def delayed(self) -> Any:
        """The message in the delay queue, fetched."""
        consumer = self.broker.consume(dq_name(self.queue), prefetch=10, timeout=50)
        proxy = wait_until(lambda: next(consumer), what="the delayed message")
        consumer.ack(proxy)
        with contextlib.suppress(Exception):
            consumer.close()
        return proxy


@pytest.fixture(params=["stub", "redis", "rabbitmq"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make_bench(kind: str, request: pytest.FixtureRequest) -> Iterator[Callable[..., Bench]]:
    benches: list[Bench] = []

    def make(**options: Any) -> Bench:
        broker: Any
        queue = f"queue-{secrets.token_hex(4)}"
        if kind == "redis":
            broker = RedisBroker(url=request.getfixturevalue("redis_url"), namespace="elsewhere")  # type: ignore[no-untyped-call]
        elif kind == "rabbitmq":
            broker, queue = RabbitmqBroker(url=request.getfixturevalue("rabbitmq_url")), request.getfixturevalue("rabbitmq_queue")()
        else:
            broker = StubBroker()
        benches.append(Bench(broker, queue, **options))
        return benches[-1]

    yield make
    for bench in benches:
        with contextlib.suppress(Exception):
            bench.consumer.close()
        bench.broker.close()


def in_a_minute() -> int:
    return int(time.time() * 1000) + 60_000


def test_the_copy_is_the_message_with_its_time_and_its_number(make_bench: Callable[..., Bench]) -> None:
    bench, eta = make_bench(retries=1, mine={"a": [1]}), in_a_minute()
    assert bench.deferrer.put_off(bench.proxy, eta, 3)
    bench.acknowledge()
    wait_until(lambda: bench.counts() == (0, 1, 0))
    copy = bench.delayed()
    sent = bench.sent
    assert (copy.message_id, copy.actor_name, tuple(copy.args), copy.kwargs) == (sent.message_id, "work", (1, "ü"), {"a": 2})
    assert (copy.message_timestamp, copy.queue_name) == (sent.message_timestamp, dq_name(bench.queue))
    options = dict(copy.options)
    assert (options.pop("eta"), options.pop("deferrals"), options.pop("retries"), options.pop("mine")) == (eta, 3, 1, {"a": [1]})
    assert options.keys() <= {"redis_message_id", "deferral"}
    assert options.get("redis_message_id") != sent.options.get("redis_message_id") or options.get("redis_message_id") is None


def test_the_hooks_of_an_enqueue_are_called_around_it(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    bench.deferrer.put_off(bench.proxy, in_a_minute(), 1)
    (before, message, delay), (after, same, _) = bench.hooks.seen
    assert (before, after) == ("before", "after")
    assert message.queue_name == same.queue_name == dq_name(bench.queue)
    assert delay is not None
    assert 59_000 < delay <= 60_000


def test_a_time_that_has_passed_is_no_negative_delay(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    bench.deferrer.put_off(bench.proxy, 1000, 1)
    assert bench.hooks.seen[0][2] == 0


def test_who_has_to_claim_its_run(make_bench: Callable[..., Bench], kind: str) -> None:
    bench = make_bench()
    assert bench.deferrer.contender(bench.proxy) is None
    bench.deferrer.put_off(bench.proxy, in_a_minute(), 1)
    bench.acknowledge()
    name = bench.deferrer.contender(bench.delayed())
    assert (name is not None) is bench.deferrer.leaves_doubt is (kind == "rabbitmq")


class TestRedis:
    @pytest.fixture
    def kind(self) -> str:
        return "redis"

    def keys(self, bench: Bench) -> set[str]:
        return {key.decode().removeprefix(f"elsewhere:{bench.queue}") for key in bench.broker.client.keys(f"elsewhere:{bench.queue}*")}

    def test_it_moves_and_leaves_no_lease(self, make_bench: Callable[..., Bench]) -> None:
        bench = make_bench()
        assert bench.deferrer.put_off(bench.proxy, in_a_minute(), 1)
        assert self.keys(bench) == {".DQ", ".DQ.msgs"}
        assert bench.broker.client.keys("elsewhere:__acks__*") == []
        bench.acknowledge()
        assert bench.counts() == (0, 1, 0)

    def test_asked_twice_it_puts_once(self, make_bench: Callable[..., Bench]) -> None:
        """As after an answer that was lost."""
        bench = make_bench()
        assert bench.deferrer.put_off(bench.proxy, in_a_minute(), 1)
        assert not bench.deferrer.put_off(bench.proxy, in_a_minute(), 1)
        assert bench.counts() == (0, 1, 0)

    def test_a_message_that_another_worker_has_is_left_to_it(self, make_bench: Callable[..., Bench]) -> None:
        bench = make_bench()
        client = bench.broker.client
        (lease,) = client.keys("elsewhere:__acks__*")
        client.rename(lease, f"elsewhere:__acks__.other.{bench.queue}")
        assert not bench.deferrer.put_off(bench.proxy, in_a_minute(), 1)
        bench.acknowledge()
        assert self.keys(bench) == {".msgs"}

    def test_a_redis_without_memory_changes_nothing(self, make_bench: Callable[..., Bench]) -> None:
        bench = make_bench()
        client = bench.broker.client
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", "1")
        try:
            with pytest.raises(redis.exceptions.ResponseError):
                bench.deferrer.put_off(bench.proxy, in_a_minute(), 1)
        finally:
            client.config_set("maxmemory", "0")
        assert self.keys(bench) == {".msgs"}
        assert bench.deferrer.put_off(bench.proxy, in_a_minute(), 1)
        assert bench.counts() == (0, 1, 0)


class TestRabbitmq:
    @pytest.fixture
    def kind(self) -> str:
        return "rabbitmq"

    def test_each_copy_has_a_name_of_its_own(self, make_bench: Callable[..., Bench]) -> None:
        bench = make_bench()
        for number in (1, 2):
            bench.deferrer.put_off(bench.proxy, in_a_minute(), number)
        names = {message.options["deferral"] for _, message, _ in bench.hooks.seen}
        assert len(names) == 2

    def test_a_message_that_was_delivered_again_is_the_original(self, make_bench: Callable[..., Bench]) -> None:
        bench = make_bench()
        bench.consumer.close()
        bench.consumer = bench.broker.consume(bench.queue, prefetch=10, timeout=50)
        again = wait_until(lambda: next(bench.consumer), what="the message again")
        assert bench.deferrer.contender(again) == "original"

    def test_its_priority_at_the_broker_stays(self, rabbitmq_url: str, rabbitmq_queue: Callable[[], str]) -> None:
        broker, queue = RabbitmqBroker(url=rabbitmq_url, max_priority=10), rabbitmq_queue()
        bench = Bench(broker, queue, broker_priority=7)
        bench.deferrer.put_off(bench.proxy, in_a_minute(), 1)
        with contextlib.closing(pika.BlockingConnection(pika.URLParameters(rabbitmq_url))) as connection:
            _, properties, _ = wait_until(
                lambda: (found := connection.channel().basic_get(dq_name(queue), auto_ack=True))[0] and found, what="the copy"
            )
        assert (properties.priority, properties.delivery_mode) == (7, 2)
        bench.consumer.close()
        broker.close()

    def test_a_connection_that_has_ended_meanwhile_is_made_anew(
        self, rabbitmq_url: str, rabbitmq_queue: Callable[[], str], proxy: Callable[[str, int], Proxy]
    ) -> None:
        parts = urlsplit(rabbitmq_url)
        between = proxy(parts.hostname or "", parts.port or 5672)
        broker = RabbitmqBroker(url=f"amqp://{parts.username}:{parts.password}@127.0.0.1:{between.port}")
        bench = Bench(broker, rabbitmq_queue())
        assert bench.deferrer.put_off(bench.proxy, in_a_minute(), 1)
        between.cut()
        with pytest.raises(pika.exceptions.AMQPError):
            bench.deferrer.put_off(bench.proxy, in_a_minute(), 2)
        between.restore()
        assert bench.deferrer.put_off(bench.proxy, in_a_minute(), 3)
        between.cut()
        between.restore()
        assert bench.deferrer.put_off(bench.proxy, in_a_minute(), 4)
        wait_until(lambda: bench.counts()[1] == 3)
        with contextlib.suppress(Exception):
            bench.consumer.close()
        broker.close()

    def test_a_queue_that_is_gone_is_an_error_and_no_message_lost(self, make_bench: Callable[..., Bench]) -> None:
        bench = make_bench()
        with contextlib.closing(pika.BlockingConnection(bench.broker.parameters)) as connection:
            connection.channel().queue_delete(dq_name(bench.queue))
        with pytest.raises(pika.exceptions.AMQPError):
            bench.deferrer.put_off(bench.proxy, in_a_minute(), 1)
        bench.broker.queues_pending.add(bench.queue)
        bench.broker.declare_queue(bench.queue, ensure=True)
        assert bench.deferrer.put_off(bench.proxy, in_a_minute(), 2)


def test_a_broker_of_another_kind_has_none_and_a_subclass_has_one() -> None:
    class Own(StubBroker):
        pass

    assert deferrer_of(Broker()) is None
    assert deferrer_of(Own()) is not None
