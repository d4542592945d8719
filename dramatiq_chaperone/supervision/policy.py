"""What applies to an actor: whether it is supervised, and with which limits.  Pure, and made once an actor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from inspect import Parameter, signature, unwrap
from math import inf
from typing import Any, Final, NamedTuple

from dramatiq import Actor

from ..settings import Settings

#: Options that actors and messages may carry; dramatiq refuses one that no middleware declares.
OPTIONS: Final = frozenset(
    {
        "supervised",
        "timeout",
        "memory_limit",
        "cpu_limit",
        "heartbeat_interval",
        "missed_heartbeats",
        "disk_space_threshold",
        "file_descriptor_limit",
        "isolate",
        "on_timeout",
        "on_memory",
        "on_cpu",
        "on_stuck",
        "kill_grace",
        "max_crashes",
        "breaker",
        "critical",
        "runbook_url",
        "tenant",
    }
)
#: What goes into the job's row as its limits.
LIMITS: Final = ("timeout", "memory_limit", "cpu_limit", "missed_heartbeats", "disk_space_threshold", "file_descriptor_limit")

#: Options that are a number of something, 0 or more.
NUMBERS: Final = frozenset(LIMITS) | {"heartbeat_interval", "kill_grace", "max_crashes"}

_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


class Policy(NamedTuple):
    """What applies to each message of one actor, unless the message says otherwise."""

    actor_name: str
    queue: str
    supervised: bool
    #: Names of the positional parameters, for redaction.
    parameters: tuple[str, ...]
    #: Seconds, infinite where one is switched off; None: no timeout of ours, so TimeLimit decides.
    timeout: float | None
    heartbeat_interval: float | None
    priority: int
    tenant: str | None
    #: JSON text of the limits that the actor sets, None if it sets none.
    limits: str | None
    options: Mapping[str, Any]

    def timeout_s(self, options: Mapping[str, Any]) -> float | None:
        """The timeout of a message with these *options*: its own, else its time_limit's turn (None), else the actor's."""
        if "timeout" in options:
            return _timeout(options["timeout"])
        return None if "time_limit" in options else self.timeout

    def heartbeat_interval_s(self, options: Mapping[str, Any]) -> float | None:
        """Seconds between two heartbeats that the message or its actor promises; None: no promise."""
        return _seconds(options["heartbeat_interval"]) if "heartbeat_interval" in options else self.heartbeat_interval

    def limits_of(self, options: Mapping[str, Any]) -> str | None:
        """JSON text of the limits that the message or its actor sets; None if neither does."""
        if OPTIONS.isdisjoint(options):
            return self.limits
        return _limits({**self.options, **options})


def is_supervised(actor_name: str, queue: str, settings: Settings) -> bool:
    """Whether the filters let the actor through: excluded wins; no list of supervised ones means all.

    Patterns are those of :mod:`fnmatch`, case-sensitive.
    """
    if _matches(queue, settings.excluded_queues) or _matches(actor_name, settings.excluded_actors):
        return False
    return (not settings.supervised_queues or _matches(queue, settings.supervised_queues)) and (
        not settings.supervised_actors or _matches(actor_name, settings.supervised_actors)
    )


def policy_of(actor: Actor[Any, Any], settings: Settings) -> Policy:
    """The policy of an actor."""
    return _policy(actor.actor_name, actor.queue_name, actor.options, actor.fn, actor.priority, settings)


def policy_of_unknown(actor_name: str, queue: str, settings: Settings) -> Policy:
    """The policy of an actor that this process only knows by name."""
    return _policy(actor_name, queue, {}, None, 0, settings)


def _policy(actor_name: str, queue: str, options: Mapping[str, Any], function: Any, priority: int, settings: Settings) -> Policy:
    timeout = None
    if "timeout" in options:
        timeout = _timeout(options["timeout"])
    elif "time_limit" not in options and settings.is_set("timeout"):
        timeout = _timeout(settings.timeout)
    return Policy(
        actor_name=actor_name,
        queue=queue,
        supervised=bool(options.get("supervised", is_supervised(actor_name, queue, settings))),
        parameters=_parameters(function),
        timeout=timeout,
        heartbeat_interval=_seconds(options.get("heartbeat_interval")),
        priority=priority,
        tenant=options.get("tenant"),
        limits=_limits(options),
        options=options,
    )


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _seconds(value: Any) -> float | None:
    """0 and None switch a limit off."""
    return float(value) if value else None


def _timeout(value: Any) -> float:
    return float(value) if value else inf


def _limits(options: Mapping[str, Any]) -> str | None:
    found = {name: options[name] for name in LIMITS if options.get(name) is not None}
    return json.dumps(found, default=repr) if found else None


def _parameters(function: Any) -> tuple[str, ...]:
    try:
        found = signature(unwrap(function)).parameters.values()
    except (TypeError, ValueError):
        return ()
    return tuple(parameter.name for parameter in found if parameter.kind in _POSITIONAL)
