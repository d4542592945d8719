"""What a worker lets go of before its process ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import pytest
from dramatiq import Worker
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker

from dramatiq_chaperone.brokers import holding_of
from tests.waiting import wait_until


class Scene:
    """A worker with one job under way, and others that it has fetched."""

    def __init__(self, broker: Any, queue: str) -> None:
        self.broker, self.queue = broker, queue
        self.began, self.go = threading.Event(), threading.Event()

        @dramatiq.actor(broker=broker, queue_name=queue, actor_name="hold")
        def hold() -> None:
            self.began.set()
            self.go.wait()

        self.actor = hold
        self.message = hold.send()
        self.worker = Worker(broker, worker_threads=1, worker_timeout=50)
        self.worker.start()
        assert self.began.wait(10)

    def close(self) -> None:
        self.go.set()
        self.worker.stop()
        self.broker.close()


@pytest.fixture
def stage() -> Iterator[Callable[[Any, str], Scene]]:
    scenes: list[Scene] = []

    def make(broker: Any, queue: str = "default") -> Scene:
        scenes.append(Scene(broker, queue))
        return scenes[-1]

    yield make
    for scene in scenes:
        scene.close()


def test_on_redis_all_but_what_runs_goes_back(stage: Callable[..., Scene], redis_url: str) -> None:
    broker = RedisBroker(url=redis_url, middleware=[])
    scene = stage(broker)
    for _ in range(5):
        scene.actor.send()
    for _ in range(1500):
        scene.actor.send_with_options(delay=3_600_000)

    def leased(queue: str) -> set[Any]:
        return broker.client.smembers(f"dramatiq:__acks__.{broker.broker_id}.{queue}")

    wait_until(lambda: len(leased("default")) == 2 and len(leased("default.DQ")) >= 1000)
    (waiting,) = scene.worker.work_queue.queue
    own = {each.decode() for each in leased("default")} - {waiting.message.options["redis_message_id"]}
    given = holding_of(broker, scene.worker).give_back(own)
    assert given >= 1001
    assert {each.decode() for each in leased("default")} == own
    assert leased("default.DQ") == set()
    assert broker.client.llen("dramatiq:default") == 5
    assert broker.client.llen("dramatiq:default.DQ") == 1500
    scene.worker.work_queue.queue.clear()  # the process would be gone


def test_on_rabbitmq_a_rejection_has_arrived_when_it_says_so(
    stage: Callable[..., Scene], rabbitmq_url: str, rabbitmq_queue: Callable[[], str]
) -> None:
    broker = RabbitmqBroker(url=rabbitmq_url, middleware=[])
    queue = rabbitmq_queue()
    scene = stage(broker, queue)
    holding = holding_of(broker, scene.worker)
    consumer: Any = scene.worker.consumers[queue].consumer
    (tag,) = consumer.known_tags
    consumer.nack(type("Message", (), {"_tag": tag}))
    wait_until(lambda: holding.has_arrived(queue))
    wait_until(lambda: broker.get_queue_message_counts(queue)[2] == 1)
    assert holding.give_back(()) == 0


def test_the_stub_broker_has_nothing_to_let_go_of(stage: Callable[..., Scene]) -> None:
    broker = StubBroker(middleware=[])
    scene = stage(broker)
    holding = holding_of(broker, scene.worker)
    assert holding.has_arrived("default")
    assert holding.give_back(()) == 0
