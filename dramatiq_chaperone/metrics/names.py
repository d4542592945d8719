"""The one table of every series; docs/metrics.md shows it.

Names carry their unit.  No label grows with time: neither job, worker nor pid is one.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Series(NamedTuple):
    """One series.

    Attributes:
      name: as Prometheus shows it; a histogram's without ``_bucket``, ``_sum`` and ``_count``.
      type: 'counter', 'gauge' or 'histogram'.
      unit: what is counted or measured.
      labels: in their order.
      help: what it says.
      source: where the number is from.
    """

    name: str
    type: str
    unit: str
    labels: tuple[str, ...]
    help: str
    source: str


_ACTOR: Final = ("queue", "actor")
_HOST: Final = ("host",)
COUNTED: Final = "counters"
_JOBS: Final = "jobs that have not ended"
_DEPTHS: Final = "broker, last reading"
_RECORD: Final = "workers on record"
_WORKERS: Final = "last beats of living workers"
_PROCESS: Final = "this process"

#: Of the whole fleet; served by the holder of the lease alone.
TOTALS: Final = (
    Series("chaperone_jobs_total", "counter", "jobs", (*_ACTOR, "outcome"), "Jobs that ended, each message at its first end.", COUNTED),
    Series("chaperone_runs_total", "counter", "runs", (*_ACTOR, "outcome"), "Runs that ended; a retried job has several.", COUNTED),
    Series("chaperone_retries_total", "counter", "runs", _ACTOR, "Runs that were followed by a retry.", COUNTED),
    Series(
        "chaperone_violations_total",
        "counter",
        "episodes",
        (*_ACTOR, "type"),
        "Limits that were passed, of those that somebody set; without queue and actor where jobs of a worker could not be told apart.",
        COUNTED,
    ),
    Series("chaperone_run_duration_seconds", "histogram", "seconds", _ACTOR, "How long runs took.", COUNTED),
    Series("chaperone_queue_wait_seconds", "histogram", "seconds", _ACTOR, "How long messages waited since they were due.", COUNTED),
    Series("chaperone_cpu_seconds_total", "counter", "seconds", _ACTOR, "CPU time that runs used.", COUNTED),
    Series(
        "chaperone_memory_peak_bytes",
        "gauge",
        "bytes",
        _ACTOR,
        "Highest memory that an ended run was ever seen with; of its process, where other jobs ran beside it.",
        COUNTED,
    ),
    Series("chaperone_enqueued_total", "counter", "messages", _ACTOR, "Messages that were sent, each once; retries are none.", COUNTED),
    Series("chaperone_stuck_total", "counter", "episodes", (*_ACTOR, "cause"), "Times that a job was found stuck, by diagnosis.", COUNTED),
    Series("chaperone_lost_total", "counter", "runs", (*_ACTOR, "cause"), "Runs that were lost with their worker, by its end.", COUNTED),
    Series(
        "chaperone_dead_letters_total",
        "counter",
        "messages",
        (*_ACTOR, "reason"),
        "Messages that came to the dead letters; poison ones, which ended their workers, have that reason.",
        COUNTED,
    ),
    Series(
        "chaperone_recovery_seconds",
        "histogram",
        "seconds",
        (*_ACTOR, "after"),
        "How long jobs stood still that run again: since they were found stuck, or were on record as lost.",
        COUNTED,
    ),
    Series("chaperone_workers_lost_total", "counter", "processes", ("cause",), "Worker processes that died or fell silent.", COUNTED),
    Series("chaperone_dropped_total", "counter", "entries", ("what",), "Journal entries that could not be kept.", COUNTED),
    Series("chaperone_unwritable_rows_total", "counter", "rows", ("table",), "Rows that the database refused.", COUNTED),
    Series("chaperone_jobs_pending", "gauge", "jobs", ("queue",), "Jobs that wait, those for a retry included.", _JOBS),
    Series("chaperone_jobs_running", "gauge", "jobs", ("queue",), "Jobs that run, stuck ones included.", _JOBS),
    Series("chaperone_jobs_stalled", "gauge", "jobs", ("queue",), "Jobs that run and are stuck.", _JOBS),
    Series("chaperone_jobs_lost", "gauge", "jobs", ("queue",), "Jobs whose worker died and that were not delivered again yet.", _JOBS),
    Series("chaperone_oldest_start_timestamp_seconds", "gauge", "Unix seconds", ("queue",), "Start of the oldest run that goes on.", _JOBS),
    Series("chaperone_running_memory_peak_bytes", "gauge", "bytes", _ACTOR, "Highest memory that a job running now was seen with.", _JOBS),
    Series(
        "chaperone_running_memory_limit_ratio",
        "gauge",
        "ratio",
        _ACTOR,
        "Highest share of its memory_limit that a job running now takes; of those with one of their own whose memory can be told apart.",
        _JOBS,
    ),
    Series("chaperone_jobs_waiting_for_disk", "gauge", "jobs", (), "Jobs that were put off until more of the disk is free.", _JOBS),
    Series("chaperone_workers", "gauge", "processes", ("status",), "Worker processes on record.", _RECORD),
    Series(
        "chaperone_worker_last_loss_timestamp_seconds",
        "gauge",
        "Unix seconds",
        _HOST,
        "When a worker process of the host was lost last, if in the last day.",
        _RECORD,
    ),
    Series("chaperone_queue_workers", "gauge", "processes", ("queue",), "Worker processes that fetch from the queue.", _RECORD),
    Series(
        "chaperone_monitor_lease_expiry_timestamp_seconds",
        "gauge",
        "Unix seconds",
        _HOST,
        "When the monitor's lease runs out, by the host of its holder; it is renewed every 5 s for 11 s.",
        "lease",
    ),
    Series("chaperone_queue_ready", "gauge", "messages", ("queue",), "Messages that wait in the broker.", _DEPTHS),
    Series("chaperone_queue_delayed", "gauge", "messages", ("queue",), "Messages that wait for their time.", _DEPTHS),
    Series("chaperone_queue_dead", "gauge", "messages", ("queue",), "Dead-lettered messages in the broker.", _DEPTHS),
    Series("chaperone_queue_paused", "gauge", "0 or 1", ("queue",), "Whether the worker that read it fetches nothing from it.", _DEPTHS),
    Series("chaperone_queue_read_timestamp_seconds", "gauge", "Unix seconds", ("queue",), "When the broker was read.", _DEPTHS),
    Series(
        "chaperone_broker_read_timestamp_seconds",
        "gauge",
        "Unix seconds",
        ("broker",),
        "When a worker could read the queues of a broker last; workers try every 5 s.",
        _DEPTHS,
    ),
    Series(
        "chaperone_queue_oldest_timestamp_seconds",
        "gauge",
        "Unix seconds",
        ("queue",),
        "When the oldest waiting message was enqueued.",
        "broker, else jobs that wait",
    ),
)

_SERVICE: Final = ("service",)
_CIRCUITS: Final = "circuit breakers on record"

#: Of the whole fleet, by the service that calls are guarded for.
BREAKERS: Final = (
    Series(
        "chaperone_circuit_breaker_state",
        "gauge",
        "0 or 1",
        (*_SERVICE, "state"),
        "1 for the state that it is in: closed, open, half_open.",
        _CIRCUITS,
    ),
    Series(
        "chaperone_circuit_breaker_mode",
        "gauge",
        "0 or 1",
        (*_SERVICE, "mode"),
        "1 for its mode: auto, or forced_open, disabled, metrics_only, which somebody has set.",
        _CIRCUITS,
    ),
    Series(
        "chaperone_circuit_breaker_calls_total",
        "counter",
        "calls",
        (*_SERVICE, "result"),
        "Guarded calls: succeeded, failed, refused, ignored (neither success nor failure).",
        COUNTED,
    ),
    Series(
        "chaperone_circuit_breaker_call_duration_seconds",
        "histogram",
        "seconds",
        _SERVICE,
        "How long guarded calls took that were let through; of jobs whose breaker is an option of their actor, the calls inside alone.",
        COUNTED,
    ),
    Series(
        "chaperone_circuit_breaker_jobs_waiting",
        "gauge",
        "jobs",
        _SERVICE,
        "Jobs that wait until the breaker lets them through, put off or in a queue that is paused.",
        _JOBS,
    ),
    Series("chaperone_circuit_breaker_transitions_total", "counter", "changes", (*_SERVICE, "state"), "Changes into a state.", COUNTED),
)

#: Of alerts; served with the totals.
ALERTS: Final = (
    Series("chaperone_alerts_firing", "gauge", "alerts", ("type", "severity"), "Alerts that fire.", "alerts on record"),
    Series("chaperone_alerts_opened_total", "counter", "alerts", ("type", "severity"), "Alerts that were raised.", COUNTED),
    Series("chaperone_alert_deliveries_total", "counter", "attempts", ("channel", "result"), "Attempts at delivering messages.", COUNTED),
    Series(
        "chaperone_alerts_suppressed_total",
        "counter",
        "alerts",
        ("reason",),
        "Alerts that nobody was told of: silenced, inhibited, resolved in time, limited, or held back in a flood.",
        COUNTED,
    ),
    Series("chaperone_alert_delivery_duration_seconds", "histogram", "seconds", ("channel",), "How long attempts took.", COUNTED),
)

#: Of the workers that live.
WORKERS: Final = (
    Series("chaperone_worker_processes", "gauge", "processes", _HOST, "Worker processes that live.", _WORKERS),
    Series("chaperone_worker_jobs", "gauge", "jobs", _HOST, "Jobs that run.", _WORKERS),
    Series("chaperone_worker_threads", "gauge", "threads", _HOST, "Threads that run jobs.", _WORKERS),
    Series("chaperone_worker_consumers", "gauge", "threads", _HOST, "Threads that live and fetch messages.", _WORKERS),
    Series("chaperone_worker_memory_bytes", "gauge", "bytes", _HOST, "Resident memory of worker processes.", _WORKERS),
    Series("chaperone_worker_cpu_cores", "gauge", "cores", _HOST, "CPU of worker processes between their last two beats.", _WORKERS),
    Series("chaperone_worker_open_files", "gauge", "files", _HOST, "Open files of worker processes.", _WORKERS),
    Series(
        "chaperone_worker_newest_start_timestamp_seconds",
        "gauge",
        "Unix seconds",
        _HOST,
        "Start of the youngest worker process; it changes when one is started.",
        _WORKERS,
    ),
    Series(
        "chaperone_worker_oldest_beat_timestamp_seconds", "gauge", "Unix seconds", _HOST, "The last beat that is longest ago.", _WORKERS
    ),
    Series("chaperone_journal_backlog_bytes", "gauge", "bytes", _HOST, "Journals not in the store yet, in whole segments.", _WORKERS),
    Series("chaperone_sampler_cpu_seconds_total", "counter", "seconds", (), "CPU time that sampling took.", _WORKERS),
    Series(
        "chaperone_internal_errors_total",
        "counter",
        "errors",
        ("component",),
        "Errors of Chaperone itself; jobs are not affected.",
        f"{_WORKERS}, {_PROCESS}",
    ),
)

#: Of the process that is scraped.
PROCESS: Final = (
    Series("chaperone_up", "gauge", "0 or 1", (), "Whether the store answered this scrape; 0: the rest is of an earlier one.", _PROCESS),
    Series("chaperone_read_timestamp_seconds", "gauge", "Unix seconds", (), "When the store was read for what is served.", _PROCESS),
    Series("chaperone_read_duration_seconds", "gauge", "seconds", (), "How long that took.", _PROCESS),
    Series("chaperone_process_memory_bytes", "gauge", "bytes", (), "Resident memory of this process: a watcher or an exporter.", _PROCESS),
    Series("chaperone_process_cpu_seconds_total", "counter", "seconds", (), "CPU time that it has used.", _PROCESS),
    Series(
        "chaperone_writer_backlog_bytes",
        "gauge",
        "bytes",
        (),
        "What the writer in this process has seen in journals and not brought to the store yet; a watcher has one.",
        _PROCESS,
    ),
    Series("chaperone_exporter_leader", "gauge", "0 or 1", (), "Whether this process serves the totals of the fleet.", _PROCESS),
)

SERIES: Final = (*TOTALS, *BREAKERS, *ALERTS, *WORKERS, *PROCESS)
