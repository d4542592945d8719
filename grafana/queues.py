"""Queues: what waits, since when, and when it will be done."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard as builders

from .parts import GREEN, RED, YELLOW, Query, age, board, graph, increase, level, ranking, rate, rows, top

_NOT_READ = "No worker has read a queue of the broker yet"
#: The window of a rate that is extrapolated.
_STEADY = "[15m]"


def dashboard() -> builders.Dashboard:
    """The dashboard."""
    return board(
        "chaperone-queues",
        "What lies in each queue, since when, what goes in and out, and what was given up.",
        ("queue", "actor"),
        ("All queues", [_table()]),
        ("What waits", _waiting()),
        ("In and out", _flow()),
        ("Dead letters", _dead()),
    )


def _clear() -> str:
    """Seconds until a queue is empty, if it goes on like that; nothing where it does not get shorter."""
    out = rate("chaperone_jobs_total", by="queue", window=_STEADY)
    sent = rate("chaperone_enqueued_total", by="queue", window=_STEADY)
    return f"{level('chaperone_jobs_pending', by='queue')} / ({out} - ({sent} or {out} * 0) > 0)"


def _table() -> object:
    return rows(
        "Queues",
        "Each queue as it stands; sent, ended and dead are of this time range.  Click on one to see it alone.",
        [
            (Query(level("chaperone_queue_ready", by="queue"), "Ready"), "short"),
            (Query(level("chaperone_queue_delayed", by="queue"), "Delayed"), "short"),
            (Query(level("chaperone_jobs_running", by="queue"), "Running"), "short"),
            (Query(age("chaperone_queue_oldest_timestamp_seconds", by="queue"), "Oldest"), "s"),
            (Query(increase("chaperone_enqueued_total", by="queue"), "Sent"), "short"),
            (Query(increase("chaperone_jobs_total", by="queue"), "Ended"), "short"),
            (Query(_clear(), "Time to clear"), "s"),
            (Query(level("chaperone_queue_workers", by="queue"), "Workers"), "short"),
            (Query(level("chaperone_queue_paused", by="queue"), "Paused"), "bool_yes_no"),
            (Query(increase("chaperone_dead_letters_total", by="queue"), "Dead"), "short"),
        ],
        by="queue",
        sort="Ready",
        empty=_NOT_READ,
        links_to=[("queue", "chaperone-queues")],
    )


def _waiting() -> list[object]:
    old = ((None, GREEN), (600, YELLOW), (1800, RED))
    return [
        graph(
            "Depth",
            "Messages that wait in the broker, by queue.",
            "short",
            Query(f"topk(10, {level('chaperone_queue_ready', by='queue')})", "{{queue}}"),
            empty=_NOT_READ,
        ),
        graph(
            "Delayed",
            "Messages that wait for their time: delays and retries, by queue.",
            "short",
            Query(f"topk(10, {level('chaperone_queue_delayed', by='queue')})", "{{queue}}"),
            empty=_NOT_READ,
        ),
        graph(
            "Oldest",
            "How long the oldest message has waited, by queue.",
            "s",
            Query(f"topk(10, {age('chaperone_queue_oldest_timestamp_seconds', by='queue')})", "{{queue}}"),
            steps=old,
            empty="Nothing waits",
        ),
        graph(
            "Jobs that wait and run",
            "As the store knows them: pending, and running.",
            "short",
            Query(f"sum({level('chaperone_jobs_pending', by='queue')})", "pending"),
            Query(f"sum({level('chaperone_jobs_running', by='queue')})", "running"),
            empty="No queue is known yet",
        ),
    ]


def _flow() -> list[object]:
    busiest = increase("chaperone_enqueued_total", by="queue")
    return [
        graph(
            "Sent",
            "Messages that came in, by queue; retries are none.",
            "ops",
            Query(top(rate("chaperone_enqueued_total", by="queue"), "queue", busiest), "{{queue}}"),
            empty="Nothing was ever sent",
        ),
        graph(
            "Ended",
            "Jobs that ended, by queue.",
            "ops",
            Query(top(rate("chaperone_jobs_total", by="queue"), "queue", increase("chaperone_jobs_total", by="queue")), "{{queue}}"),
            empty="No job ended yet",
        ),
        graph(
            "Time to clear",
            "Until a queue is empty, if it goes on as in the last 15 minutes.",
            "s",
            Query(_clear(), "{{queue}}"),
            empty="No queue gets shorter",
        ),
        graph(
            "Age of the readings",
            "How long ago a worker read each queue; it does so every 5 s.",
            "s",
            Query(f"topk(10, time() - max by (queue) ({_read()}))", "{{queue}}"),
            empty=_NOT_READ,
        ),
    ]


def _read() -> str:
    return level("chaperone_queue_read_timestamp_seconds", by="queue")


def _dead() -> list[object]:
    reasons = f"{increase('chaperone_dead_letters_total', by='queue, reason')} > 0"
    return [
        graph(
            "Dead letters in the broker",
            "Messages that the broker keeps as dead, by queue.",
            "short",
            Query(f"topk(10, {level('chaperone_queue_dead', by='queue')})", "{{queue}}"),
            empty="No broker here keeps dead letters",
        ),
        ranking(
            "New dead letters",
            "Messages that were given up in this time range, by queue and reason.",
            "short",
            Query(reasons, "{{queue}}: {{reason}}"),
            empty="No message was given up in this time range",
            steps=((None, RED),),
        ),
    ]
