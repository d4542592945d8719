"""Actors: which of them fails, is slow, or takes too much."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard as builders

from .parts import (
    GREEN,
    RANGE,
    RED,
    YELLOW,
    Query,
    board,
    graph,
    increase,
    level,
    quantile,
    ranking,
    rate,
    rows,
    top,
)

_BUSIEST = increase("chaperone_runs_total", by="actor")
_NO_RUN = "No run ended in this time range"


def dashboard() -> builders.Dashboard:
    """The dashboard."""
    return board(
        "chaperone-actors",
        "What each actor does, how long it takes and what it costs.  Lines are those of the ten busiest of the time range.",
        ("queue", "actor"),
        ("All actors", [_table()]),
        ("Runs", _runs()),
        ("Time", _time()),
        ("Memory and CPU", _cost()),
    )


def _table() -> object:
    runs = increase("chaperone_runs_total", by="queue, actor")
    failed = increase("chaperone_jobs_total", 'outcome="failed"', by="queue, actor")
    ended = increase("chaperone_jobs_total", by="queue, actor")
    return rows(
        "Actors",
        "Each actor in this time range; click on one to see it alone.",
        [
            (Query(runs, "Runs"), "short"),
            (Query(f"{failed} / ({ended} > 0)", "Failed"), "percentunit"),
            (Query(increase("chaperone_retries_total", by="queue, actor"), "Retries"), "short"),
            (Query(quantile(0.5, "chaperone_run_duration_seconds", "queue, actor", RANGE), "p50"), "s"),
            (Query(quantile(0.95, "chaperone_run_duration_seconds", "queue, actor", RANGE), "p95"), "s"),
            (Query(quantile(0.95, "chaperone_queue_wait_seconds", "queue, actor", RANGE), "p95 wait"), "s"),
            (Query(increase("chaperone_cpu_seconds_total", by="queue, actor"), "CPU"), "s"),
            (Query(level("chaperone_memory_peak_bytes", by="queue, actor"), "Highest memory"), "bytes"),
        ],
        by="queue, actor",
        sort="Runs",
        empty="No actor has run yet",
        links_to=[("actor", "chaperone-actors"), ("queue", "chaperone-queues")],
    )


def _runs() -> list[object]:
    failing = rate("chaperone_runs_total", 'outcome!="succeeded"', by="actor")
    stuck = f"{increase('chaperone_stuck_total', by='actor, cause')} > 0"
    over = f"{increase('chaperone_violations_total', by='actor, type')} > 0"
    return [
        graph(
            "Runs",
            "Runs that ended, by actor.",
            "ops",
            Query(top(rate("chaperone_runs_total", by="actor"), "actor", _BUSIEST), "{{actor}}"),
            stacked=True,
            empty=_NO_RUN,
        ),
        graph(
            "Errors",
            "Runs that did not succeed, by actor: failed, interrupted, killed or lost.",
            "ops",
            Query(top(failing, "actor", increase("chaperone_runs_total", 'outcome!="succeeded"', by="actor")), "{{actor}}"),
            empty="No run failed in this time range",
        ),
        graph(
            "Retries",
            "Runs that a retry followed, by actor.",
            "ops",
            Query(top(rate("chaperone_retries_total", by="actor"), "actor", increase("chaperone_retries_total", by="actor")), "{{actor}}"),
            empty="Nothing was retried in this time range",
        ),
        graph(
            "Time to recovery",
            "How long jobs stood still that run again, after they were stuck or lost: 95 of 100 took no longer.",
            "s",
            Query(quantile(0.95, "chaperone_recovery_seconds", "after", RANGE), "after {{after}}"),
            empty="No job was stuck or lost and came back",
        ),
        ranking(
            "Stuck",
            "How often jobs were found stuck, by what keeps them.",
            "short",
            Query(stuck, "{{actor}}: {{cause}}"),
            empty="No job was stuck in this time range",
            steps=((None, RED),),
        ),
        ranking(
            "Limits passed",
            "How often jobs passed a limit that somebody has set.",
            "short",
            Query(over, "{{actor}}: {{type}}"),
            empty="No limit was passed in this time range",
            steps=((None, YELLOW),),
        ),
    ]


def _time() -> list[object]:
    shares = (0.5, 0.95, 0.99)
    slowest = f"topk(10, {quantile(0.95, 'chaperone_run_duration_seconds', 'actor', RANGE)} > 0)"
    longest = f"topk(10, {quantile(0.95, 'chaperone_queue_wait_seconds', 'actor', RANGE)} > 0)"
    return [
        graph(
            "Duration",
            "How long runs took, of all that are selected.",
            "s",
            *(Query(quantile(share, "chaperone_run_duration_seconds"), f"p{100 * share:.0f}") for share in shares),
            empty=_NO_RUN,
        ),
        graph(
            "Waiting time",
            "How long messages waited since they were due, of all that are selected.",
            "s",
            *(Query(quantile(share, "chaperone_queue_wait_seconds"), f"p{100 * share:.0f}") for share in shares),
            empty="No job began in this time range",
        ),
        ranking("Slowest", "95 of 100 runs took no longer.", "s", Query(slowest, "{{actor}}"), empty=_NO_RUN),
        ranking(
            "Longest waits",
            "95 of 100 messages waited no longer.",
            "s",
            Query(longest, "{{actor}}"),
            empty="No job began in this time range",
        ),
    ]


def _cost() -> list[object]:
    cpu = rate("chaperone_cpu_seconds_total", by="actor")
    near = ((None, GREEN), (0.75, YELLOW), (0.9, RED))
    return [
        graph(
            "CPU",
            "Cores that ended runs used, by actor.",
            "short",
            Query(top(cpu, "actor", increase("chaperone_cpu_seconds_total", by="actor")), "{{actor}}"),
            stacked=True,
            empty=_NO_RUN,
        ),
        graph(
            "Memory of running jobs",
            "The highest memory that a job running now was seen with, by actor; of its process where others run beside it.",
            "bytes",
            Query(f"topk(10, {level('chaperone_running_memory_peak_bytes', by='actor')})", "{{actor}}"),
            empty="No job ran long enough to be measured",
        ),
        ranking(
            "Highest memory ever",
            "The highest memory that an ended run was ever seen with.",
            "bytes",
            Query(f"topk(10, {level('chaperone_memory_peak_bytes', by='actor')})", "{{actor}}"),
            empty="No run was long enough to be measured",
        ),
        graph(
            "Share of the memory limit",
            "How near the nearest running job is to its memory_limit, by actor.",
            "percentunit",
            Query(f"topk(10, {level('chaperone_running_memory_limit_ratio', by='actor')})", "{{actor}}"),
            steps=near,
            empty="No running job has a memory limit of its own and is measured by itself",
        ),
    ]
