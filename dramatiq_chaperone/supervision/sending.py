"""What happens to a message on its way out: who sent it, and with what."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields
from time import time
from typing import Any, Final

from dramatiq.common import q_name
from dramatiq.worker import ConsumerThread

from .. import records
from ..errors import SettingsError
from ..payload import is_plain
from ..settings import Settings
from .jobs import CURRENT
from .policy import ACTIONS, NUMBERS
from .recorder import Recorder
from .slots import RunningJobs

#: What a number may be where its setting names no bound: everything but infinite, which is no JSON.
_LARGEST: Final = sys.float_info.max
_FACTS: Final = {each.name: each.metadata for each in fields(Settings)}
_HIGHEST: Final = {name: _FACTS[name].get("high", _LARGEST) if name in _FACTS else _LARGEST for name in NUMBERS}
_CHOICES: Final = {name: _FACTS[name]["choices"] for name in ACTIONS}

#: Characters of a service's name.
_SERVICE_WIDTH: Final = 191

_initiator: ContextVar[tuple[str | None, str | None]] = ContextVar("chaperone_initiator", default=(None, None))


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


def initiator() -> tuple[str | None, str | None]:
    """On whose behalf a message would be sent now: (kind, identity), both None where nobody said."""
    return _initiator.get()


def check_options(actor_name: str, options: Any) -> None:
    """Refuse what is out of its bounds, or contradicts itself: found out in the worker, it would be too late.

    Parameters:
      actor_name: whose options they are, for the error.

    Raises:
      SettingsError: a limit is not a number from 0 on, or above what the setting of its name may be; an action is none of
        its choices; ``breaker`` names no service; or both ``timeout`` (seconds) and dramatiq's ``time_limit`` (milliseconds) are set at one
        level; or
        ``isolate`` is set for what is not supervised.
    """
    for name in NUMBERS.intersection(options):
        value, highest = options[name], _HIGHEST[name]
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not (is_number and 0 <= value <= highest):
            allowed = "a number, 0 or more" if highest == _LARGEST else f"a number, 0 or more, at most {highest:,}"
            raise _refused(actor_name, name, value, allowed)
    for name in ACTIONS.intersection(options):
        if options[name] not in _CHOICES[name]:
            raise _refused(actor_name, name, options[name], f"one of {', '.join(_CHOICES[name])}")
    if "breaker" in options and not _names_services(options["breaker"]):
        allowed = f"the name of a service, of 1 to {_SERVICE_WIDTH} characters, or a list of names"
        raise _refused(actor_name, "breaker", options["breaker"], allowed)
    if options.get("isolate") and options.get("supervised") is False:
        message = f"isolate=True of {actor_name} needs its jobs to be supervised; leave supervised=False out."
        raise SettingsError(message, field="isolate", value=True, origin=f"options of {actor_name}")
    if "timeout" in options and "time_limit" in options:
        raise SettingsError(
            f"timeout={options['timeout']!r} (seconds) and time_limit={options['time_limit']!r} (milliseconds) of {actor_name} "
            "are both set; set one of them.",
            field="timeout",
            value=options["timeout"],
            origin=f"options of {actor_name}",
        )


def _names_services(value: Any) -> bool:
    if value is None:
        return True
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, (list, tuple, set, frozenset)):
        return False
    return all(isinstance(name, str) and 0 < len(name) <= _SERVICE_WIDTH and name.isprintable() for name in names)


def _refused(actor_name: str, name: str, value: Any, allowed: str) -> SettingsError:
    message = f"{name}={value!r:.200} of {actor_name} must be {allowed}."
    return SettingsError(message, field=name, value=value, origin=f"options of {actor_name}")


class Sender:
    """Records each message that this process enqueues."""

    def __init__(self, recorder: Recorder, running: RunningJobs | None = None) -> None:
        self._recorder = recorder
        self._append = recorder.append
        self._policies, self._policy = recorder.policies, recorder.policy
        self._running = running

    def enqueued(self, message: Any) -> None:
        """The broker has taken a message: a new one, a retry, or a delayed one that has come due.

        The answer of the broker has left nothing of this in the caches of the processor, so that a call costs as much as ten lines.
        """
        actor, queue, options = message.actor_name, message.queue_name, message.options
        policy = self._policies.get(actor) or self._policy(actor, queue)
        retries, eta, tenant, is_supervised = 0, None, policy.tenant, policy.supervised
        # Most messages carry nothing but the name that the broker gave them: each look into their options counts.
        if has_options := bool(options) and not (len(options) == 1 and "redis_message_id" in options):
            retries, tenant = options.get("retries", 0), options.get("tenant", tenant)
            is_supervised = options.get("supervised", is_supervised)
            eta = options["eta"] / 1000 if options.get("eta") else None
            if "deferrals" in options and self._running is not None and self._is_put_off(self._running, message.message_id):
                return
        if not is_supervised:
            return
        is_back = self._running is not None and self._is_back(self._running, message.message_id)
        payload: records.Payload
        if retries or is_back:  # its sender has recorded it
            payload, is_complete = None, False
        elif policy.plain_payload and not has_options and not message.kwargs and is_plain(message.args):
            payload, is_complete = tuple(message.args), True
        else:
            payload, is_complete = self._recorder.encode_payload(message, policy)
        initiator_type, initiator_id = _initiator.get()
        parent = CURRENT.get()
        self._append(
            (
                records.ENQUEUED,
                time(),
                message.message_id,
                actor,
                policy.queue if queue == policy.queue else q_name(queue),
                retries,
                policy.priority,
                message.message_timestamp / 1000,
                None if retries else eta,
                eta if retries else None,
                payload,
                is_complete,
                initiator_type,
                initiator_id,
                None if parent is None or parent.job_id == message.message_id else parent.job_id,
                tenant,
            )
        )

    @staticmethod
    def _is_put_off(running: RunningJobs, message_id: str) -> bool:
        """Whether the gate puts it off right now, and records that itself."""
        slot = running.find()
        return slot is not None and slot.putting_off == message_id

    @staticmethod
    def _is_back(running: RunningJobs, message_id: str) -> bool:
        """Whether this worker took the message and puts it back: a retry, or a delayed one that is due."""
        slot = running.find()
        if slot is not None and slot.awaits(message_id):
            slot.is_requeued = True
        return isinstance(threading.current_thread(), ConsumerThread)
