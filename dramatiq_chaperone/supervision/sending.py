"""What happens to a message on its way out: who sent it, and with what."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from time import time
from typing import Any

from dramatiq.common import q_name
from dramatiq.worker import ConsumerThread

from .. import records
from ..errors import SettingsError
from .jobs import current_job
from .policy import NUMBERS
from .recorder import Recorder
from .slots import RunningJobs

_initiator: ContextVar[tuple[str, str] | None] = ContextVar("chaperone_initiator", default=None)


@contextmanager
def initiated_by(kind: str, identity: object) -> Iterator[None]:
    """Say on whose behalf the messages inside the block are sent.

    Parameters:
      kind: what it is, for example ``"user"``; at most 255 characters.
      identity: which one, for example ``42``; its str() is recorded.

    A job that sends further messages passes its own initiator on only if it says so again.
    """
    token = _initiator.set((str(kind)[:255], str(identity)[:255]))
    try:
        yield
    finally:
        _initiator.reset(token)


def check_options(actor_name: str, options: Any) -> None:
    """Refuse what is no number, or contradicts itself: found out in the worker, it would be too late.

    Parameters:
      actor_name: whose options they are, for the error.

    Raises:
      SettingsError: a limit is not a number from 0 on; or both ``timeout`` (seconds) and dramatiq's ``time_limit``
        (milliseconds) are set at one level.
    """
    for name in NUMBERS.intersection(options):
        value = options[name]
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not (is_number and value >= 0):
            message = f"{name}={value!r} of {actor_name} must be a number, 0 or more."
            raise SettingsError(message, field=name, value=value, origin=f"options of {actor_name}")
    if "timeout" in options and "time_limit" in options:
        raise SettingsError(
            f"timeout={options['timeout']!r} (seconds) and time_limit={options['time_limit']!r} (milliseconds) of {actor_name} "
            "are both set; set one of them.",
            field="timeout",
            value=options["timeout"],
            origin=f"options of {actor_name}",
        )


class Sender:
    """Records each message that this process enqueues."""

    def __init__(self, recorder: Recorder, running: RunningJobs | None = None) -> None:
        self._recorder = recorder
        self._append = recorder.append
        self._running = running

    def enqueued(self, message: Any) -> None:
        """The broker has taken a message: a new one, a retry, or a delayed one that has come due."""
        policy = self._recorder.policy(message.actor_name, message.queue_name)
        options = message.options
        if not options.get("supervised", policy.supervised):
            return
        retries = options.get("retries", 0)
        is_known = bool(retries)
        if self._running is not None:
            slot = self._running.find()
            if slot is not None and slot.awaits(message.message_id):
                slot.is_requeued = True
            is_known = is_known or isinstance(threading.current_thread(), ConsumerThread)
        eta = options["eta"] / 1000 if options.get("eta") else None
        if is_known:  # its sender has recorded it
            payload, is_complete = None, False
        else:
            payload, is_complete = self._recorder.encode_payload(message, policy)
        initiator = _initiator.get() or (None, None)
        parent = current_job()
        self._append(
            (
                records.ENQUEUED,
                time(),
                message.message_id,
                message.actor_name,
                q_name(message.queue_name),
                retries,
                policy.priority,
                message.message_timestamp / 1000,
                None if retries else eta,
                eta if retries else None,
                payload,
                is_complete,
                initiator[0],
                initiator[1],
                None if parent is None or parent.job_id == message.message_id else parent.job_id,
                options.get("tenant", policy.tenant),
            )
        )
