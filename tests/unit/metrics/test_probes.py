"""What the probes say of a reading."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dramatiq_chaperone.metrics.collector import Reading
from dramatiq_chaperone.metrics.probes import unready

NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


def reasons(*workers: dict[str, Any], is_up: bool = True, trouble: str | None = None) -> list[str]:
    return unready(Reading(is_up=is_up, workers=list(workers)), NOW, beat_s=5.0, trouble=trouble)


def worker(seconds_ago: float = 1.0, **gauges: Any) -> dict[str, Any]:
    return {"worker_id": "w1", "last_heartbeat_at": NOW - timedelta(seconds=seconds_ago), "gauges": {"consumers": 2, **gauges}}


def test_nothing_against_workers_that_are_heard_of_and_consume() -> None:
    assert reasons(worker(consumers_alive=2), worker(19), {**worker(), "gauges": None}) == []


@pytest.mark.parametrize(("trouble", "reason"), [("gone", "the store does not answer: gone"), (None, "the store does not answer in time")])
def test_a_store_that_does_not_answer(trouble: str | None, reason: str) -> None:
    assert reasons(worker(), is_up=False, trouble=trouble) == [reason]


def test_a_worker_that_is_silent() -> None:
    assert reasons(worker(21, consumers_alive=2)) == ["worker w1: no heartbeat for 21 s"]
    assert reasons({**worker(), "last_heartbeat_at": None, "started_at": None, "created_at": NOW - timedelta(minutes=1)}) == [
        "worker w1: no heartbeat for 60 s"
    ]


def test_a_worker_that_lives_and_does_not_consume() -> None:
    assert reasons(worker(consumers_alive=1)) == ["worker w1: 1 of 2 consumers are dead"]
