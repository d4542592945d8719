"""The fleet's app with a disk and a breaker of its own, and deaths in the middle of having messages wait.

Environment: DISK (a file: MB free), SHOP_QUEUE (of the actor ``buy``, which needs a shop; else the fleet's own queue, which has actors
that need nothing), DIE (a step, as they are named below: the process dies there), DEATH (a file that is made by the process that dies;
only one does).
"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import dramatiq

from dramatiq_chaperone import breaker
from dramatiq_chaperone.breakers.sharing import shared
from dramatiq_chaperone.brokers.deferring.rabbitmq import RabbitmqDeferrer
from dramatiq_chaperone.brokers.deferring.redis import RedisDeferrer
from dramatiq_chaperone.brokers.pausing.rabbitmq import RabbitmqHolder
from dramatiq_chaperone.brokers.pausing.redis import RedisHolder
from dramatiq_chaperone.supervision import disk
from dramatiq_chaperone.supervision.disk import FreeSpace
from tests.e2e.fleet_app import QUEUE, broker, note, work
from tests.waiting import wait_until

__all__ = ["broker", "buy", "work"]

disk.STEP_S = 1.0  # type: ignore[misc]
if "DISK" in os.environ:
    disk.free_space = lambda paths: FreeSpace("/data", float(Path(os.environ["DISK"]).read_text()))


def say_when_refused() -> None:
    """In the log, when this process knows that no call is let through."""
    wait_until(lambda: shared.state("shop").is_refusing, timeout_s=600)
    print("the shop is known to be closed", flush=True)


class Customer(dramatiq.Middleware):
    """A worker that has heard of the shop."""

    def after_worker_boot(self, broker: Any, worker: Any) -> None:
        threading.Thread(target=say_when_refused, daemon=True).start()


breaker("shop", timeout=1, half_open_attempts=1, success_threshold=1, max_wait_duration_in_half_open_state=2)
broker.add_middleware(Customer())


@dramatiq.actor(queue_name=os.environ.get("SHOP_QUEUE", QUEUE), breaker="shop", max_retries=3, min_backoff=50, max_backoff=200)
def buy() -> None:
    """Needs the shop, and never fails."""
    note("start")
    note("end")


def reach(step: str) -> None:
    """Say so, and die where it is this one's turn."""
    print(f"reached: {step}", flush=True)
    if os.environ.get("DIE") != step:
        return
    try:
        os.close(os.open(os.environ["DEATH"], os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def mark(owner: type, method: str, before: str, after: str) -> None:
    """These steps are before and after *method*."""
    do = getattr(owner, method)

    def marked(self: Any, *args: Any) -> Any:
        reach(before)
        done = do(self, *args)
        reach(after)
        return done

    setattr(owner, method, marked)


for deferrer in (RedisDeferrer, RabbitmqDeferrer):
    mark(deferrer, "put_off", "before", "after")
for holder in (RedisHolder, RabbitmqHolder):
    mark(holder, "give_back_one", "taken", "given")
    mark(holder, "give_back", "fetched", "returned")
    mark(holder, "stay", "paused", "looked")
    mark(holder, "resume", "resume", "resumed")


class Acknowledged(dramatiq.Middleware):
    """The step after the acknowledgement of what was put off."""

    def __init__(self) -> None:
        self.put: set[str] = set()

    def after_enqueue(self, broker: Any, message: Any, delay: int | None) -> None:
        if "deferrals" in message.options:
            self.put.add(message.message_id)

    def after_ack(self, broker: Any, message: Any) -> None:
        if message.message_id in self.put:
            reach("acked")


broker.add_middleware(Acknowledged())
