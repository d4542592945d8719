"""The thread that reads the queues: when it is asked, by itself, and while the broker is away."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dramatiq import Broker, Message
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker

from dramatiq_chaperone import host, records
from dramatiq_chaperone.brokers import inspector_of
from dramatiq_chaperone.brokers.reading import QueueReader
from dramatiq_chaperone.journal import Journal
from dramatiq_chaperone.service import internal_errors
from tests.integration.conftest import Tape
from tests.servers import RedisServer
from tests.waiting import wait_until


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal(
        tmp_path / "journal", records.Origin(host.new_worker_id(), "host", host.host_identity(), 1, 0.0, "worker"), max_segments=64
    )
    yield made
    made.close()


@pytest.fixture
def tape(tmp_path: Path, journal: Journal) -> Iterator[Tape]:
    found = Tape(tmp_path / "journal")
    yield found
    found.close()


def reader_of(journal: Journal, broker: Broker) -> QueueReader:
    inspector = inspector_of(broker)
    assert inspector is not None
    return QueueReader(journal, broker, inspector)


def ready(tape: Tape) -> list[Any]:
    return [entry.ready for entry in tape.entries(records.QUEUE_READ)]


def message() -> Message[Any]:
    return Message(queue_name="default", actor_name="work", args=(), kwargs={}, options={})


def test_it_reads_once_each_time_that_it_is_asked(journal: Journal, tape: Tape) -> None:
    broker = StubBroker()
    broker.declare_queue("default")
    reader = reader_of(journal, broker)
    assert ready(tape) == []
    for number in range(3):
        reader.ask()
        wait_until(lambda number=number: len(ready(tape)) == number + 1)  # type: ignore[misc]
        broker.enqueue(message())
    reader.stop()
    assert ready(tape) == [0, 1, 2]
    entry = tape.entries(records.QUEUE_READ)[-1]
    assert (entry.queue, entry.broker, entry.delayed, entry.dead) == ("default", "StubBroker", 0, 0)
    assert entry.oldest_at == pytest.approx(time.time(), abs=60)
    assert entry.paused is False


def test_it_reads_by_itself_where_nobody_asks(journal: Journal, tape: Tape) -> None:
    broker = StubBroker()
    broker.declare_queue("default")
    reader = reader_of(journal, broker)
    reader.read_on()
    wait_until(lambda: len(ready(tape)) >= 2, timeout_s=15)
    reader.stop()


def test_a_broker_that_is_away_is_said_once_and_read_again_when_it_is_back(
    journal: Journal, tape: Tape, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    broker = RedisBroker(url=redis_server.url)  # type: ignore[no-untyped-call]
    broker.declare_queue("default")
    reader = reader_of(journal, broker)
    redis_server.stop()
    before = internal_errors["queues"]
    for failed in range(1, 4):
        reader.ask()
        wait_until(lambda failed=failed: internal_errors["queues"] >= before + failed, timeout_s=30)  # type: ignore[misc]
    redis_server.start()
    reader.ask()
    wait_until(lambda: ready(tape) == [0], timeout_s=30)
    reader.stop()
    assert sum("Internal error in queues" in record.message for record in caplog.records) <= 1
    broker.close()


def test_it_starts_and_stops_any_number_of_times(journal: Journal, tape: Tape) -> None:
    broker = StubBroker()
    broker.declare_queue("default")
    reader = reader_of(journal, broker)

    def restless() -> None:
        for _ in range(50):
            reader.ask()
            reader.stop()

    threads = [threading.Thread(target=restless) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reader.stop()
    assert not reader.is_running
    count = len(ready(tape))
    reader.ask()
    wait_until(lambda: len(ready(tape)) > count)
    reader.stop()
