"""StoreCollector: what was read of the store, as Prometheus wants it.  A plain value; it needs no server and no database."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ..circuits import MODES, STATES, waiting_for
from ..host import OUT_OF_MEMORY, host_of
from ..limits import MB
from ..service import internal_errors
from ..store import breakers, counters
from ..store.counters import BOUNDS
from ..store.readings import Totals
from .names import ALERTS, BREAKERS, COUNTED, PROCESS, TOTALS, WORKERS, Series

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from datetime import datetime

    from ..store.queries import Row

_SEGMENT_BYTES: Final = 1 << 20

#: What is 0 before it happens first: Prometheus sees no growth in a series that begins with 1.
#: Values of the last label; so it is for what happens to actors, to services, and to the fleet.
AWAITED: Final = {
    counters.JOBS: ("completed", "failed"),
    counters.DEAD_LETTERS: ("retries exhausted", "poison"),
    counters.STUCK: ("spinning", "blocked", "deadlock", "gil", "idle"),
    counters.LOST: ("SIGKILL", "SIGSEGV", OUT_OF_MEMORY, "silent", "unknown"),
    counters.VIOLATIONS: ("memory", "cpu", "timeout"),
    counters.WORKERS_LOST: ("SIGKILL", "SIGSEGV", OUT_OF_MEMORY, "exit code", "silent", "unknown"),
    breakers.CALLS: ("succeeded", "failed", "refused"),
    breakers.TRANSITIONS: STATES,
}

#: Label values in the order of the series' labels, and the number.
Samples = dict[tuple[str, ...], float]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What an exporter knows.

    Attributes:
      is_up: whether the store answered just now; else all of it is from before.
      is_leader: whether this process holds the lease of the totals.
      totals: of the fleet; None where another serves them.
      workers: rows of the workers that live.
      alert_health: of the deliveries of alerts in the last hour; see :func:`.deliveries.health`.
      errors: errors of Chaperone itself, by component, since the exporter runs.
      sampler_cpu_seconds: what sampling took, likewise.
      read_at: when the store was read, Unix seconds; None: it never was.
      read_seconds: how long that took.
      memory_bytes: what this process takes.
      cpu_seconds: what it has used since it began.
      writer_backlog_bytes: what the writer of this process has yet to write; None: it has none.
    """

    is_up: bool = False
    is_leader: bool = False
    totals: Totals | None = None
    workers: list[Row] = field(default_factory=list)
    alert_health: Mapping[str, Any] | None = None
    errors: Mapping[str, float] = field(default_factory=dict)
    sampler_cpu_seconds: float = 0.0
    read_at: float | None = None
    read_seconds: float | None = None
    memory_bytes: int = 0
    cpu_seconds: float = 0.0
    writer_backlog_bytes: int | None = None


class Growth:
    """Adds up what each process counts by itself: the sum never falls when one of them ends."""

    def __init__(self) -> None:
        self.total: Counter[str] = Counter()
        self._seen: dict[str, dict[str, float]] = {}

    def add(self, current: Mapping[str, Mapping[str, float]]) -> None:
        """Take the present counts of all processes: process to name to number."""
        for process, counts in current.items():
            before = self._seen.get(process, {})
            for name, value in counts.items():
                self.total[name] += max(0, value - before.get(name, 0))  # type: ignore[assignment]  # a Counter adds floats too
        self._seen = {process: dict(counts) for process, counts in current.items()}


class StoreCollector(Collector):
    """A collector of prometheus_client.

    Parameters:
      read: gives the reading that is served; called once at each scrape, and must not hang.
    """

    def __init__(self, read: Callable[[], Reading]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """Every family that this process serves."""
        return families(self._read())


def families(reading: Reading) -> Iterator[Metric]:
    """The families of one reading."""
    if reading.totals is not None:
        yield from _totals(reading.totals)
    samples = _worker_samples(reading.workers)
    samples["chaperone_sampler_cpu_seconds_total"] = {(): reading.sampler_cpu_seconds}
    samples["chaperone_internal_errors_total"] = {(name,): value for name, value in sorted(reading.errors.items())}
    for series in WORKERS:
        yield _family(series, samples.get(series.name, {}))
    own = {
        "chaperone_up": reading.is_up,
        "chaperone_read_timestamp_seconds": reading.read_at,
        "chaperone_read_duration_seconds": reading.read_seconds,
        "chaperone_process_memory_bytes": reading.memory_bytes,
        "chaperone_process_cpu_seconds_total": reading.cpu_seconds,
        "chaperone_writer_backlog_bytes": reading.writer_backlog_bytes,
        "chaperone_exporter_leader": reading.is_leader,
    }
    for series in PROCESS:
        number = own[series.name]
        yield _family(series, {} if number is None else {(): float(number)})


def own_errors() -> dict[str, float]:
    """Errors of Chaperone in this process, by component."""
    return dict(internal_errors)


def _totals(totals: Totals) -> Iterator[Metric]:
    counted: dict[str, list[tuple[dict[str, str], float]]] = defaultdict(list)
    for name, labels, value in totals.counters:
        counted[name].append((labels, value))
    known: dict[tuple[str, ...], set[tuple[str, ...]]] = {
        ("queue", "actor"): {
            (labels["queue"], labels["actor"]) for name in (counters.ENQUEUED, counters.RUNS) for labels, _ in counted[name]
        },
        ("service",): {(service,) for service, _, _ in totals.breakers},
        (): {()},
    }
    gauges = _gauges(totals)
    for series in (*TOTALS, *BREAKERS, *ALERTS):
        if series.type == "histogram":
            yield _histogram(series, counted)
        elif series.source == COUNTED:
            samples: Samples = defaultdict(float)
            for labels, value in counted[series.name]:
                samples[tuple(labels.get(name, "") for name in series.labels)] += value
            for awaited in AWAITED.get(series.name, ()):
                for key in known[series.labels[:-1]]:
                    samples.setdefault((*key, awaited), 0.0)
            yield _family(series, samples)
        else:
            yield _family(series, gauges.get(series.name, {}))


def _gauges(totals: Totals) -> dict[str, Samples]:
    found: dict[str, Samples] = defaultdict(dict)
    for queue, counts in totals.queues.items():
        found["chaperone_jobs_pending"][queue,] = counts.get("pending", 0)
        found["chaperone_jobs_running"][queue,] = counts.get("running", 0) + counts.get("stalled", 0)
        found["chaperone_jobs_stalled"][queue,] = counts.get("stalled", 0)
        found["chaperone_jobs_lost"][queue,] = counts.get("lost", 0)
    _running(totals, found)
    found["chaperone_workers"] = {(status,): float(number) for status, number in totals.workers.items()}
    found["chaperone_queue_workers"] = {(queue,): float(number) for queue, number in totals.queue_workers.items()}
    found["chaperone_worker_last_loss_timestamp_seconds"] = {(host,): at.timestamp() for host, at in totals.losses.items()}
    if totals.monitor is not None:
        holder, expires_at = totals.monitor
        found["chaperone_monitor_lease_expiry_timestamp_seconds"][host_of(holder),] = expires_at
    _depths(totals, found)
    waiting = dict(totals.waiting)
    for service, state, mode in totals.breakers:
        found["chaperone_circuit_breaker_jobs_waiting"][service,] = waiting.pop(waiting_for(service), 0)
        found["chaperone_circuit_breaker_state"].update({(service, each): float(each == state) for each in STATES})
        found["chaperone_circuit_breaker_mode"].update({(service, each): float(each == mode) for each in MODES})
    found["chaperone_jobs_waiting_for_disk"] = {(): sum(waiting.values())}
    found["chaperone_alerts_firing"] = {(type_, severity): float(number) for type_, severity, number in totals.alerts}
    return found


def _running(totals: Totals, found: dict[str, Samples]) -> None:
    starts: dict[str, list[datetime]] = defaultdict(list)
    for row in totals.running:
        queue = row["queue"] or ""
        if row["started_at"] is not None:
            starts[queue].append(row["started_at"])
        of = (queue, row["actor_name"] or "")
        _raise(found["chaperone_running_memory_peak_bytes"], of, row["memory_peak"])
        limit_mb = (row["limits"] or {}).get("memory_limit")
        if limit_mb and row["memory_exact"] is not None:
            _raise(found["chaperone_running_memory_limit_ratio"], of, row["memory_exact"] / (limit_mb * MB))
    for queue, times in starts.items():
        found["chaperone_oldest_start_timestamp_seconds"][queue,] = min(times).timestamp()


def _raise(samples: Samples, labels: tuple[str, ...], value: float | None) -> None:
    """Keep the highest value; None is none."""
    if value is not None:
        samples[labels] = max(value, samples.get(labels, value))


def _depths(totals: Totals, found: dict[str, Samples]) -> None:
    """Queues of one name on several brokers are one queue here: numbers are added up, of times the oldest counts."""
    oldest: dict[str, datetime] = {}
    for row in totals.depths:
        queue = row["queue"]
        for column in ("ready", "delayed", "dead"):
            if row[column] is not None:
                samples = found[f"chaperone_queue_{column}"]
                samples[queue,] = samples.get((queue,), 0) + row[column]
        if row["paused"] is not None:
            paused = found["chaperone_queue_paused"]
            paused[queue,] = max(paused.get((queue,), 0), float(row["paused"]))
        read = found["chaperone_queue_read_timestamp_seconds"]
        read_at = row["read_at"].timestamp()
        read[queue,] = min(read.get((queue,), float("inf")), read_at)
        _raise(found["chaperone_broker_read_timestamp_seconds"], (row["broker"] or "",), read_at)
        if row["oldest_at"] is not None:
            oldest[queue] = min(oldest.get(queue, row["oldest_at"]), row["oldest_at"])
    # A broker that is read and says that nothing is there is right; a job may still be pending here for a moment.
    empty = {row["queue"] for row in totals.depths if row["ready"] == 0}
    for queue, at in totals.oldest.items():
        if queue not in oldest and queue not in empty:
            oldest[queue] = at
    found["chaperone_queue_oldest_timestamp_seconds"] = {(queue,): at.timestamp() for queue, at in oldest.items()}


def _worker_samples(workers: list[Row]) -> dict[str, Samples]:
    found: dict[str, Samples] = defaultdict(dict)
    for row in workers:
        host = (row["host"] or "",)
        gauges = row["gauges"] or {}
        numbers: dict[str, Any] = {
            "chaperone_worker_processes": 1,
            "chaperone_worker_threads": row["threads"],
            "chaperone_worker_jobs": gauges.get("running"),
            "chaperone_worker_consumers": gauges.get("consumers_alive"),
            "chaperone_worker_memory_bytes": row["rss"],
            "chaperone_worker_cpu_cores": None if row["cpu"] is None else row["cpu"] / 100,
            "chaperone_worker_open_files": gauges.get("open_files"),
            "chaperone_journal_backlog_bytes": gauges.get("journal_segments", 0) * _SEGMENT_BYTES,
        }
        for name, number in numbers.items():
            if number is not None:
                found[name][host] = found[name].get(host, 0) + number
        if row["started_at"] is not None:
            _raise(found["chaperone_worker_newest_start_timestamp_seconds"], host, row["started_at"].timestamp())
        if row["last_heartbeat_at"] is not None:
            beats = found["chaperone_worker_oldest_beat_timestamp_seconds"]
            beats[host] = min(beats.get(host, float("inf")), row["last_heartbeat_at"].timestamp())
    return found


def _family(series: Series, samples: Mapping[tuple[str, ...], float]) -> Metric:
    kind: Any = CounterMetricFamily if series.type == "counter" else GaugeMetricFamily
    family: Metric = kind(series.name, series.help, labels=series.labels)
    for labels, value in samples.items():
        family.add_metric(labels, value)  # type: ignore[attr-defined]  # each of the two has it
    return family


def _histogram(series: Series, counted: Mapping[str, list[tuple[dict[str, str], float]]]) -> Metric:
    """The store has each observation in one bucket; Prometheus wants those of the smaller ones in it too."""
    buckets: dict[tuple[str, ...], dict[str, float]] = defaultdict(dict)
    for labels, value in counted.get(f"{series.name}_bucket", ()):
        buckets[tuple(labels.get(name, "") for name in series.labels)][labels["le"]] = value
    sums = {tuple(labels.get(name, "") for name in series.labels): value for labels, value in counted.get(f"{series.name}_sum", ())}
    family = HistogramMetricFamily(series.name, series.help, labels=series.labels)
    for key, numbers in buckets.items():
        so_far, cumulative = 0.0, []
        for bound in BOUNDS:
            so_far += numbers.get(bound, 0)
            cumulative.append((bound, so_far))
        family.add_metric(key, buckets=cumulative, sum_value=sums.get(key, 0.0))
    return family
