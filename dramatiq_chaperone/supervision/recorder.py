"""Where supervision writes to: this process's journal, with the settings, policies and encoding that go with it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from time import time
from typing import Any, Protocol

from dramatiq import Broker
from dramatiq.common import q_name

from .. import events, records
from ..payload import PayloadEncoder, Redactor
from ..service import internal_error
from ..settings import Settings
from .policy import Policy, policy_of, policy_of_unknown


class Sink(Protocol):
    """Takes entries: a journal, or in the process of an isolated job the way to that of its worker."""

    origin: records.Origin

    def append(self, entry: tuple[Any, ...]) -> None:
        """Write one entry."""


class Recorder:
    """One process's way to its journal."""

    def __init__(self, settings: Settings, broker: Broker, journal: Sink) -> None:
        self.settings = settings
        self.origin = journal.origin
        self.append: Callable[[tuple[Any, ...]], None] = journal.append
        self._broker = broker
        self.redactor = Redactor(settings.redact, settings.redactor)
        self._encoder = PayloadEncoder(self.redactor, max_bytes=settings.payload_max_bytes)
        #: Those that are known, by the name of their actor; :meth:`policy` finds the others.
        self.policies: dict[str, Policy] = {}

    @property
    def broker(self) -> Broker:
        """The broker of this process."""
        return self._broker

    def policy(self, actor_name: str, queue: str) -> Policy:
        """What applies to an actor; *queue* counts where this process only knows its name."""
        try:
            return self.policies[actor_name]
        except KeyError:
            pass
        actor = self._broker.actors.get(actor_name)
        if actor is None:  # it may still be declared, so this is not kept
            return policy_of_unknown(actor_name, q_name(queue), self.settings)
        policy = policy_of(actor, self.settings)
        plain = self.settings.include_payload and self._encoder.takes_plain(policy.parameters)
        return self.policies.setdefault(actor_name, policy._replace(plain_payload=plain))

    def encode_payload(self, message: Any, policy: Policy) -> tuple[str | None, bool]:
        """(JSON text, whether it may be replayed) of a message; (None, False) where payloads are not recorded."""
        if not self.settings.include_payload:
            return None, False
        return self._encoder.encode(message.args, message.kwargs, message.options, policy.parameters)

    def encode_metadata(self, metadata: dict[str, Any]) -> str | None:
        """*metadata* as JSON text, redacted and capped."""
        return self._encoder.encode_metadata(metadata)

    def secrets_of(self, message: Any, policy: Policy) -> tuple[str, ...]:
        """The values of *message* that must not show up in a text."""
        return self._encoder.secrets(message.args, message.kwargs, policy.parameters)

    def emit(self, event: Any) -> None:
        """Publish an event in this process, and store it if it is of the stored kind."""
        events.publish(event)
        try:
            if events.is_stored(type(event)):
                self.append(stored(event, self.origin.worker_id))
        except Exception as error:  # noqa: BLE001 - an event is a report, not the job
            internal_error("events", error)


def stored(event: Any, worker_id: str | None) -> tuple[Any, ...]:
    """The journal entry of an event."""
    fields = dataclasses.asdict(event)
    return (
        records.EVENT,
        time(),
        type(event).__name__,
        fields.get("job_id") or None,
        fields.get("worker_id") or worker_id,
        fields.get("service"),
        to_json(fields),
    )


def to_json(value: dict[str, Any]) -> str:
    """*value* as compact JSON text; what JSON does not know becomes text."""
    return json.dumps(value, default=str, separators=(",", ":"))
