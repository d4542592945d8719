"""How running jobs are, as a list and as a page."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dramatiq_chaperone.cli import formats
from dramatiq_chaperone.cli.health import COLUMNS, of, reason, row, summary
from dramatiq_chaperone.cli.job_page import CHECK_COLUMNS, VIOLATION_COLUMNS, check, violation

NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


def a_job(**known: Any) -> dict[str, Any]:
    times = {"started_at": NOON - timedelta(minutes=5), "updated_at": NOON, "ended_at": None, "completed_at": None, "failed_at": None}
    return {
        "job_id": "4f9e2b61-0d0c-4f0e-9d51-3a0c6f3a2b11", "actor_name": "work", "queue": "default", "status": "running", "health": None,
        "run_id": "r1", "worker_id": "w1", "check": None, **times, **known,
    }  # fmt: skip


def a_check(status: str, why: str | None = None) -> dict[str, Any]:
    return {"status": status, "reason": why, "created_at": NOON - timedelta(seconds=10), "run_id": "r1"}


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({}, "healthy"),
        ({"health": "degraded"}, "degraded"),
        ({"health": "degraded", "status": "stalled"}, "unhealthy"),
        ({"is_unseen": True}, "unknown"),
        ({"is_unseen": True, "health": "healthy"}, "unknown"),
        ({"is_unseen": True, "health": "degraded"}, "degraded"),
        ({"is_unseen": True, "status": "stalled"}, "unhealthy"),
        ({"status": "completed"}, "unknown"),
        ({"status": "completed", "health": "unhealthy"}, "unhealthy"),
    ],
)
def test_the_health_of_a_job(known: dict[str, Any], expected: str) -> None:
    assert of(a_job(**known)) == expected


def test_a_row() -> None:
    cells = row(a_job(health="degraded", check=a_check("degraded", "a heartbeat missed")), NOON, is_short=True)
    assert len(cells) == len(COLUMNS)
    assert cells == ("4f9e2b61", "work", "running", "degraded", "10.0 s ago", "5 m 0 s", "a heartbeat missed", "w1")
    assert row(a_job(), NOON, is_short=False)[4] == "never"


def test_reasons() -> None:
    assert reason(a_job(), NOON) is None
    assert reason(a_job(status="stalled"), NOON) == "stuck"
    assert reason(a_job(health="healthy", check=a_check("unhealthy", "long ago")), NOON) is None
    unseen = {"is_unseen": True, "heard_at": NOON - timedelta(minutes=2)}
    assert reason(a_job(**unseen), NOON) == "its worker was last heard 2 m 0 s ago"
    assert reason(a_job(**unseen, status="stalled"), NOON) == "stuck; its worker was last heard 2 m 0 s ago"
    worse = a_job(**unseen, health="degraded", check=a_check("degraded", "a heartbeat missed"))
    assert reason(worse, NOON) == "a heartbeat missed; its worker was last heard 2 m 0 s ago"
    assert reason(a_job(updated_at=NOON - timedelta(minutes=2), is_unseen=False, heard_at=NOON), NOON) is None


def test_the_summary_leaves_out_what_there_is_none_of() -> None:
    assert summary({"healthy": 3, "degraded": 0, "unhealthy": 1, "unknown": 0}) == "4 running: 3 healthy, 1 unhealthy"
    assert summary({"healthy": 0, "degraded": 0}) == "No job is running."


def test_violations_are_in_the_units_of_their_kind() -> None:
    at = {"created_at": NOON}
    found = violation({**at, "type": "memory", "limit": 100e6, "actual": 250.5e6, "attribution": "exact", "metadata": None})
    assert len(found) == len(VIOLATION_COLUMNS)
    assert found[1:] == ("memory", "100.0 MB", "250.5 MB", "the job")
    shared = violation({**at, "type": "cpu", "limit": 80, "actual": 99.6, "attribution": "shared", "metadata": {"is_default": True}})
    assert shared[1:] == ("cpu", "80 %", "100 %", "its worker; nobody set this limit")
    assert formats.amount("timeout", 90) == "1 m 30 s"
    assert formats.amount("file_descriptors", 2048) == "2,048"
    assert formats.amount("disk", None) == formats.NOTHING
    assert len(check(a_check("healthy"))) == len(CHECK_COLUMNS)
