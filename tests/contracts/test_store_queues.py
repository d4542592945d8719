"""Readings of queues: the last one of each is kept, whoever brings it and when."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from dramatiq_chaperone import records
from dramatiq_chaperone.journal import thin
from dramatiq_chaperone.store import Store, queries, retention
from tests.contracts.conftest import NOW, MakeStore, Process, StoreSettings, ended, enqueued


def read(
    at: float,
    ready: int,
    *,
    queue: str = "default",
    broker: str = "RedisBroker",
    oldest_at: float | None = None,
    paused: bool = False,
    paused_for: str | None = None,
) -> tuple[object, ...]:
    return tuple(records.QueueRead(records.QUEUE_READ, at, broker, queue, ready, 2, 3, oldest_at, paused, paused_for))


def moment(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


@pytest.mark.parametrize("key_type", ["id", "ulid", "uuid"])
def test_the_later_reading_stays_whoever_is_late(make_store: MakeStore, key_type: str) -> None:
    store = make_store(primary_key_type=key_type)
    one, two = Process(store, "one"), Process(store, "two")
    one.writes(read(NOW, 1, oldest_at=NOW - 60), read(NOW + 5, 2, oldest_at=NOW - 50))
    two.writes(read(NOW + 7, 4))
    one.writes(read(NOW + 6, 3, oldest_at=NOW))
    (row,) = queries.list_queues(store)
    assert (row["queue"], row["broker"], row["ready"], row["delayed"], row["dead"]) == ("default", "RedisBroker", 4, 2, 3)
    assert (row["oldest_at"], row["read_at"]) == (None, moment(NOW + 7))
    two.writes(read(NOW + 12, 0, oldest_at=NOW + 11, paused=True))
    (row,) = queries.list_queues(store)
    assert (row["ready"], row["oldest_at"], row["paused"], row["read_at"]) == (0, moment(NOW + 11), True, moment(NOW + 12))
    two.writes(read(NOW + 13, 0), read(NOW + 13, 7, queue="mail", paused=True, paused_for="waiting for smtp"))
    paused = {row["queue"]: (row["paused"], row["paused_for"]) for row in queries.list_queues(store)}
    assert paused == {"default": (False, None), "mail": (True, "waiting for smtp")}


def test_a_row_for_each_queue_of_each_broker(store: Store) -> None:
    worker = Process(store)
    worker.writes(read(NOW, 1, queue="mail"), read(NOW, 2), read(NOW, 3, broker="RabbitmqBroker"), read(NOW, 4, queue="x" * 300))
    found = {(row["queue"], row["broker"]): row["ready"] for row in queries.list_queues(store)}
    long = "x" * 254 + "…"
    assert found == {("mail", "RedisBroker"): 1, ("default", "RedisBroker"): 2, ("default", "RabbitmqBroker"): 3, (long, "RedisBroker"): 4}


def test_readings_are_the_first_to_go_while_the_store_is_away() -> None:
    assert [entry[2:] for entry in thin([read(NOW, 1), read(NOW + 5, 2)], drop_successes=False)] == [("QueueRead", 2)]


def test_a_queue_that_nobody_reads_any_more_is_forgotten(make_settings: Callable[..., StoreSettings], store: Store) -> None:
    Process(store).writes(read(NOW - 8 * 86_400, 1, queue="old"), read(NOW - 6 * 86_400, 2, queue="new"))
    list(retention.prune(store, make_settings(), now=NOW))
    assert [row["queue"] for row in queries.list_queues(store)] == ["new"]


def test_rates(store: Store) -> None:
    worker = Process(store)
    worker.writes(*(enqueued(f"old{n}", at=NOW - 3600) for n in range(5)))
    for n in range(12):
        worker.writes(enqueued(f"job{n}", at=NOW + n), ended(f"job{n}", f"run{n}", at=NOW + n, outcome="failed", status=None))
    worker.writes(*(enqueued(f"mail{n}", at=NOW + n, queue="mail") for n in range(4)))
    rates = queries.queue_rates(store, since=moment(NOW))
    assert rates == {"default": {"jobs_in": 12, "runs_out": 12}, "mail": {"jobs_in": 4, "runs_out": 0}}
    assert json.loads(json.dumps(rates)) == rates
