"""Actors that give something to alert of, and what a user has beside them: handlers, a rule, a channel.

Environment: as of fleet_app; TIMEOUT (seconds); SLACK_AT (where Slack's webhooks are).
"""

from __future__ import annotations

import os
import time
from typing import Any

import dramatiq

from dramatiq_chaperone import alert_rule, on, supervision_id
from dramatiq_chaperone.alerts import Finding, Message, alert_channel, channels
from dramatiq_chaperone.events import (
    JobLost,
    JobMovedToDeadLetterQueue,
    JobStuck,
    JobTimeout,
    ResourceViolationDetected,
    WorkerCrashed,
)
from dramatiq_chaperone.models import SupervisedJob
from tests.e2e.fleet_app import *  # noqa: F403 - the same app, with more actors
from tests.e2e.fleet_app import QUEUE

MB = 1024 * 1024

if "SLACK_AT" in os.environ:
    channels._apprise()
    from apprise.plugins.slack import NotifySlack

    NotifySlack.webhook_url = os.environ["SLACK_AT"]


def note(what: str, about: str) -> None:
    """One line: ``what about pid``."""
    with open(os.environ["LEDGER"], "a", encoding="utf-8") as file:
        file.write(f"{what} {about} {os.getpid()}\n")


def said(event: Any) -> None:
    """Which process handles which event."""
    about = getattr(event, "job_id", None) or getattr(event, "worker_id", "")
    note(type(event).__name__, about)


for kind in (JobLost, JobMovedToDeadLetterQueue, JobStuck, JobTimeout, WorkerCrashed):
    on(kind, said)


@on(ResourceViolationDetected)
def auto_kill(event: ResourceViolationDetected) -> None:
    """The specification's listener: a job that uses more than twice its memory is ended."""
    if event.violation_type == "memory" and event.actual > event.limit * 2:
        SupervisedJob.get(SupervisedJob.job_id == event.job_id).kill(reason="more than twice its memory")


@alert_rule(JobMovedToDeadLetterQueue)
def invoices(event: JobMovedToDeadLetterQueue) -> Finding | None:
    """An own rule."""
    if event.actor_name != "invoice":
        return None
    return Finding("invoice_failed", event.job_id, "ACME", severity="critical", details=[("Invoice", event.job_id)])


@alert_channel("ledger")
def ledger(message: Message) -> None:
    """An own channel."""
    note("message", message.title.replace(" ", "_"))


@dramatiq.actor(queue_name=QUEUE, max_retries=0, timeout=float(os.environ.get("TIMEOUT", "2")), memory_limit=64)
def staging() -> None:
    """The specification's job for a staging system: its timeout passes, and it hears of nothing."""
    time.sleep(600)


@dramatiq.actor(queue_name=QUEUE, max_retries=0, memory_limit=100)
def hoard() -> None:
    """Uses far more than its limit, once it is on record that it runs."""
    time.sleep(3)
    kept = bytearray(400 * MB)
    for _ in range(6000):
        time.sleep(0.01)
    del kept


@dramatiq.actor(queue_name=QUEUE, max_retries=0)
def invoice() -> None:
    """Fails for good."""
    raise ValueError("no such customer")


@dramatiq.actor(queue_name=QUEUE, max_retries=0)
def fails(number: int = 0) -> None:
    """Fails for good."""
    raise ValueError(f"number {number}")


@dramatiq.actor(queue_name=QUEUE, max_retries=0)
def linger() -> None:
    """Is there when its worker dies."""
    note("linger", supervision_id())
    time.sleep(60)
