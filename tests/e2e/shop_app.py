"""A shop, for the pictures of the dashboards.  Environment: as of fleet_app."""

from __future__ import annotations

import random
import time

import dramatiq

from dramatiq_chaperone import breaker
from tests.e2e.fleet_app import *  # noqa: F403 - the same broker

PAYMENTS, MAIL = "payments", "mail"


def work(seconds: float) -> None:
    """Takes *seconds*, a third of them on the processor."""
    until = time.thread_time() + seconds / 3
    while time.thread_time() < until:
        sum(range(2000))
    time.sleep(2 * seconds / 3)


@dramatiq.actor(queue_name="images", max_retries=2, min_backoff=500, max_backoff=2000)
def resize(luck: float, is_down: bool) -> None:
    """Makes a picture smaller."""
    work(0.05 + 0.3 * luck)
    if luck < 0.03:
        raise ValueError("no picture")


@dramatiq.actor(queue_name="payments", max_retries=3, min_backoff=500, max_backoff=2000, breaker=PAYMENTS)
def charge(luck: float, is_down: bool) -> None:
    """Asks for money, of a service that is down for a while."""
    with breaker(PAYMENTS, failure_threshold=5, timeout=10):
        time.sleep(0.05 + 0.2 * luck)
        if is_down and random.random() < 0.6:
            raise ConnectionError("no route to payments")


@dramatiq.actor(queue_name="mail", max_retries=1, min_backoff=500, max_backoff=2000)
def notify(luck: float, is_down: bool) -> None:
    """Sends a letter."""
    breaker(MAIL).call(time.sleep, 0.02 + 0.1 * luck)
    if luck < 0.01:
        raise ConnectionError("no such address")


@dramatiq.actor(queue_name="images", max_retries=0, memory_limit=600)
def index(luck: float, is_down: bool) -> None:
    """Takes some memory."""
    kept = bytearray(int(60e6 * luck))
    work(0.1 + luck)
    del kept


@dramatiq.actor(queue_name="reports", max_retries=0, timeout=60)
def export(luck: float, is_down: bool) -> None:
    """Takes its time."""
    kept = bytearray(int(200e6 * luck))
    work(2 + 8 * luck)
    del kept
