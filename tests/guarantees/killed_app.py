"""An app whose worker is killed.  Environment: BROKER_URL, QUEUE, RUNS (a file)."""

from __future__ import annotations

import os
import time

import dramatiq
from dramatiq import Broker
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker

from dramatiq_chaperone import Chaperone


def make_broker(url: str) -> Broker:
    # Redis gives a dead worker's messages back as part of its maintenance: always, and soon.
    return RabbitmqBroker(url=url) if url.startswith("amqp") else RedisBroker(url=url, heartbeat_timeout=1500, maintenance_chance=1_000_000)


broker = make_broker(os.environ["BROKER_URL"])
broker.add_middleware(Chaperone())
dramatiq.set_broker(broker)


def note(what: str) -> None:
    with open(os.environ["RUNS"], "a") as file:
        file.write(f"{what} {os.getpid()}\n")


@dramatiq.actor(queue_name=os.environ["QUEUE"], max_retries=0)
def hold(path: str) -> None:
    """Runs until the file *path* is there."""
    note("start")
    while not os.path.exists(path):
        time.sleep(0.05)
    note("done")
