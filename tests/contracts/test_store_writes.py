"""What a slice makes of a job's row, on every database."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from dramatiq_chaperone import records
from dramatiq_chaperone.events import JobStuck
from dramatiq_chaperone.store import Store, counters, open_store, queries, stalls
from dramatiq_chaperone.store.times import aware
from tests.contracts.conftest import NOW, Process, StoreSettings, booted, ended, enqueued, job, started, totals


def test_life_of_a_job(store: Store) -> None:
    producer, worker = Process(store, "web-1", "producer"), Process(store)
    producer.writes(enqueued(tenant="acme", parent_job_id="j0"))
    assert job(store)["status"] == "pending"
    worker.writes(booted(), started(at=NOW + 1, timeout_at=NOW + 60, limits='{"memory": 5}'))
    row = job(store)
    assert (row["status"], row["attempt"], row["worker_id"], row["broker"]) == ("running", 1, "host-1-aaaa", "RedisBroker")
    sample = (records.SAMPLED, NOW + 2, "j1", "r1", 500, 900, "exact", 12.5, 0.1, True, (1, 2, 0.5, 1.5))
    beat = (records.HEARTBEAT, NOW + 3, "j1", "r1", "hb1", "progress", '{"step": 2}', 2.0, 8.0, "load", True)
    worker.writes(sample, beat)
    worker.writes(ended(at=NOW + 4, started_at=NOW + 1))
    detail = queries.job_detail(store, "j1")
    assert detail is not None
    assert detail["status"] == "completed"
    assert detail["payload"] == {"args": [1], "kwargs": {}, "options": {}}
    assert detail["payload_complete"] is True
    assert (detail["progress"], detail["phase"], detail["metadata"]) == (25.0, "load", {"step": 2})
    assert (detail["memory_usage"], detail["memory_peak"], detail["cpu_seconds"]) == (500, 1000, 0.25)
    assert (detail["tenant"], detail["parent_job_id"], detail["limits"]) == ("acme", "j0", {"memory": 5})
    times = [detail[name].timestamp() - NOW for name in ("enqueued_at", "started_at", "sampled_at", "last_heartbeat_at", "completed_at")]
    assert times == pytest.approx([0, 1, 2, 3, 4])
    assert [beat["kind"] for beat in detail["heartbeats"]] == ["sample", "progress"]
    assert totals(store, counters.JOBS) == {"completed": 1}
    assert totals(store, counters.RUNS) == {"succeeded": 1}


def test_a_job_of_one_slice(store: Store) -> None:
    Process(store).writes(enqueued(), started(), ended())
    row = job(store)
    assert (row["status"], row["attempt"], row["deliveries"], row["crashes"], row["retries"]) == ("completed", 1, 1, 0, 0)


def test_retries_leave_an_error_each(store: Store) -> None:
    worker = Process(store)
    worker.writes(enqueued(), started())
    again = enqueued(retries=1, retry_at=NOW + 15, eta=NOW + 15, payload=None)
    worker.writes(again, ended(outcome="failed", status=None))
    row = job(store)
    assert (row["status"], row["retries"], row["attempt"]) == ("pending", 1, 1)
    assert aware(row["retry_at"]).timestamp() == NOW + 15  # type: ignore[union-attr]
    worker.writes(started(run="r2", retries=1))
    assert job(store)["retry_at"] is None
    worker.writes(ended(run="r2", retries=1, outcome="failed", status="failed"))
    row = queries.job_detail(store, "j1")
    assert row is not None
    assert (row["status"], row["attempt"]) == ("failed", 2)
    assert [(error["run_id"], error["attempt"], error["outcome"]) for error in row["errors"]] == [("r1", 1, "failed"), ("r2", 2, "failed")]
    assert totals(store, counters.JOBS) == {"failed": 1}
    assert totals(store, counters.RUNS) == {"failed": 2}
    assert totals(store, counters.RETRIES) == {"": 1}


def test_attempts_of_one_slice(store: Store) -> None:
    Process(store).writes(
        enqueued(),
        started(),
        ended(outcome="failed", status=None),
        enqueued(retries=1),
        started(run="r2", retries=1),
        ended(run="r2", retries=1, outcome="failed", status=None),
        enqueued(retries=2),
        started(run="r3", retries=2),
    )
    row = queries.job_detail(store, "j1")
    assert row is not None
    assert (row["status"], row["attempt"], row["run_id"]) == ("running", 3, "r3")
    assert [error["attempt"] for error in row["errors"]] == [1, 2]


def test_crash_and_redelivery(store: Store) -> None:
    first, second = Process(store, "host-1"), Process(store, "host-2")
    first.writes(booted(), enqueued(), started())
    assert first.dies() == ["j1"]
    row = job(store)
    assert (row["status"], row["crashes"]) == ("lost", 1)
    second.writes(started(run="r2"))
    row = job(store)
    assert (row["status"], row["run_id"], row["attempt"], row["worker_id"]) == ("running", "r2", 2, "host-2")
    second.writes(ended(run="r2"))
    detail = queries.job_detail(store, "j1")
    assert detail is not None
    assert detail["status"] == "completed"
    assert [(error["outcome"], error["exit_cause"], error["attempt"]) for error in detail["errors"]] == [("lost", "SIGKILL", 1)]
    assert [event["name"] for event in detail["events"]] == ["JobLost"]
    assert totals(store, counters.RUNS) == {"lost": 1, "succeeded": 1}


def test_a_loss_counts_once(store: Store) -> None:
    worker = Process(store)
    worker.writes(booted(), enqueued(), started(), started("j2", "r2"), ended("j2", "r2"))
    assert worker.dies() == ["j1"]
    assert worker.dies() == ["j1"]
    assert job(store)["crashes"] == 1
    assert job(store, "j2")["status"] == "completed"
    assert totals(store, counters.RUNS) == {"lost": 1, "succeeded": 1}
    assert sorted(event["name"] for event in queries.list_events(store)) == ["JobLost", "WorkerCrashed"]
    assert queries.list_workers(store)[0]["exit_code"] == -9


def test_a_worker_that_stopped_is_not_lost(store: Store) -> None:
    worker = Process(store)
    worker.writes(booted(), enqueued(), started())
    worker.writes(ended(), (records.WORKER_STOPPED, NOW + 5))
    assert worker.dies() == []
    assert queries.list_workers(store)[0]["status"] == "stopped"


def test_the_redelivery_is_known_before_the_crash(store: Store) -> None:
    first, second = Process(store, "host-1"), Process(store, "host-2")
    first.writes(booted(), enqueued(), started())
    second.writes(started(run="r2"))
    assert first.dies() == ["j1"]
    row = job(store)
    assert (row["status"], row["run_id"], row["crashes"]) == ("running", "r2", 1)


def test_the_start_of_a_crashed_run_comes_last(store: Store) -> None:
    first, second = Process(store, "host-1"), Process(store, "host-2")
    second.writes(enqueued(), started(run="r2"))
    first.writes(booted(), started())
    assert first.dies() == ["j1"]
    row = job(store)
    assert (row["status"], row["run_id"], row["worker_id"], row["crashes"], row["attempt"]) == ("running", "r2", "host-2", 1, 2)


def test_zombie_finish_wins_and_is_told(store: Store) -> None:
    zombie, second = Process(store, "host-1"), Process(store, "host-2")
    zombie.writes(enqueued(), started())
    second.writes(started(run="r2"))
    zombie.writes(ended())
    assert job(store)["status"] == "completed"
    second.writes(ended(run="r2"))
    assert job(store)["status"] == "completed"
    assert [event["name"] for event in queries.list_events(store)] == ["JobRanTwice"]
    assert totals(store, counters.JOBS) == {"completed": 1}
    assert totals(store, counters.RUNS) == {"succeeded": 2}
    assert store.rows("SELECT run_id FROM {open_runs}") == []


@pytest.mark.parametrize(
    "meanwhile",
    [
        [started(run="r2")],
        [started(run="r2"), ended(run="r2", outcome="failed", status=None)],
        [started(run="r2"), ended(run="r2", outcome="failed", status=None), started(run="r3", retries=1)],
        [started(run="r2"), ended(run="r2", outcome="failed", status="failed")],
    ],
    ids=["runs", "will be retried", "is retried", "has failed"],
)
@pytest.mark.parametrize("last", [ended(outcome="failed", status="lost"), ended()], ids=["fails", "succeeds"])
def test_a_zombie_is_told_however_both_end(store: Store, meanwhile: list[Any], last: Any) -> None:
    zombie, second = Process(store, "host-1"), Process(store, "host-2")
    zombie.writes(enqueued(), started())
    second.writes(*meanwhile)
    assert queries.list_events(store) == []
    zombie.writes(last)
    assert [event["name"] for event in queries.list_events(store)] == ["JobRanTwice"]


@pytest.mark.parametrize("last", [ended(outcome="failed", status="lost"), ended()], ids=["fails", "succeeds"])
@pytest.mark.parametrize("first", [[enqueued(), started()], [enqueued()]], ids=["slices", "slice"])
def test_a_zombie_whose_end_is_on_record_before_the_start_of_the_other_is_told(store: Store, first: list[Any], last: Any) -> None:
    zombie, second = Process(store, "host-1"), Process(store, "host-2")
    zombie.writes(*first)
    zombie.writes(*([last] if len(first) == 2 else [started(), last]))
    assert queries.list_events(store) == []
    second.writes(started(run="r2"), ended(run="r2"))
    assert [event["name"] for event in queries.list_events(store)] == ["JobRanTwice"]
    assert job(store)["status"] == "completed"


def test_both_runs_are_named(store: Store) -> None:
    zombie, second = Process(store, "host-1"), Process(store, "host-2")
    zombie.writes(enqueued(), started(), enqueued("j2"), started("j2", "s1"), enqueued("j3"), started("j3", "t1"))
    second.writes(started(run="r2"))
    zombie.writes(ended(), ended("j2", "s1", outcome="failed", status="lost"), ended("j3", "t1"))
    second.writes(ended(run="r2"), started("j2", "s2"), started("j3", "t2"))
    runs = {event["job_id"]: {event["data"]["run_id"], event["data"]["other_run_id"]} for event in queries.list_events(store)}
    assert runs == {"j1": {"r1", "r2"}, "j2": {"s1", "s2"}, "j3": {"t1", "t2"}}


def test_two_copies_of_a_retry_are_told_though_both_fail(store: Store) -> None:
    first, second = Process(store, "host-1"), Process(store, "host-2")
    first.writes(enqueued(), started(), ended(outcome="failed", status=None))
    second.writes(started(run="r2", retries=1))
    first.writes(started(run="r3", retries=1))
    assert queries.list_events(store) == []
    second.writes(ended(run="r2", retries=1, outcome="failed", status="failed"))
    first.writes(ended(run="r3", retries=1, outcome="failed", status="failed"))
    assert [event["name"] for event in queries.list_events(store)] == ["JobRanTwice"]


def test_what_had_failed_and_is_delivered_again_is_told(store: Store) -> None:
    first, second = Process(store, "host-1"), Process(store, "host-2")
    first.writes(enqueued(), started(), ended(outcome="failed", status=None))
    second.writes(started(run="r2"), ended(run="r2", outcome="failed", status=None))
    assert [event["name"] for event in queries.list_events(store)] == ["JobRanTwice"]


def test_what_is_in_order_is_not_told(store: Store) -> None:
    first, second = Process(store, "host-1"), Process(store, "host-2")
    first.writes(booted(), enqueued(), started(), started("j2", "s1"))
    second.writes(started("j2", "s2", retries=1))  # a retry, reported before the failure that it follows
    first.writes(ended("j2", "s1", outcome="failed", status=None))
    second.writes(ended("j2", "s2", retries=1))
    assert first.dies() == ["j1"]
    second.writes(started(run="r2"))  # in the place of one that was lost
    second.writes(ended(run="r2"))
    assert [event["name"] for event in queries.list_events(store) if event["name"] == "JobRanTwice"] == []


def test_a_slice_counts_once(store: Store) -> None:
    worker = Process(store)
    worker.writes(enqueued(), started())
    slice_ = [ended(), enqueued("j2")]
    assert store.apply(worker.origin, slice_, start=10, end=20).is_new
    assert not store.apply(worker.origin, slice_, start=10, end=20).is_new
    assert not store.apply(worker.origin, slice_, start=5, end=30).is_new
    assert store.position(worker.origin.worker_id) == 20
    assert totals(store, counters.RUNS) == {"succeeded": 1}


def test_writers_that_race(make_store: Callable[..., Store], make_settings: Callable[..., StoreSettings]) -> None:
    store = make_store(table_prefix="race_")
    barrier, errors = threading.Barrier(4), []

    def write(number: int) -> None:
        mine = open_store(make_settings(table_prefix="race_"), create=True)
        try:
            worker = Process(mine, f"host-{number}")
            for turn in range(5):
                barrier.wait(30)
                runs = [(f"j{n}", f"r{number}-{turn}-{n}") for n in range(turn * 20, turn * 20 + 20)]
                worker.writes(*(started(j, r) for j, r in runs), *(ended(j, r) for j, r in runs))
        except BaseException as e:
            errors.append(e)
            barrier.abort()
        finally:
            mine.close()

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert store.rows("SELECT COUNT(*), SUM(attempt) FROM {supervised_jobs} WHERE status = 'completed'") == [(100, 400)]
    assert totals(store, counters.JOBS) == {"completed": 100}
    assert totals(store, counters.RUNS) == {"succeeded": 400}
    assert len(queries.list_events(store, limit=1000)) == 100  # JobRanTwice, once for each


def test_two_of_the_same_flush_race(make_store: Callable[..., Store], make_settings: Callable[..., StoreSettings]) -> None:
    store = make_store(table_prefix="twice_")
    barrier, found, lock = threading.Barrier(2), [], threading.Lock()

    def write() -> None:
        mine = open_store(make_settings(table_prefix="twice_"), create=True)
        barrier.wait(30)
        applied = Process(mine).writes(*(entry for n in range(50) for entry in (started(f"j{n}", f"r{n}"), ended(f"j{n}", f"r{n}"))))
        with lock:
            found.append(applied.is_new)
        mine.close()

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(found) == [False, True]
    assert totals(store, counters.RUNS) == {"succeeded": 50}


AWKWARD = ["nul\0inside", "🦄 emoji", "x" * 500, "half \ud800 surrogate", "", "quote ' \" ` \\ %s {} ?"]


@pytest.mark.parametrize("text", AWKWARD, ids=["nul", "emoji", "long", "surrogate", "empty", "quotes"])
def test_awkward_texts(store: Store, text: str) -> None:
    name = text or "empty"
    payload = json.dumps({"args": [text], "kwargs": {text: text}})
    entries = [
        enqueued(f"id-{name}", actor=text, queue=text, payload=payload, tenant=text),
        started(f"id-{name}", actor=text, queue=text, thread=text, limits=payload),
        (records.HEARTBEAT, NOW, f"id-{name}", "r1", "h", "manual", payload, None, None, text, True),
        ended(f"id-{name}", actor=text, queue=text, outcome="failed", status="failed", error=(text, text, text, payload)),
        (records.DEAD, NOW, f"id-{name}", 0, text, text, NOW, text, text, text, text, payload, True),
        (records.EVENT, NOW, "JobStuck", f"id-{name}", None, text, payload),
        enqueued("plain"),
    ]
    applied = Process(store).writes(*entries)
    assert (applied.jobs, applied.refused) == (2, 0)
    (job_id,) = store.rows("SELECT job_id FROM {supervised_jobs} WHERE job_id <> 'plain'")[0]
    detail = queries.job_detail(store, job_id)
    assert detail is not None
    assert (len(detail["errors"]), len(detail["heartbeats"]), len(detail["dead_letters"]), len(detail["events"])) == (1, 1, 1, 1)
    if "🦄" in text:
        assert (detail["actor_name"], detail["payload"]["args"], detail["errors"][0]["message"]) == (text, [text], text)
    if len(text) == 500:
        assert (len(detail["actor_name"]), detail["actor_name"][-1]) == (255, "…")


BROKEN: list[tuple[Any, ...]] = [
    (records.ENQUEUED, NOW),
    (99, NOW),
    (records.STARTED, "x", None, None),
    enqueued("bad-number", priority=2**80),
    enqueued("bad-time", eta=float("nan"), enqueued_at=1e300),
    started("bad-limits", limits="{not json"),
    ended("bad-duration", duration_s=float("inf"), cpu_seconds=float("nan")),
]


@pytest.mark.parametrize("entry", BROKEN, ids=range(len(BROKEN)))
def test_a_broken_entry_does_not_hold_up_the_others(store: Store, entry: tuple[Any, ...]) -> None:
    applied = Process(store).writes(enqueued("before"), entry, enqueued("after"))
    assert applied.is_new
    assert {job_id for (job_id,) in store.rows("SELECT job_id FROM {supervised_jobs}")} >= {"before", "after"}


def test_what_was_dropped_is_counted(store: Store) -> None:
    Process(store).writes(
        (records.DROPPED, NOW, "sample", 7), (records.COUNTED, NOW, "default", "work", "succeeded", "completed", 40, 20.0), (99, NOW)
    )
    assert totals(store, counters.DROPPED) == {"sample": 7}
    assert totals(store, counters.JOBS) == {"completed": 40}
    assert totals(store, counters.RUNS) == {"succeeded": 40}
    assert totals(store, counters.UNWRITABLE) == {"journal": 1}


def test_a_worker_beats(store: Store) -> None:
    worker = Process(store)
    worker.writes(booted())
    worker.writes((records.BEAT, NOW + 5, 1, 1000, 2.5, 7, 1, None), (records.BEAT, NOW + 10, 2, 2000, 3.5, 9, 2, '{"open_files": 9}'))
    row = queries.list_workers(store)[0]
    assert (row["status"], row["beat"], row["rss"], row["jobs_processed"], row["jobs_failed"]) == ("running", 2, 2000, 9, 2)
    assert row["last_heartbeat_at"].timestamp() == NOW + 10
    assert row["broker"] == "RedisBroker"


def test_skipped_and_dead(store: Store) -> None:
    worker = Process(store)
    worker.writes(enqueued(), (records.SKIPPED, NOW, "j1", 0, "work", "default", NOW))
    assert job(store)["status"] == "skipped"
    dead = (records.DEAD, NOW, "j2", 0, "gone", "default", NOW, "unknown actor", None, None, None, '{"args": []}', True)
    worker.writes(dead)
    assert job(store, "j2")["status"] == "failed"
    letter = queries.list_dead_letters(store)[0]
    assert (letter["job_id"], letter["reason"], letter["payload"]) == ("j2", "unknown actor", {"args": []})
    assert totals(store, counters.JOBS) == {"skipped": 1, "failed": 1}


def test_the_highest_memory_of_an_actor_is_kept_whoever_reports_it(store: Store) -> None:
    one, two = Process(store, "one"), Process(store, "two")
    one.writes(started("a", "ra"), ended("a", "ra", memory_peak=2000), started("b", "rb"), ended("b", "rb", memory_peak=None))
    two.writes(started("c", "rc"), ended("c", "rc", memory_peak=3000), started("d", "rd", actor="other"), ended("d", "rd", actor="other"))
    one.writes(started("e", "re"), ended("e", "re", memory_peak=1000))
    peaks = {labels["actor"]: value for _, labels, value in queries.counters(store, name=counters.MEMORY_PEAK)}
    assert peaks == {"work": 3000, "other": 1000}

    sample = (records.SAMPLED, NOW, "f", "rf", 4000, 5000, "exact", 1.0, 1.0, False, None)
    one.writes(started("f", "rf"), sample)
    one.dies()
    peaks = {labels["actor"]: value for _, labels, value in queries.counters(store, name=counters.MEMORY_PEAK)}
    assert peaks == {"work": 5000, "other": 1000}, "of a run that was lost, too"


AFTER = datetime.fromtimestamp(NOW + 60, UTC)


class TestStuck:
    def stuck(self, missed: int, *, is_stuck: bool, job: str = "j1", run: str = "r1", at: float = NOW + 60) -> tuple[Any, ...]:
        return tuple(records.StuckSeen(records.STUCK, at, job, run, missed, is_stuck))

    def test_it_stalls_and_moves_again(self, store: Store) -> None:
        worker = Process(store)
        worker.writes(enqueued(), started(heartbeat_interval=10.0))
        worker.writes(self.stuck(1, is_stuck=False))
        assert (job(store)["status"], job(store)["missed_heartbeats"]) == ("running", 1)
        worker.writes(self.stuck(2, is_stuck=False), self.stuck(3, is_stuck=True))
        assert (job(store)["status"], job(store)["missed_heartbeats"]) == ("stalled", 3)
        worker.writes((records.SAMPLED, NOW + 61, "j1", "r1", 500, 900, "exact", 12.5, 0.1, False, None))
        assert job(store)["status"] == "stalled", "a sample is no sign of life of the job"
        worker.writes(self.stuck(0, is_stuck=False))
        assert (job(store)["status"], job(store)["missed_heartbeats"]) == ("running", 0)
        worker.writes(self.stuck(3, is_stuck=True))
        assert job(store)["status"] == "stalled"
        worker.writes(ended(at=NOW + 90))
        assert job(store)["status"] == "completed"

    def test_of_a_retry(self, store: Store) -> None:
        worker = Process(store)
        worker.writes(enqueued(), started(), ended(outcome="failed", status=None), enqueued(retries=1), started(run="r2", retries=1))
        worker.writes(self.stuck(3, is_stuck=True, run="r2"))
        worker.writes((records.SAMPLED, NOW + 61, "j1", "r2", 500, 900, "exact", 12.5, 0.1, False, None))
        assert job(store)["status"] == "stalled"

    def test_the_end_wins_in_one_slice_and_in_any_order(self, store: Store) -> None:
        worker = Process(store)
        worker.writes(enqueued(), started(), self.stuck(3, is_stuck=True), ended())
        assert (job(store)["status"], job(store)["missed_heartbeats"]) == ("completed", 3)
        worker.writes(self.stuck(4, is_stuck=True))
        assert job(store)["status"] == "completed"

    def test_what_an_older_run_says_does_not_count(self, store: Store) -> None:
        first, second = Process(store, "host-1"), Process(store, "host-2")
        first.writes(booted(), enqueued(), started())
        second.writes(booted(), started(run="r2"))
        first.writes(self.stuck(3, is_stuck=True))
        assert (job(store)["status"], job(store)["run_id"], job(store)["missed_heartbeats"]) == ("running", "r2", None)

    def test_a_new_run_begins_without_it(self, store: Store) -> None:
        worker = Process(store)
        worker.writes(enqueued(), started(), self.stuck(3, is_stuck=True))
        worker.writes(ended(outcome="interrupted", status=None), enqueued(retries=1))
        assert job(store)["status"] == "pending"
        worker.writes(started(run="r2", retries=1))
        assert (job(store)["status"], job(store)["missed_heartbeats"]) == ("running", None)

    def test_a_stalled_job_is_lost_with_its_worker(self, store: Store) -> None:
        worker = Process(store)
        worker.writes(booted(), enqueued(), started(), self.stuck(3, is_stuck=True))
        assert worker.dies() == ["j1"]
        assert job(store)["status"] == "lost"

    def test_what_a_watcher_saw(self, store: Store) -> None:
        worker = Process(store)
        worker.writes(booted(), enqueued(), started(), enqueued("j2"), started("j2", "r2"), enqueued("j3"), started("j3", "r3"))
        worker.writes(ended("j3", "r3"))
        assert [(each["job_id"], each["thread"]) for each in queries.running_on(store, "host-1-aaaa")] == [("j1", "T-1"), ("j2", "T-1")]
        facts: dict[str, Any] = {"job_id": "j1", "worker_id": "host-1-aaaa", "run_id": "r1", "diagnosis": "the GIL is held", "cause": "gil"}
        event = JobStuck(**facts, stuck_duration=4.0)
        store.transact(lambda: stalls.write(store, [event], NOW, stuck=[("j1", "r1", 4), ("j3", "r3", 4)]))
        assert [(job(store, each)["status"], job(store, each)["missed_heartbeats"]) for each in ("j1", "j2", "j3")] == [
            ("stalled", 4), ("running", None), ("completed", 4),
        ]  # fmt: skip
        (found,) = queries.stuck_jobs(store, now=AFTER)
        assert (found["job_id"], found["diagnosis"], found["cause"]) == ("j1", "the GIL is held", "gil")
        store.transact(lambda: stalls.write(store, [], NOW, moving=[("j1", "r1"), ("j2", "r9")]))
        assert (job(store)["status"], job(store)["missed_heartbeats"]) == ("running", 0)
        assert queries.stuck_jobs(store, now=AFTER) == []

    def test_who_owes_heartbeats_and_is_quiet(self, store: Store) -> None:
        worker = Process(store)
        beat = (records.HEARTBEAT, NOW + 50, "j2", "r2", "hb1", "manual", None, None, None, None, True)
        worker.writes(started(heartbeat_interval=10.0), started("j2", "r2"), beat, started("j3", "r3"))
        quiet = {s: [each["job_id"] for each in queries.stuck_jobs(store, now=AFTER, threshold_s=s)] for s in (5, 30, 100)}
        assert quiet == {5: ["j1", "j2"], 30: ["j1"], 100: []}
