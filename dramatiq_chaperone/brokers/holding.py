"""What a worker process holds of its broker's messages, and how it lets go of it before it ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection
from typing import Any, Final

from dramatiq import Broker, Worker

from .inspector import kind_of

#: How long one look may wait for a consumer's connection, in seconds.
WAIT_S: Final = 2.0
#: A fetch that was under way when fetching ended is over after so many seconds; so long nothing new may turn up.
QUIET_S: Final = 0.1
#: Ids in one command.
CHUNK: Final = 1000


def holding_of(broker: Broker, worker: Worker) -> Holding:
    """What *worker* holds of the messages of *broker*."""
    kinds = {"redis": RedisHolding, "rabbitmq": RabbitmqHolding}
    return kinds.get(kind_of(broker) or "", Holding)(broker, worker)


class Holding:
    """Of a broker that needs nothing done: it keeps nothing, or does not outlive the process."""

    def __init__(self, broker: Any, worker: Any) -> None:
        self._broker, self._worker = broker, worker

    def has_arrived(self, queue: str) -> bool:
        """Whether what was acknowledged or rejected in *queue* is known to the broker."""
        return True

    def give_back(self, kept: Collection[str]) -> int:
        """Fetch no more, and give back what is held but for *kept*, ids of the broker's own kind; how many."""
        return 0


class RedisHolding(Holding):
    """An acknowledgement is a command, which has been answered; a lease outlives the process until it runs out.

    Source: dramatiq/brokers/redis/dispatch.lua.
    """

    def give_back(self, kept: Collection[str]) -> int:
        """The leases themselves are read: they hold, too, what a consumer has just fetched and not handed on."""
        consumers = self._worker.consumers
        for thread in list(consumers.values()):
            if thread.consumer is not None:
                getattr(thread.consumer, "inner", thread.consumer).prefetch = 0  # it fetches while it holds less than that
        given = 0
        quiet_at = time.monotonic() + QUIET_S
        deadline = quiet_at + WAIT_S
        while time.monotonic() < min(quiet_at, deadline):
            found = sum(self._requeue(queue, kept) for queue in list(consumers))
            if found:
                quiet_at = time.monotonic() + QUIET_S
            given += found
            time.sleep(QUIET_S / 5)
        return given

    def _requeue(self, queue: str, kept: Collection[str]) -> int:
        broker = self._broker
        leased = broker.client.smembers(f"{broker.namespace}:__acks__.{broker.broker_id}.{queue}")
        ids = [each for each in leased if _text(each) not in kept]
        for first in range(0, len(ids), CHUNK):
            broker.do_requeue(queue, *ids[first : first + CHUNK])
        return len(ids)


class RabbitmqHolding(Holding):
    """What is held goes back when the connection ends; acknowledgements wait for the thread that owns their connection."""

    def has_arrived(self, queue: str) -> bool:
        """Callbacks run in their order: when one has run, those before it have."""
        consumer = self._worker.consumers[queue].consumer
        done = threading.Event()
        consumer.connection.add_callback_threadsafe(done.set)
        return done.wait(WAIT_S)


def _text(message_id: Any) -> str:
    return message_id.decode() if isinstance(message_id, bytes) else str(message_id)
