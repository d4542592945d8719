from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dramatiq_chaperone.cli.monitor import Snapshot, as_json, compact, plain, room, stuck_s

NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
JOB = {
    "job_id": "4f9e2b61-0d0c-4f0e-9d51-3a0c6f3a2b11",
    "actor_name": "import_orders",
    "started_at": NOON - timedelta(minutes=5),
    "last_heartbeat_at": NOON - timedelta(minutes=2),
    "status": "stalled",
    "payload": "more than is shown",
}
VIOLATION = {"job_id": None, "type": "memory", "limit": 512e6, "actual": 640.5e6, "created_at": NOON}
BREAKER = {"service": "mail", "state": "open", "failure_count": 5, "last_failure_at": NOON, "opened_at": NOON}


def a_snapshot(**known: Any) -> Snapshot:
    nothing: dict[str, Any] = {"active": [], "stuck": [], "violations": [], "breakers": []}
    return Snapshot(at=NOON, **{**nothing, "active_total": 0, "stuck_total": 0, "violations_total": 0, **known})


FULL = a_snapshot(active=[JOB], active_total=1, stuck=[JOB], stuck_total=70, violations=[VIOLATION], violations_total=1, breakers=[BREAKER])


def test_the_data_has_the_names_of_the_specification() -> None:
    data = as_json(FULL)

    assert list(data) == ["timestamp", "active_jobs", "stuck_jobs", "resource_violations", "circuit_breakers"]
    assert data["active_jobs"][0].keys() == {"id", "job_class", "started_at", "last_heartbeat_at", "status"}
    assert data["stuck_jobs"][0].keys() == {"id", "job_class", "stuck_duration_seconds", "last_heartbeat_at"}
    assert data["resource_violations"][0].keys() == {"supervised_job_id", "type", "limit", "actual", "recorded_at"}
    assert data["circuit_breakers"][0].keys() == {"service", "state", "failures", "last_failure_at", "opened_at"}
    assert data["stuck_jobs"][0]["stuck_duration_seconds"] == 120


def test_a_job_is_stuck_since_it_was_last_heard_of() -> None:
    assert stuck_s({**JOB, "last_heartbeat_at": None}, NOON) == 300
    assert stuck_s({**JOB, "last_heartbeat_at": None, "started_at": None}, NOON) is None


def test_lines_have_totals_and_whole_ids() -> None:
    text = "\n".join(plain(FULL, is_compact=False))

    assert "Active jobs: 1\n" in text
    assert "Stuck jobs: 70, the newest 1\n" in text
    assert "Circuit breakers: 1, 1 open\n" in text
    assert JOB["job_id"] in text
    assert "640.5 MB" in text


def test_what_is_not_there_has_a_title_alone() -> None:
    assert plain(a_snapshot(), is_compact=False)[1:5] == ["", "Active jobs: 0", "", "Stuck jobs: 0"]


def test_compact_is_four_lines() -> None:
    assert [line.split(":")[0] for line in compact(FULL)] == [
        "Active Jobs",
        "Stuck Jobs",
        "Violations (Last Hour)",
        "Open Circuit Breakers",
    ]
    assert [line.split()[-1] for line in compact(FULL)] == ["1", "70", "1", "1"]


@pytest.mark.parametrize(
    ("lengths", "lines", "given"),
    [
        ([50, 0, 0, 0], 32, [20, 0, 0, 0]),
        ([50, 2, 0, 0], 26, [8, 2, 0, 0]),
        ([1, 1, 1, 1], 100, [1, 1, 1, 1]),
        ([9, 9, 9, 9], 5, [0, 0, 0, 0]),
    ],
)
def test_a_screen_is_shared(lengths: list[int], lines: int, given: list[int]) -> None:
    assert room(lengths, lines) == given
