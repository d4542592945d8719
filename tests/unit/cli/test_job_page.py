from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from dramatiq_chaperone.cli.job_page import (
    JOB_COLUMNS,
    RUN_COLUMNS,
    curves,
    diagnosis,
    facts,
    job_row,
    runs,
    state_of,
    timeline,
    took_s,
    waited_s,
)

NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
JOB_ID = "4f9e2b61-0d0c-4f0e-9d51-3a0c6f3a2b11"
COLUMNS = [
    "job_id",
    "actor_name",
    "queue",
    "broker",
    "status",
    "attempt",
    "retries",
    "deliveries",
    "crashes",
    "priority",
    "enqueued_at",
    "created_at",
    "updated_at",
    "eta",
    "waiting_for",
    "started_at",
    "ended_at",
    "completed_at",
    "failed_at",
    "timeout_at",
    "retry_at",
    "last_heartbeat_at",
    "heartbeat_interval",
    "limits",
    "worker_id",
    "thread",
    "memory_usage",
    "memory_peak",
    "memory_attribution",
    "cpu_usage",
    "cpu_seconds",
    "progress",
    "progress_current",
    "progress_total",
    "phase",
    "metadata",
    "payload",
    "payload_complete",
    "initiator_type",
    "initiator_id",
    "parent_job_id",
    "tenant",
    "run_id",
]


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def a_job(**known: Any) -> dict[str, Any]:
    job = dict.fromkeys(COLUMNS) | {"job_id": JOB_ID, "actor_name": "import_orders", "queue": "default", "status": "pending", "attempt": 0}
    return job | {"created_at": NOON, "enqueued_at": NOON} | known


def an_error(**known: Any) -> dict[str, Any]:
    names = ("run_id", "attempt", "outcome", "worker_id", "started_at", "ended_at", "exit_cause", "exception", "message")
    return dict.fromkeys(names) | {"run_id": "1", "attempt": 1, "outcome": "failed", "started_at": at(1), "ended_at": at(3)} | known


def text_of(job: dict[str, Any], now: datetime) -> str:
    return "\n".join(f"{name}: {value}" for name, value in facts(job, now))


def test_a_row_has_a_cell_for_each_column() -> None:
    row = job_row(a_job(), at(5), is_short=True)

    assert len(row) == len(JOB_COLUMNS)
    assert row[0] == "4f9e2b61"
    assert job_row(a_job(), at(5), is_short=False)[0] == JOB_ID


def test_a_job_waits_from_when_it_is_due() -> None:
    assert waited_s(a_job(), at(5)) == 5
    assert waited_s(a_job(eta=at(60)), at(5)) == 0
    assert waited_s(a_job(status="completed", attempt=1, started_at=at(2)), at(100)) == 2
    assert waited_s(a_job(status="running", attempt=2, started_at=at(50)), at(100)) is None


def test_a_job_takes_until_now_while_it_runs() -> None:
    assert took_s(a_job(), at(5)) is None
    assert took_s(a_job(status="running", started_at=at(2)), at(5)) == 3
    assert took_s(a_job(status="completed", started_at=at(2), ended_at=at(4)), at(100)) == 2
    assert took_s(a_job(status="running", started_at=at(9)), at(5)) == 0, "a clock that is ahead"


def test_the_state_says_what_the_job_waits_for() -> None:
    assert state_of(a_job(), at(1)) == "pending"
    assert state_of(a_job(retry_at=at(20)), at(5)) == "pending: the next try is due in 15.0 s"
    assert state_of(a_job(eta=at(65)), at(5)) == "pending: due in 1 m 0 s"
    deferred = {"name": "JobDeferred", "created_at": at(1), "data": {"reason": "less than 9 MB are free on /"}}
    waiting = a_job(eta=at(30), retry_at=at(2), waiting_for="less than 9 MB are free on /")
    assert state_of(waiting, at(5)) == "pending: less than 9 MB are free on /; it is looked at again in 25.0 s"
    assert state_of(a_job(eta=at(30), waiting_for="less"), at(31)) == "pending"
    assert state_of(a_job(queue_paused_for="waiting for shop"), at(5)) == "pending: waiting for shop; its queue is paused"
    assert state_of(a_job(eta=at(30), retry_at=at(50), waiting_for="less"), at(40)) == "pending: the next try is due in 10.0 s"
    assert "put off: less than 9 MB are free on /" in [what for _, what in timeline(waiting, [], [], [deferred])]
    assert state_of(a_job(status="running", timeout_at=at(35)), at(5)) == "running; its timeout is in 30.0 s"
    assert "deliver it again" in state_of(a_job(status="lost"), at(5))


def test_the_page_leaves_out_what_is_not_known() -> None:
    assert [name for name, _ in facts(a_job(), at(5))] == ["Job", "Actor", "Queue", "Status", "Sent", "Runs", "Waited"]


def test_the_page_has_everything_that_is_known() -> None:
    job = a_job(
        status="running",
        attempt=2,
        retries=1,
        deliveries=3,
        crashes=1,
        started_at=at(2),
        priority=5,
        initiator_type="user",
        initiator_id="42",
        parent_job_id="p-1",
        payload='{"args": ["/srv/a.csv"], "kwargs": {"limit": 5}, "options": {}}',
        payload_complete=True,
        memory_usage=50_000_000,
        memory_peak=61_000_000,
        memory_attribution="shared",
        cpu_usage=97.0,
        cpu_seconds=12.5,
        progress=43.0,
        progress_current=43.0,
        progress_total=100.0,
        phase="import",
        last_heartbeat_at=at(8),
        heartbeat_interval=60.0,
        metadata={"rows": 7},
    )
    text = text_of(job, at(10))

    assert 'Arguments: "/srv/a.csv", limit=5' in text
    assert "Runs: 2, 3 deliveries, 1 crash" in text
    assert "By: user 42, job p-1" in text
    assert "43 %, 43 of 100, import" in text
    assert "Memory: 50.0 MB, peak 61.0 MB, of the process, shared with other jobs" in text
    assert "CPU: 97 % of a core, 12.5 s in all" in text
    assert "Heartbeat: 2.0 s ago, promised every 1 m 0 s" in text
    assert 'Data: {"rows": 7}' in text
    assert "Queue: default, priority 5" in text


def test_arguments_that_are_not_whole_say_so() -> None:
    text = text_of(a_job(payload={"args": [], "kwargs": {"password": "[redacted]"}}, payload_complete=False), at(1))

    assert 'Arguments: password="[redacted]"   (not complete: redacted or cut)' in text


def test_the_timeline_is_in_order_and_tells_each_run() -> None:
    job = a_job(status="completed", attempt=2, run_id="2", started_at=at(10), completed_at=at(12), worker_id="w-2")
    errors = [an_error(worker_id="w-1", exception="ValueError", message="no\nsuch row")]

    asked = {"means": "kill", "requested_by": "ann", "reason": "wrong file"}
    ignored = {"requested_by": "ann", "reason": "wrong file", "consequence": "its worker process is ended", "waited": 10.0}
    events = [
        {"created_at": at(11), "name": "JobStuck", "data": None},
        {"created_at": at(11.5), "name": "JobStopRequested", "data": asked},
        {"created_at": at(11.7), "name": "JobStopIgnored", "data": ignored},
    ]

    assert timeline(job, errors, [], events) == [
        (NOON, "sent"),
        (at(1), "run 1 began in w-1"),
        (at(3), "run 1 failed: ValueError: no such row"),
        (at(10), "run 2 began in w-2"),
        (at(11), "JobStuck"),
        (at(11.5), "JobStopRequested: kill, by ann, wrong file"),
        (at(11.7), "JobStopIgnored: by ann, wrong file, its worker process is ended"),
        (at(12), "completed"),
    ]


def test_a_job_that_failed_for_good_ends_in_the_dead_letters() -> None:
    job = a_job(status="failed", attempt=1, run_id="1", started_at=at(1), failed_at=at(3))
    errors = [an_error(outcome="lost", exit_cause="SIGKILL")]

    assert [what for _, what in timeline(job, errors, [{"failed_at": at(4), "reason": "retries exhausted"}], [])] == [
        "sent",
        "run 1 began",
        "run 1 lost: SIGKILL",
        "failed",
        "dead letter: retries exhausted",
    ]


def test_each_run_has_a_row() -> None:
    job = a_job(status="running", attempt=2, run_id="2", started_at=at(10), worker_id="w-2", cpu_seconds=1.5)
    error = an_error(exception="ValueError", message="no", cpu_seconds=None, memory_peak=None)
    rows = runs(job, [error], at(15))

    assert [(row[0], row[1], row[3], row[-1]) for row in rows] == [
        ("1", "failed", "2.0 s", "ValueError: no"),
        ("2", "running", "5.0 s", "–"),
    ]
    assert {len(row) for row in rows} == {len(RUN_COLUMNS)}
    assert len(runs(a_job(run_id="1", started_at=at(1)), [error], at(15))) == 1


def a_heartbeat(seconds: float, **known: Any) -> dict[str, Any]:
    names = ("memory_usage", "cpu_usage", "progress_current", "progress_total")
    return dict.fromkeys(names) | {"kind": "sample", "run_id": "1", "created_at": at(seconds)} | known


def test_curves_are_of_one_run_and_have_two_points_at_least() -> None:
    beats = [
        a_heartbeat(0, run_id="0", memory_usage=9),
        a_heartbeat(1, memory_usage=5, cpu_usage=50.0),
        a_heartbeat(2, memory_usage=7),
        a_heartbeat(3, kind="progress", progress_current=1.0, progress_total=4.0),
        a_heartbeat(4, kind="progress", progress_current=2.0, progress_total=4.0),
    ]
    found = {curve.title: [value for _, value in curve.points] for curve in curves(beats, "1")}

    assert found == {"Memory": [5, 7], "Progress": [25, 50]}


def test_the_diagnosis_is_the_last_one_of_the_latest_run() -> None:
    job = a_job(status="stalled", run_id="2", missed_heartbeats=3)
    events = [
        {"created_at": at(1), "name": "JobStuck", "data": {"run_id": "1", "diagnosis": "of old"}},
        {"created_at": at(2), "name": "JobStuck", "data": {"run_id": "2", "diagnosis": "blocked in f", "evidence": {"stack": ["in f"]}}},
        {"created_at": at(3), "name": "JobStuck", "data": {"run_id": "2"}},
        {"created_at": at(4), "name": "JobLost", "data": None},
    ]

    assert diagnosis(job, events) == (at(2), "blocked in f", ["in f"])
    assert diagnosis(job, events[:1]) is None
    assert state_of(job, at(5)) == "stalled: it has missed 3 heartbeats"
    assert (at(2), "JobStuck: blocked in f") in timeline(job, [], [], events)
