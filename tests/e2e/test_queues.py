"""Queues: read by one worker of a master while jobs run, whoever brings it to the store."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Fleet
from tests.servers import RedisServer
from tests.waiting import wait_until


def readings(fleet: Fleet) -> dict[str, tuple[Any, ...]]:
    return {queue: tuple(rest) for queue, *rest in fleet.sql("SELECT queue, broker, ready, delayed, dead, oldest_at FROM queues")}


@pytest.mark.parametrize("watcher", ["1", "0"])
@pytest.mark.parametrize("kind", ["redis", "rabbitmq"])
def test_what_lies_in_a_queue_comes_into_the_store(
    make_fleet: Callable[..., Fleet], request: pytest.FixtureRequest, tmp_path: Path, kind: str, watcher: str
) -> None:
    url = request.getfixturevalue(f"{kind}_url")
    queue = request.getfixturevalue("rabbitmq_queue")() if kind == "rabbitmq" else "default"
    fleet = make_fleet(url, QUEUE=queue)
    master = fleet.start(processes=1, threads=1, CHAPERONE_WATCHER=watcher)
    fleet.send(f"hold.send({str(tmp_path / 'go')!r})")
    fleet.send("fail.send()", 20)
    # One runs, and twice as many as there are threads are prefetched.
    found = wait_until(lambda: (row := readings(fleet).get(queue)) and row[1] and row, timeout_s=30)
    broker, ready, _, dead, oldest_at = found
    assert (broker, ready, dead) == ("RedisBroker" if kind == "redis" else "RabbitmqBroker", found[1], 0)
    assert 17 <= ready <= 20
    assert (oldest_at is not None) == (kind == "redis")
    (tmp_path / "go").touch()
    wait_until(lambda: readings(fleet)[queue][1:4] == (0, 0, 20), timeout_s=30)
    assert "Internal error" not in master.log()
    master.stop()


def test_one_worker_of_a_master_reads(fleet: Fleet) -> None:
    fleet.start(processes=2, threads=1)
    wait_until(lambda: readings(fleet), timeout_s=30)

    def of_each() -> dict[str, set[str]]:
        fleet.send("threads.send()", 4)
        lines = [line.split() for line in fleet.ledger.read_text().splitlines()] if fleet.ledger.exists() else []
        found: dict[str, set[str]] = {}
        for what, _, pid in lines:
            found.setdefault(pid, set()).add(what)
        return found if len(found) == 2 else {}

    assert sorted(map(sorted, wait_until(of_each, timeout_s=30).values())) == [["threads=1"], ["threads=2"]]


def test_a_broker_that_hangs_does_not_hold_up_the_sampler_or_a_stop(
    make_fleet: Callable[..., Fleet], redis_server: RedisServer, tmp_path: Path
) -> None:
    fleet = make_fleet(redis_server.url)
    fleet.start(processes=1, threads=1)
    fleet.send(f"hold.send({str(tmp_path / 'go')!r})")
    fleet.wait_for(running=1)
    wait_until(lambda: readings(fleet), timeout_s=30)

    def last(column: str, table: str) -> Any:
        return fleet.sql(f"SELECT MAX({column}) FROM {table}")[0][0]

    wait_until(lambda: last("sampled_at", "supervised_jobs"), timeout_s=30)
    redis_server.pause()
    try:
        paused_at = time.monotonic()
        sampled, read = last("sampled_at", "supervised_jobs"), last("read_at", "queues")
        wait_until(lambda: time.monotonic() - paused_at > 6 and last("sampled_at", "supervised_jobs") > sampled, timeout_s=30)
    finally:
        redis_server.resume()
    wait_until(lambda: last("read_at", "queues") > read, timeout_s=30)
    (tmp_path / "go").touch()
    fleet.wait_for(completed=1)
