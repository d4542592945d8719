"""Breakers and alerts: which services are left alone, what waits for them, and who was told of what."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard as builders

from .parts import RANGE, RED, YELLOW, Query, board, graph, increase, level, of, quantile, ranking, rate, rows

_NO_BREAKER = "No circuit breaker is on record"
_NO_ALERT = "No alert was ever raised"
_NO_DELIVERY = "No alert was ever sent"


def dashboard() -> builders.Dashboard:
    """The dashboard."""
    return board(
        "chaperone-breakers",
        "Circuit breakers, the jobs that wait for them, and what became of alerts.",
        ("service",),
        ("Circuit breakers", [_table(), *_breakers()]),
        ("Alerts", _alerts()),
    )


def _table() -> object:
    calls = "chaperone_circuit_breaker_calls_total"
    failed = increase(calls, 'result="failed"', by="service")
    tried = increase(calls, 'result=~"succeeded|failed"', by="service")
    return rows(
        "Services",
        "Each guarded service; calls are those of this time range.",
        [
            (Query(level("chaperone_circuit_breaker_state", 'state="open"', by="service"), "Open"), "bool_yes_no"),
            (Query(level("chaperone_circuit_breaker_mode", 'mode!="auto"', by="service"), "Set by hand"), "bool_yes_no"),
            (Query(increase(calls, by="service"), "Calls"), "short"),
            (Query(f"{failed} / ({tried} > 0)", "Failed"), "percentunit"),
            (Query(quantile(0.95, "chaperone_circuit_breaker_call_duration_seconds", "service", RANGE), "p95"), "s"),
            (Query(increase("chaperone_circuit_breaker_transitions_total", 'state="open"', by="service"), "Openings"), "short"),
            (Query(level("chaperone_circuit_breaker_jobs_waiting", by="service"), "Jobs waiting"), "short"),
        ],
        by="service",
        sort="Open",
        empty=_NO_BREAKER,
        links_to=[("service", "chaperone-breakers")],
    )


def _breakers() -> list[object]:
    calls = "chaperone_circuit_breaker_calls_total"
    is_open = level("chaperone_circuit_breaker_state", 'state="open"', by="service")
    half_open = level("chaperone_circuit_breaker_state", 'state="half_open"', by="service")
    return [
        graph(
            "Open breakers",
            "1 while a breaker is open, one half while it lets trials through.",
            "short",
            Query(f"{is_open} + 0.5 * {half_open}", "{{service}}"),
            highest=1,
            empty=_NO_BREAKER,
        ),
        graph(
            "Jobs that wait",
            "Jobs that were put off until a service answers again, and until the disk has room.",
            "short",
            Query(level("chaperone_circuit_breaker_jobs_waiting", by="service"), "{{service}}"),
            Query(f"max({of('chaperone_jobs_waiting_for_disk')})", "room on the disk"),
            stacked=True,
            empty=_NO_BREAKER,
        ),
        graph(
            "Calls",
            "Guarded calls, by result; refused ones were not made.",
            "ops",
            Query(rate(calls, by="result"), "{{result}}"),
            stacked=True,
            empty="No call was ever guarded",
        ),
        graph(
            "Duration of calls",
            "How long guarded calls took that were let through: 95 of 100 took no longer.",
            "s",
            Query(quantile(0.95, "chaperone_circuit_breaker_call_duration_seconds", "service"), "{{service}}"),
            empty="No guarded call in this time range",
        ),
    ]


def _alerts() -> list[object]:
    failed = increase("chaperone_alert_deliveries_total", 'result="failed"', by="channel")
    suppressed = f"{increase('chaperone_alerts_suppressed_total', by='reason')} > 0"
    return [
        graph(
            "Firing",
            "Alerts that fire, by type.",
            "short",
            Query(level("chaperone_alerts_firing", by="type, severity"), "{{type}} ({{severity}})"),
            stacked=True,
            empty=_NO_ALERT,
        ),
        graph(
            "Opened",
            "Alerts that began to fire, by type.",
            "short",
            Query(increase("chaperone_alerts_opened_total", by="type, severity", window="[$__rate_interval]"), "{{type}} ({{severity}})"),
            bars=True,
            empty=_NO_ALERT,
        ),
        graph(
            "Deliveries",
            "Messages to people, by channel and result.",
            "short",
            Query(
                increase("chaperone_alert_deliveries_total", by="channel, result", window="[$__rate_interval]"), "{{channel}}: {{result}}"
            ),
            bars=True,
            empty=_NO_DELIVERY,
        ),
        graph(
            "Duration of deliveries",
            "How long channels take: 95 of 100 deliveries took no longer.",
            "s",
            Query(quantile(0.95, "chaperone_alert_delivery_duration_seconds", "channel"), "{{channel}}"),
            empty=_NO_DELIVERY,
        ),
        ranking(
            "Failed deliveries",
            "In this time range, by channel.",
            "short",
            Query(f"{failed} > 0", "{{channel}}"),
            empty="No delivery failed in this time range",
            steps=((None, RED),),
        ),
        ranking(
            "Not sent on purpose",
            "Alerts that nobody was told of, by reason, in this time range.",
            "short",
            Query(suppressed, "{{reason}}"),
            empty="Nothing was held back in this time range",
            steps=((None, YELLOW),),
        ),
    ]
