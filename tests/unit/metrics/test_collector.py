"""Rows in, samples out."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry

from dramatiq_chaperone.circuits import STATES
from dramatiq_chaperone.metrics.collector import Growth, Reading, StoreCollector, families
from dramatiq_chaperone.metrics.names import SERIES
from dramatiq_chaperone.store.readings import Totals

AT = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
LABELS = {"queue": "default", "actor": "work"}


def registry(totals: Totals | None = None, **facts: Any) -> CollectorRegistry:
    found = CollectorRegistry()
    found.register(StoreCollector(lambda: Reading(totals=totals, **facts)))
    return found


def running(actor: str, **changed: Any) -> dict[str, Any]:
    row = {"queue": "default", "actor_name": actor, "started_at": AT, "memory_peak": None, "memory_exact": None, "limits": None}
    return {**row, **changed}


def worker(**changed: Any) -> dict[str, Any]:
    gauges = {"consumers_alive": 2, "open_files": 7, "running": 3, "journal_segments": 3}
    row = {"worker_id": "w1", "host": "h", "threads": 4, "rss": 100, "cpu": 50.0, "gauges": gauges, "last_heartbeat_at": AT}
    row["started_at"] = AT
    return {**row, **changed}


def depth(**changed: Any) -> dict[str, Any]:
    row = {"queue": "default", "broker": "b1", "ready": 3, "delayed": 2, "dead": 1, "oldest_at": AT, "paused": False, "read_at": AT}
    return {**row, **changed}


def test_a_counter_is_served_as_it_stands() -> None:
    totals = Totals(counters=[("chaperone_jobs_total", {**LABELS, "outcome": "completed"}, 5.0)])
    assert registry(totals).get_sample_value("chaperone_jobs_total", {**LABELS, "outcome": "completed"}) == 5


def test_what_has_not_happened_yet_is_zero_for_what_is_known() -> None:
    """Else the first failure would be none, for Prometheus: a series that begins with 1 has not grown."""
    found = registry(
        Totals(counters=[("chaperone_enqueued_total", LABELS, 5.0), ("chaperone_jobs_total", {**LABELS, "outcome": "failed"}, 2.0)])
    )
    assert found.get_sample_value("chaperone_jobs_total", {**LABELS, "outcome": "completed"}) == 0
    assert found.get_sample_value("chaperone_jobs_total", {**LABELS, "outcome": "failed"}) == 2
    assert found.get_sample_value("chaperone_dead_letters_total", {**LABELS, "reason": "poison"}) == 0
    assert found.get_sample_value("chaperone_dead_letters_total", {**LABELS, "reason": "age"}) is None
    assert found.get_sample_value("chaperone_workers_lost_total", {"cause": "SIGKILL"}) == 0
    services = registry(Totals(breakers=[("mail", "closed", "auto")]))
    assert services.get_sample_value("chaperone_circuit_breaker_transitions_total", {"service": "mail", "state": "open"}) == 0


def test_the_highest_memory_of_an_actor_is_a_gauge() -> None:
    totals = Totals(counters=[("chaperone_memory_peak_bytes", LABELS, 3000.0)])
    assert registry(totals).get_sample_value("chaperone_memory_peak_bytes", LABELS) == 3000


def test_circuit_breakers() -> None:
    calls = ("chaperone_circuit_breaker_calls_total", {"service": "mail", "result": "refused"}, 4.0)
    found = registry(Totals(counters=[calls], breakers=[("mail", "open", "auto")]))
    assert found.get_sample_value(*calls[:2]) == 4
    states = {state: found.get_sample_value("chaperone_circuit_breaker_state", {"service": "mail", "state": state}) for state in STATES}
    assert states == {"closed": 0, "open": 1, "half_open": 0}
    assert found.get_sample_value("chaperone_circuit_breaker_mode", {"service": "mail", "mode": "auto"}) == 1


def test_jobs_that_were_put_off_are_told_by_what_they_wait_for() -> None:
    states = [("mail", "open", "auto"), ("bank", "closed", "auto")]
    found = registry(Totals(breakers=states, waiting={"waiting for mail": 4, "less than 9 MB are free on /": 2, "another reason": 1}))
    waiting = {service: found.get_sample_value("chaperone_circuit_breaker_jobs_waiting", {"service": service}) for service, _, _ in states}
    assert waiting == {"mail": 4, "bank": 0}
    assert found.get_sample_value("chaperone_jobs_waiting_for_disk") == 3


def test_a_histogram_adds_the_smaller_buckets_up() -> None:
    name = "chaperone_run_duration_seconds"
    rows = [(f"{name}_bucket", {**LABELS, "le": bound}, number) for bound, number in (("0.01", 2.0), ("1", 3.0), ("+Inf", 1.0))]
    found = registry(Totals(counters=[*rows, (f"{name}_sum", LABELS, 4.5), (f"{name}_count", LABELS, 6.0)]))

    def bucket(bound: str) -> float | None:
        return found.get_sample_value(f"{name}_bucket", {**LABELS, "le": bound})

    assert [bucket(bound) for bound in ("0.005", "0.01", "0.5", "1", "3600", "+Inf")] == [0, 2, 2, 5, 5, 6]
    assert found.get_sample_value(f"{name}_sum", LABELS) == 4.5
    assert found.get_sample_value(f"{name}_count", LABELS) == 6


def test_jobs_by_queue_and_the_oldest_start() -> None:
    later = AT.replace(hour=13)
    totals = Totals(
        queues={"default": {"pending": 4, "running": 2, "stalled": 1}},
        running=[
            running("a", started_at=later, memory_peak=9),
            running("a", started_at=later, memory_peak=7, limits={"timeout": 60}),
            running("b", started_at=AT),
        ],
    )
    found = registry(totals)
    queue = {"queue": "default"}
    assert found.get_sample_value("chaperone_jobs_pending", queue) == 4
    assert found.get_sample_value("chaperone_jobs_running", queue) == 3
    assert found.get_sample_value("chaperone_jobs_stalled", queue) == 1
    assert found.get_sample_value("chaperone_oldest_start_timestamp_seconds", queue) == AT.timestamp()
    assert found.get_sample_value("chaperone_running_memory_peak_bytes", {"queue": "default", "actor": "a"}) == 9


def test_the_share_of_its_memory_limit_is_that_of_the_job_which_is_nearest_to_it() -> None:
    limits = {"memory_limit": 100}
    rows = [
        running("a", memory_exact=90_000_000, limits=limits),
        running("a", memory_exact=95_000_000, limits={"memory_limit": 1000}),
        running("b", memory_exact=90_000_000),
        running("c", limits=limits),
        running("d", memory_exact=90_000_000, limits={"memory_limit": 0}),
    ]
    found = registry(Totals(running=rows))
    shares = {name: found.get_sample_value("chaperone_running_memory_limit_ratio", {"queue": "default", "actor": name}) for name in "abcd"}
    assert shares == {"a": 0.9, "b": None, "c": None, "d": None}


def test_who_holds_the_monitor_s_lease() -> None:
    name = "chaperone_monitor_lease_expiry_timestamp_seconds"
    assert registry(Totals(monitor=("web-1-4711-0a1b2c3d", 1000.0))).get_sample_value(name, {"host": "web-1"}) == 1000
    assert name not in {family.name for family in registry(Totals()).collect() if family.samples}


def test_workers_of_a_queue_and_losses_of_a_host() -> None:
    found = registry(Totals(queue_workers={"default": 3}, losses={"web1": AT}))
    assert found.get_sample_value("chaperone_queue_workers", {"queue": "default"}) == 3
    assert found.get_sample_value("chaperone_worker_last_loss_timestamp_seconds", {"host": "web1"}) == AT.timestamp()


def test_what_was_read_and_what_that_took() -> None:
    found = registry(read_at=1000.0, read_seconds=0.5, memory_bytes=7, cpu_seconds=2.5)
    names = ("read_timestamp_seconds", "read_duration_seconds", "process_memory_bytes", "process_cpu_seconds_total")
    assert [found.get_sample_value(f"chaperone_{name}") for name in names] == [1000, 0.5, 7, 2.5]
    assert registry().get_sample_value("chaperone_read_timestamp_seconds") is None


def test_a_broker_was_read_when_its_queue_that_was_read_last_was() -> None:
    found = registry(Totals(depths=[depth(), depth(queue="other", read_at=AT.replace(hour=13))]))
    assert found.get_sample_value("chaperone_broker_read_timestamp_seconds", {"broker": "b1"}) == AT.replace(hour=13).timestamp()


def test_a_queue_on_two_brokers_is_added_up() -> None:
    found = registry(Totals(depths=[depth(), depth(broker="b2", ready=4, paused=True, oldest_at=AT.replace(hour=11))]))
    queue = {"queue": "default"}
    assert found.get_sample_value("chaperone_queue_ready", queue) == 7
    assert found.get_sample_value("chaperone_queue_paused", queue) == 1
    assert found.get_sample_value("chaperone_queue_oldest_timestamp_seconds", queue) == AT.replace(hour=11).timestamp()


def test_the_oldest_message_is_that_of_the_store_where_the_broker_cannot_tell() -> None:
    totals = Totals(depths=[depth(oldest_at=None), depth(queue="empty", ready=0, oldest_at=None)], oldest={"default": AT, "empty": AT})
    found = registry(totals)
    assert found.get_sample_value("chaperone_queue_oldest_timestamp_seconds", {"queue": "default"}) == AT.timestamp()
    assert found.get_sample_value("chaperone_queue_oldest_timestamp_seconds", {"queue": "empty"}) is None


def test_living_workers_are_added_up_by_host() -> None:
    found = registry(
        workers=[
            worker(),
            worker(worker_id="w2", started_at=AT.replace(hour=13), last_heartbeat_at=AT.replace(hour=11)),
            worker(host="other"),
        ]
    )
    assert found.get_sample_value("chaperone_worker_processes", {"host": "h"}) == 2
    assert found.get_sample_value("chaperone_worker_cpu_cores", {"host": "h"}) == 1.0
    assert found.get_sample_value("chaperone_worker_jobs", {"host": "h"}) == 6
    assert found.get_sample_value("chaperone_worker_newest_start_timestamp_seconds", {"host": "h"}) == AT.replace(hour=13).timestamp()
    assert found.get_sample_value("chaperone_worker_consumers", {"host": "h"}) == 4
    assert found.get_sample_value("chaperone_journal_backlog_bytes", {"host": "h"}) == 6 << 20
    assert found.get_sample_value("chaperone_worker_oldest_beat_timestamp_seconds", {"host": "h"}) == AT.replace(hour=11).timestamp()


def test_only_a_process_that_writes_has_a_backlog() -> None:
    assert registry(writer_backlog_bytes=4096).get_sample_value("chaperone_writer_backlog_bytes") == 4096
    assert registry().get_sample_value("chaperone_writer_backlog_bytes") is None


def test_a_worker_that_has_not_beaten_yet() -> None:
    found = registry(workers=[worker(gauges=None, rss=None, cpu=None, threads=None, started_at=None, last_heartbeat_at=None)])
    assert found.get_sample_value("chaperone_worker_processes", {"host": "h"}) == 1
    assert found.get_sample_value("chaperone_worker_memory_bytes", {"host": "h"}) is None


def test_whoever_does_not_lead_serves_no_totals() -> None:
    found = registry(is_up=True)
    assert found.get_sample_value("chaperone_exporter_leader") == 0
    assert found.get_sample_value("chaperone_up") == 1
    assert "chaperone_jobs" not in {family.name for family in found.collect()}


def test_the_table_names_every_family_and_no_other() -> None:
    served = {(family.name, family.type) for family in families(Reading(totals=Totals()))}
    assert served == {(each.name.removesuffix("_total"), each.type) for each in SERIES}


def test_what_ended_processes_counted_stays_in_the_sum() -> None:
    growth = Growth()
    growth.add({"w1": {"sampler": 2}, "w2": {"sampler": 1}})
    growth.add({"w2": {"sampler": 4, "writer": 1}})
    growth.add({"w2": {"sampler": 4, "writer": 1}, "w3": {"writer": 1}})
    assert growth.total == {"sampler": 6, "writer": 2}
