"""Trials: real messages, marked as tests, on the way that a real alert takes."""

from __future__ import annotations

import difflib
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from .. import events, host
from ..settings import Settings
from ..store import alerts as rows
from ..store import deliveries
from . import messages, routing, rules
from .channels import Channel, Channels, Sent, channels_of, masked
from .kinds import ALIASES, KINDS, Alert, Finding, fingerprint, kind_of
from .sender import GIVE_UP_S

if TYPE_CHECKING:
    from ..store import Store

#: The specification's four.
USUAL: Final = ("job_stuck", "job_timeout", "circuit_breaker", "resource_violation")
_JOB: Final = "00000000-test-test-test-000000000000"


class Trial(NamedTuple):
    """What came of one message."""

    type: str
    channel: str
    is_sent: bool
    #: Seconds that it took.
    took_s: float
    error: str = ""


def send_test(
    types: Sequence[str] = (),
    *,
    channels: Sequence[str] = (),
    everywhere: bool = False,
    settings: Settings | None = None,
    store: Store | None = None,
) -> list[Trial]:
    """Send a marked alert of each of *types* to where a real one would go, and tell what came of it.

    Parameters:
      types: types of alerts, or the specification's names for them; none: its four.
      channels: only to these.
      everywhere: to every channel, whatever the routes say.
      settings: those of the environment, if None.
      store: the deliveries are put on record there.

    Raises:
      ValueError: there is no such type or channel; says which there are.
      SettingsError: a setting is wrong.
    """
    settings = Settings.load() if settings is None else settings
    known = channels_of(settings, check=True)
    named = [type_named(each) for each in types] or list(USUAL)
    only = known.expanded([_channel_named(each, known) for each in channels])
    wrong = [Trial("", name, False, 0.0, problem) for name, problem in known.wrong.items() if not channels or name in channels]
    routes = routing.routes_of(settings, known.default, known.tags)
    found = []
    for type_ in named:
        alert = _alert(type_, settings)
        names = (
            only
            if channels
            else (
                known.default
                if everywhere
                else [name for route, _ in routing.routed(alert, routes) for name in known.expanded(route.channels)]
            )
        )
        for name in dict.fromkeys(names):
            found += _try(known.by_name[name], alert, settings, store)
    return [*wrong, *found]


def type_named(name: str) -> str:
    """The type that *name* means.  Raises ValueError."""
    type_ = ALIASES.get(name, name.replace("-", "_"))
    if type_ not in KINDS:
        raise ValueError(_unknown("type of alert", name, [*KINDS, *ALIASES]))
    return type_


def _channel_named(name: str, known: Channels) -> str:
    if name not in known.by_name and name not in known.tags and name not in known.wrong:
        raise ValueError(_unknown("channel", name, [*known.by_name, *known.wrong]))
    return name


def _unknown(what: str, name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"There is no {what} {name!r}" + (f"; did you mean {close[0]}?" if close else f"; there are {', '.join(known)}.")


def _finding(type_: str) -> Finding:
    """What a rule would find, from an event where there is one."""
    at = datetime.now(UTC)
    job: dict[str, Any] = {"job_id": _JOB, "actor_name": "example_actor", "queue": "default", "worker_id": "example-worker"}
    worker: dict[str, Any] = {"worker_id": "example-worker", "host": host.host_name()}
    samples: Mapping[str, events.Event] = {
        "job_stuck": events.JobStuck(**job, stuck_duration=1800.0, last_heartbeat=at, diagnosis="blocked in fetch (app.py:7)"),
        "job_timeout": events.JobTimeout(**job, timeout_seconds=300.0, actual_duration=312.0),
        "circuit_breaker": events.CircuitBreakerOpened(service="example-service", failure_count=5, opened_at=at),
        "resource_violation": events.ResourceViolationDetected(**job, violation_type="memory", limit=512.0, actual=700.0),
        "job_failed": events.JobMovedToDeadLetterQueue(**job, exception="ValueError", failed_at=at, reason="retries exhausted"),
        "job_poisoned": events.JobPoisoned(**job, crashes=3, max_crashes=3),
        "job_unstoppable": events.JobStopIgnored(**job, ignored_at=at, waited=10.0, consequence="none: it runs on"),
        "worker_crashed": events.WorkerCrashed(**worker, crashed_at=at, exit_cause="SIGKILL"),
        "worker_lost": events.WorkerLost(**worker, lost_at=at, silent_for=30.0),
        "disk_space": events.DiskSpaceLow(**worker, path="/", threshold=1024.0, free=100.0, jobs_wait=True, began_at=at),
    }
    if type_ in samples:
        return next(each for each in rules.found(samples[type_]) if isinstance(each, Finding))
    return Finding(type_, "example", "example", {"queue": "default"}, [("Reading", "an example"), ("Threshold", "an example")])


def _alert(type_: str, settings: Settings) -> Alert:
    finding, kind, now = _finding(type_), kind_of(type_), time.time()
    evidence: dict[str, Any] = {"key": f"test:{finding.key}", "title": finding.title, "test": True}
    evidence["details"] = [list(pair) for pair in finding.details]
    priority = routing.priority_of(finding.labels.get("actor", ""), settings)
    severity = "critical" if priority == "critical" else kind.severity
    return Alert(
        id="test",
        type=type_,
        subject=finding.subject,
        severity=severity,
        priority=priority,
        status="happened",
        fingerprint=fingerprint(type_, evidence["key"]),
        is_point=True,
        labels=finding.labels,
        evidence=evidence,
        number=1,
        first_seen_at=now,
        last_seen_at=now,
    )


def _try(channel: Channel, alert: Alert, settings: Settings, store: Store | None) -> list[Trial]:
    """One message; on call a second one, which ends the incident that the first has begun."""
    found = []
    for status in ("firing", "resolved") if channel.is_on_call else ("firing",):
        message = messages.make([(alert, status)], settings, now=time.time(), is_test=True)
        sent, took_s = _sent(channel, message)
        found.append(Trial(alert.type, channel.name, sent.is_sent, took_s, sent.error))
        if store is not None:
            store.transact(lambda sent=sent, took_s=took_s: _keep(store, channel, alert, sent, took_s))  # type: ignore[misc]
    return found


def _sent(channel: Channel, message: messages.Message) -> tuple[Sent, float]:
    """As the sender does it: on a thread that may hang."""
    answers: list[Sent] = []

    def send() -> None:
        try:
            answers.append(channel.send(message))
        except Exception as error:  # noqa: BLE001 - whatever a channel of the user's raises
            answers.append(Sent(False, masked(f"{type(error).__name__}: {error}", ())[:500]))

    began = time.monotonic()
    thread = threading.Thread(target=send, name=f"chaperone-test-{channel.name}", daemon=True)
    thread.start()
    thread.join(GIVE_UP_S)
    took_s = time.monotonic() - began
    return (answers[0] if answers else Sent(False, f"no answer for {took_s:.0f} s")), took_s


def _keep(store: Store, channel: Channel, alert: Alert, sent: Sent, took_s: float) -> None:
    now = time.time()
    key = rows.raise_new(store, alert._asdict(), now, is_test=True)
    rows.settle(store, [key], now)
    delivery = deliveries.add(store, channel.name, [(key, "firing")], now, route="test", notice="test", result=deliveries.SENDING)
    deliveries.finish(
        store,
        deliveries.find(store, delivery),
        "sent" if sent.is_sent else "failed",
        now,
        seconds=took_s,
        error=sent.error or None,
        title=sent.title,
    )
