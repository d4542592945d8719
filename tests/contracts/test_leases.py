"""What the workers of a Redis hold, and how that of a dead one goes back: on a real server, with Dramatiq's own broker as the worker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from dramatiq import Message
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker

from dramatiq_chaperone.brokers import Held, lease_of, leases_of, tells_redelivery

MakeBroker = Callable[..., Any]


@pytest.fixture(params=["dramatiq", "its[o]wn*"])
def make_broker(redis_url: str, request: pytest.FixtureRequest) -> Iterator[MakeBroker]:
    """``make_broker()``: a worker's broker object; each is one worker to Redis."""
    made: list[Any] = []

    def make(**options: Any) -> Any:
        made.append(RedisBroker(url=redis_url, namespace=request.param, maintenance_chance=0, **options))  # type: ignore[no-untyped-call]
        made[-1].declare_queue("default")
        return made[-1]

    yield make
    for each in made:
        each.close()


def send(broker: Any, count: int = 1, *, queue: str = "default", delay: int | None = None, **options: Any) -> list[Any]:
    """Messages, each made a second after the one before."""
    now = int(time.time() * 1000)
    messages = [
        Message(queue_name=queue, actor_name="work", args=(), kwargs={}, options=options, message_timestamp=now + 1000 * n)
        for n in range(count)
    ]
    return [broker.enqueue(message, delay=delay) for message in messages]


def fetch(broker: Any, count: int = 1, *, queue: str = "default") -> list[str]:
    """What a worker takes; the ids of the messages."""
    return [Message.decode(body).message_id for body in broker.do_fetch(queue, count)]


def is_in_order(broker: Any, messages: list[Any], *, queue: str = "default") -> bool:
    return fetch(broker, 100, queue=queue) == [each.message_id for each in messages]


def test_what_a_dead_worker_held_is_at_the_front_again_in_its_order(make_broker: MakeBroker) -> None:
    dead, other = make_broker(), make_broker()
    messages = send(other, 10)
    assert len(fetch(dead, 8)) == 8
    leases = leases_of(other)
    assert leases is not None
    held = leases.held(dead.broker_id, ["default"])
    assert held is not None
    assert [each.job_id for each in held] == [each.message_id for each in messages[:8]]
    assert held[0]._replace(made_at=0.0) == Held("default", messages[0].options["redis_message_id"], messages[0].message_id, "work")
    assert leases.give_back(dead.broker_id, held, is_dead=True) == 8
    assert leases.held(dead.broker_id, ["default"]) == []
    assert leases.forget(dead.broker_id)
    assert leases.held(dead.broker_id, ["default"]) is None, "it is not known any more"
    assert is_in_order(other, messages)


def test_many_go_back_in_their_order(make_broker: MakeBroker) -> None:
    dead, other = make_broker(), make_broker()
    messages = send(other, 1203)
    fetch(dead, 700)
    fetch(dead, 700)
    leases = leases_of(other)
    assert leases is not None
    held = leases.held(dead.broker_id, ["default"])
    assert leases.give_back(dead.broker_id, held or [], is_dead=True) == 1203
    found = [fetch(other, 700), fetch(other, 700)]
    assert [*found[0], *found[1]] == [each.message_id for each in messages]


def test_what_was_acknowledged_stays_away(make_broker: MakeBroker) -> None:
    dead, other = make_broker(), make_broker()
    gone, left = send(other, 2)
    fetch(dead, 2)
    leases = leases_of(other)
    assert leases is not None
    held = leases.held(dead.broker_id, ["default"])
    dead.do_ack("default", gone.options["redis_message_id"])
    assert leases.give_back(dead.broker_id, held or [], is_dead=True) == 1
    assert is_in_order(other, [left])


def test_a_lease_whose_message_is_gone_is_dropped(make_broker: MakeBroker) -> None:
    dead, other = make_broker(), make_broker()
    (message,) = send(other)
    fetch(dead)
    other.client.hdel(f"{other.namespace}:default.msgs", message.options["redis_message_id"])
    leases = leases_of(other)
    assert leases is not None
    held = leases.held(dead.broker_id, ["default"])
    assert [each.job_id for each in held or []] == [None]
    assert leases.give_back(dead.broker_id, held or [], is_dead=True) == 0
    assert leases.held(dead.broker_id, ["default"]) == []
    assert other.client.llen(f"{other.namespace}:default") == 0


def test_a_second_time_gives_nothing_back(make_broker: MakeBroker) -> None:
    dead, other = make_broker(), make_broker()
    send(other, 3)
    fetch(dead, 3)
    leases = leases_of(other)
    assert leases is not None
    held = leases.held(dead.broker_id, ["default"]) or []
    assert leases.give_back(dead.broker_id, held, is_dead=True) == 3
    assert leases.give_back(dead.broker_id, held, is_dead=True) == 0
    assert len(fetch(other, 10)) == 3


def test_delayed_messages_go_back_to_their_queue(make_broker: MakeBroker) -> None:
    dead, other = make_broker(), make_broker()
    (message,) = send(other, delay=3_600_000)
    fetch(dead, queue="default.DQ")
    leases = leases_of(other)
    assert leases is not None
    held = leases.held(dead.broker_id, ["default"]) or []
    assert [(each.queue, each.is_delayed, each.job_id) for each in held] == [("default.DQ", True, message.message_id)]
    assert leases.give_back(dead.broker_id, held, is_dead=True) == 1
    assert is_in_order(other, [message], queue="default.DQ")


def test_only_the_leases_of_the_dead_worker_are_touched(make_broker: MakeBroker) -> None:
    dead, living, other = make_broker(), make_broker(), make_broker()
    send(other, 4)
    fetch(dead, 2)
    theirs = fetch(living, 2)
    leases = leases_of(other)
    assert leases is not None
    held = leases.held(dead.broker_id, ["default"]) or []
    assert leases.give_back(living.broker_id, held, is_dead=True) == 0, "these are not its own"
    assert leases.give_back(dead.broker_id, held, is_dead=True) == 2
    assert leases.forget(dead.broker_id)
    assert {each.job_id for each in leases.held(living.broker_id, ["default"]) or []} == set(theirs)


def test_what_was_fetched_after_the_look_stays_for_the_next_one(make_broker: MakeBroker) -> None:
    dead, other = make_broker(), make_broker()
    send(other, 2)
    fetch(dead)
    leases = leases_of(other)
    assert leases is not None
    held = leases.held(dead.broker_id, ["default"]) or []
    fetch(dead)  # its last command, which came late
    assert leases.give_back(dead.broker_id, held, is_dead=True) == 1
    assert not leases.forget(dead.broker_id)
    held = leases.held(dead.broker_id, ["default"]) or []
    assert leases.give_back(dead.broker_id, held, is_dead=True) == 1
    assert leases.forget(dead.broker_id)


def test_a_queue_that_nobody_named_keeps_its_worker_known(make_broker: MakeBroker) -> None:
    """Dramatiq's maintenance finds the leases of a worker by its heartbeat alone."""
    dead, other = make_broker(), make_broker()
    other.declare_queue("unnamed")
    send(other, queue="unnamed")
    fetch(dead, queue="unnamed")
    leases = leases_of(other)
    assert leases is not None
    assert leases.held(dead.broker_id, ["default"]) == []
    assert not leases.forget(dead.broker_id)
    assert len(leases.held(dead.broker_id, ["default", "unnamed"]) or []) == 1


def test_a_silent_worker_keeps_its_messages_for_as_long_as_its_lease_counts(make_broker: MakeBroker) -> None:
    silent, other = make_broker(), make_broker(heartbeat_timeout=10_000)
    send(other, 2)
    fetch(silent, 2)
    leases = leases_of(other)
    assert leases is not None
    held = leases.held(silent.broker_id, ["default"]) or []
    assert leases.give_back(silent.broker_id, held, is_dead=False) is None
    assert leases.give_back(silent.broker_id, [], is_dead=False) is None
    assert leases.give_back(silent.broker_id, [], is_dead=True) == 0
    long_ago = (time.time() - 11) * 1000
    other.client.zadd(f"{other.namespace}:__heartbeats__", {silent.broker_id: long_ago})
    assert leases.give_back(silent.broker_id, held, is_dead=False) == 2


def test_a_body_that_is_no_message_goes_back_all_the_same(make_broker: MakeBroker) -> None:
    dead, other = make_broker(), make_broker()
    other.do_enqueue("default", "key-1", b"\x80 no JSON")
    dead.do_fetch("default", 1)
    leases = leases_of(other)
    assert leases is not None
    held = leases.held(dead.broker_id, ["default"]) or []
    assert held == [Held("default", "key-1", None)]
    assert leases.give_back(dead.broker_id, held, is_dead=True) == 1
    assert other.do_fetch("default", 1) == [b"\x80 no JSON"]


def test_of_any_number_who_do_it_at_once_one_puts_each_message_back(make_broker: MakeBroker) -> None:
    dead, other = make_broker(), make_broker()
    messages = send(other, 200)
    fetch(dead, 200)
    helpers = [make_broker() for _ in range(4)]
    barrier = threading.Barrier(len(helpers))
    given: list[int | None] = []

    def help_out(broker: Any) -> None:
        leases = leases_of(broker)
        assert leases is not None
        held = leases.held(dead.broker_id, ["default"]) or []
        barrier.wait()
        given.extend(leases.give_back(dead.broker_id, held[first : first + 10], is_dead=True) for first in range(0, 200, 10))

    threads = [threading.Thread(target=help_out, args=(each,)) for each in helpers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(count or 0 for count in given) == 200
    assert sorted(fetch(other, 1000)) == sorted(each.message_id for each in messages)


def test_a_process_that_renews_its_lease_learns_what_is_still_its_own(make_broker: MakeBroker) -> None:
    own, other = make_broker(heartbeat_timeout=5000), make_broker(heartbeat_timeout=5000)
    messages = send(own, 3)
    fetch(own, 3)
    leases = leases_of(own)
    assert leases is not None
    assert leases.lease_s == 5.0
    assert leases.renew(["default"]) == {each.options["redis_message_id"] for each in messages}
    own.client.zadd(f"{own.namespace}:__heartbeats__", {own.broker_id: 1})
    leases.renew(["default"])
    other.maintenance_chance = 1_000_000
    assert fetch(other, 3) == [], "it was heard of, so maintenance leaves it alone"
    own.client.zadd(f"{own.namespace}:__heartbeats__", {own.broker_id: 1})
    assert len(fetch(other, 3)) == 3, "it was silent for too long"
    assert leases.renew(["default"]) == frozenset()


def test_the_others_take_care_of_it_themselves() -> None:
    assert leases_of(StubBroker()) is None
    assert lease_of(StubBroker()) is None, "nobody else can have its messages"
    assert not tells_redelivery(StubBroker())
    for url, expected in (("amqp://127.0.0.1?heartbeat=7", 7.0), ("amqp://127.0.0.1", 60.0), (["amqp://127.0.0.1?heartbeat=7"], 7.0)):
        rabbitmq = RabbitmqBroker(url=url)
        assert leases_of(rabbitmq) is None
        assert lease_of(rabbitmq) == expected
        assert tells_redelivery(rabbitmq)
    assert lease_of(RedisBroker(heartbeat_timeout=5000)) == 5.0  # type: ignore[no-untyped-call]
