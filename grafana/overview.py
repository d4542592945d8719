"""Overview: is anything wrong?"""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard as builders

from .parts import (
    CALM,
    GREEN,
    NONE_IS_WELL,
    RED,
    SOME_IS_WELL,
    YELLOW,
    Query,
    age,
    board,
    graph,
    hosts,
    increase,
    level,
    number,
    of,
    or_zero,
    quantile,
    rate,
    total,
)

_FAILED = increase("chaperone_jobs_total", 'outcome="failed"')
_ENDED = increase("chaperone_jobs_total")


def dashboard() -> builders.Dashboard:
    """The dashboard."""
    return board(
        "chaperone-overview",
        "Is anything wrong with the jobs, and where to look on.",
        ("host", "queue", "actor", "service"),
        ("Is anything wrong?", _now()),
        ("Jobs", _jobs()),
        ("Time", _time()),
        ("Monitoring itself", _itself()),
    )


def _now() -> list[object]:
    failing = f"({_FAILED}) / ({_ENDED} > 0)"
    shares = ((None, GREEN), (0.01, YELLOW), (0.05, RED))
    return [
        number(
            "Failed",
            "Share of the jobs that ended in this time range and failed for good.",
            "percentunit",
            Query(or_zero(failing)),
            steps=shares,
            links_to="chaperone-actors",
        ),
        number(
            "Stuck",
            "Jobs that run and make no progress, right now.",
            "short",
            Query(or_zero(total("chaperone_jobs_stalled", by="job, queue"))),
            steps=NONE_IS_WELL,
            links_to="chaperone-workers",
        ),
        number(
            "Lost",
            "Jobs whose worker died and that no worker has taken again yet.",
            "short",
            Query(or_zero(total("chaperone_jobs_lost", by="job, queue"))),
            steps=NONE_IS_WELL,
            links_to="chaperone-workers",
        ),
        number(
            "Workers lost",
            "Worker processes that died or fell silent in this time range.",
            "short",
            Query(or_zero(increase("chaperone_workers_lost_total"))),
            steps=NONE_IS_WELL,
            links_to="chaperone-workers",
        ),
        number(
            "Poison messages",
            "Messages that ended worker after worker and were taken out, in this time range.",
            "short",
            Query(or_zero(increase("chaperone_dead_letters_total", 'reason="poison"'))),
            steps=NONE_IS_WELL,
            links_to="chaperone-queues",
        ),
        number(
            "Open breakers",
            "Services whose circuit breaker is open.",
            "short",
            Query(or_zero(total("chaperone_circuit_breaker_state", 'state="open"', by="job, service"))),
            steps=NONE_IS_WELL,
            links_to="chaperone-breakers",
        ),
        number(
            "Alerts firing",
            "Alerts of Chaperone that fire.",
            "short",
            Query(or_zero(total("chaperone_alerts_firing", by="job, type, severity"))),
            steps=NONE_IS_WELL,
            links_to="chaperone-breakers",
        ),
        number(
            "Workers",
            "Worker processes that live.",
            "short",
            Query(or_zero(f"sum({of('chaperone_worker_processes')})")),
            steps=SOME_IS_WELL,
            links_to="chaperone-workers",
        ),
    ]


def _jobs() -> list[object]:
    return [
        graph(
            "Throughput",
            "Jobs that ended, each message once, by outcome.",
            "ops",
            Query(rate("chaperone_jobs_total", by="outcome"), "{{outcome}}"),
            stacked=True,
            empty="No job ended in this time range",
        ),
        graph(
            "Failures",
            "Runs that did not succeed, by how they ended; those that a retry follows count too.",
            "ops",
            Query(rate("chaperone_runs_total", 'outcome!="succeeded"', by="outcome"), "{{outcome}}"),
            Query(rate("chaperone_retries_total"), "retried"),
            empty="No run failed in this time range",
        ),
        graph(
            "Backlog",
            "Jobs that wait, those for a retry included, by queue.",
            "short",
            Query(level("chaperone_jobs_pending", by="job, queue"), "{{queue}}"),
            stacked=True,
            empty="No queue is known yet",
        ),
        graph(
            "Running, stuck, lost",
            "Jobs that are with a worker, or were with one that died.",
            "short",
            Query(total("chaperone_jobs_running", by="job, queue"), "running"),
            Query(total("chaperone_jobs_stalled", by="job, queue"), "stuck"),
            Query(total("chaperone_jobs_lost", by="job, queue"), "lost"),
            empty="No queue is known yet",
        ),
    ]


def _time() -> list[object]:
    return [
        graph(
            "Waiting time",
            "How long messages waited since they were due, until a worker began with them.",
            "s",
            *(Query(quantile(share, "chaperone_queue_wait_seconds"), f"p{100 * share:.0f}") for share in (0.5, 0.95, 0.99)),
            empty="No job began in this time range",
        ),
        graph(
            "Duration",
            "How long runs took.",
            "s",
            *(Query(quantile(share, "chaperone_run_duration_seconds"), f"p{100 * share:.0f}") for share in (0.5, 0.95, 0.99)),
            empty="No run ended in this time range",
        ),
    ]


def _itself() -> list[object]:
    late = ((None, GREEN), (15, YELLOW), (60, RED))
    return [
        number(
            "Store",
            "Whether the store answers every process that serves metrics.",
            "bool_yes_no",
            Query(f"min({of('chaperone_up')})"),
            steps=SOME_IS_WELL,
            empty="No exporter",
        ),
        number(
            "Exporter",
            "Processes that serve the totals of the fleet; it has to be one.",
            "short",
            Query(or_zero(f"sum({of('chaperone_exporter_leader')})")),
            steps=((None, RED), (1, GREEN), (2, YELLOW)),
        ),
        number(
            "Monitor",
            "Seconds until the lease of the monitor runs out; below zero nobody watches over silent workers.",
            "s",
            Query(f"max({of('chaperone_monitor_lease_expiry_timestamp_seconds')}) - time()"),
            steps=((None, RED), (0, GREEN)),
            empty="No monitor",
        ),
        number(
            "Broker",
            "How long ago a worker could read the queues of its broker; it tries every 5 s.",
            "s",
            Query(f"max({age('chaperone_broker_read_timestamp_seconds', by='job, broker')})"),
            steps=late,
            empty="Not read yet",
        ),
        number(
            "Age of the numbers",
            "How long ago the store was read for what is shown.",
            "s",
            Query(f"max(time() - {of('chaperone_read_timestamp_seconds')})"),
            steps=late,
            empty="Not read yet",
        ),
        number(
            "Reading the store",
            "How long the last reading of the store took.",
            "s",
            Query(f"max({of('chaperone_read_duration_seconds')})"),
            steps=((None, GREEN), (1, YELLOW), (3, RED)),
            empty="Not read yet",
        ),
        number(
            "Errors of Chaperone",
            "Errors of Chaperone itself in this time range; jobs do not notice them.",
            "short",
            Query(or_zero(increase("chaperone_internal_errors_total"))),
            steps=NONE_IS_WELL,
        ),
        number(
            "Not recorded",
            "Journal entries and rows that could not be kept in this time range.",
            "short",
            Query(or_zero(f"{increase('chaperone_dropped_total')} + {increase('chaperone_unwritable_rows_total')}")),
            steps=NONE_IS_WELL,
        ),
        graph(
            "Waiting to be written",
            "What workers and writers have not brought to the store yet: it grows while the store is away.",
            "bytes",
            Query(f"sum({hosts('chaperone_journal_backlog_bytes')})", "journals"),
            Query(f"sum({of('chaperone_writer_backlog_bytes')})", "seen by writers"),
            steps=CALM,
            empty="No worker lives",
        ),
        graph(
            "Errors and losses of Chaperone",
            "By component, by what was dropped, and by the table that refused a row.",
            "short",
            Query(increase("chaperone_internal_errors_total", by="component", window="[$__rate_interval]"), "{{component}}"),
            Query(increase("chaperone_dropped_total", by="what", window="[$__rate_interval]"), "dropped: {{what}}"),
            Query(increase("chaperone_unwritable_rows_total", by="table", window="[$__rate_interval]"), "refused: {{table}}"),
            empty="Nothing went wrong",
        ),
    ]
