"""What applies to an actor: whether it is supervised, and with which limits.  Pure, and made once an actor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from inspect import Parameter, signature, unwrap
from typing import Any, Final, NamedTuple

from dramatiq import Actor

from ..limits import JobLimits, resolve
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
        "address_space_limit",
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
#: What goes there too, for the alerts about the job.
_MARKS: Final = ("critical", "runbook_url")

#: Options that are a number of something, 0 or more.
NUMBERS: Final = frozenset(LIMITS) | {"heartbeat_interval", "kill_grace", "max_crashes", "address_space_limit"}
#: Options that say what is done at a limit.
ACTIONS: Final = frozenset({"on_timeout", "on_memory", "on_cpu", "on_stuck"})
#: Options whose values are checked where they are set.
CHECKED: Final = NUMBERS | ACTIONS | {"isolate", "breaker"}
#: What a message may say about its limits; one without any of it has those of its actor.
_LIMITING: Final = frozenset(LIMITS) | ACTIONS | {"time_limit"}

_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


class Promise(NamedTuple):
    """The heartbeats that a job owes."""

    #: Seconds between two; 0: none are owed.
    interval_s: float
    #: Whether it is made already; else only a job that reports of itself makes it.
    is_made: bool
    #: So many missed in a row make the job stuck; 0: it never is.
    threshold: int
    #: What is done with it then: ``'record'``, ``'interrupt'`` or ``'kill'``.
    on_stuck: str


class Policy(NamedTuple):
    """What applies to each message of one actor, unless the message says otherwise."""

    actor_name: str
    queue: str
    supervised: bool
    #: Names of the positional parameters, for redaction.
    parameters: tuple[str, ...]
    #: Seconds; None where one is switched off.
    heartbeat_interval: float | None
    priority: int
    tenant: str | None
    #: JSON text of the limits that the actor sets, None if it sets none.
    limits: str | None
    options: Mapping[str, Any]
    #: What a message that says nothing about it may use.
    job_limits: JobLimits
    settings: Settings
    #: Whose circuit breakers it waits for.
    services: tuple[str, ...] = ()
    #: Whether positional arguments that are plain (:func:`~dramatiq_chaperone.payload.is_plain`) are recorded as they are.
    plain_payload: bool = False

    def first(self, name: str, options: Mapping[str, Any]) -> Any:
        """The option *name* of a message with these *options*, else of its actor; None where neither has it."""
        found = options.get(name)
        return self.options.get(name) if found is None else found

    def limits_for(self, options: Mapping[str, Any]) -> JobLimits:
        """What a message with these *options* may use."""
        if _LIMITING.isdisjoint(options):
            return self.job_limits
        return resolve(self.settings, options, self.options)

    def timeout_s(self, options: Mapping[str, Any]) -> float | None:
        """The timeout of a message with these *options* in seconds; infinite: none; None: that is for TimeLimit to say."""
        return self.limits_for(options).timeout_s

    def heartbeat_interval_s(self, options: Mapping[str, Any]) -> float | None:
        """Seconds between two heartbeats that the message or its actor promises; None: no promise."""
        return _seconds(options["heartbeat_interval"]) if "heartbeat_interval" in options else self.heartbeat_interval

    def promise(self, options: Mapping[str, Any], settings: Settings) -> Promise:
        """The heartbeats that a message with these *options* owes."""
        interval, threshold, on_stuck = (self.first(name, options) for name in ("heartbeat_interval", "missed_heartbeats", "on_stuck"))
        return Promise(
            interval_s=float(settings.heartbeat_interval if interval is None else interval),
            is_made=bool(interval),
            threshold=int(settings.missed_heartbeats if threshold is None else threshold),
            on_stuck=str(settings.on_stuck if on_stuck is None else on_stuck),
        )

    def limits_of(self, options: Mapping[str, Any]) -> str | None:
        """JSON text of the limits that the message or its actor sets; None if neither does."""
        if OPTIONS.isdisjoint(options):
            return self.limits
        return _limits({**self.options, **options})


def is_supervised(actor_name: str, queue: str, settings: Settings) -> bool:
    """Whether the filters let the actor through: excluded wins; no list of supervised ones means all.

    Patterns are those of :mod:`fnmatch`, case-sensitive.
    """
    if not is_queue_supervised(queue, settings) or _matches(actor_name, settings.excluded_actors):
        return False
    return not settings.supervised_actors or _matches(actor_name, settings.supervised_actors)


def is_queue_supervised(queue: str, settings: Settings) -> bool:
    """Whether the filters let the queue through; of its actors some may be excluded all the same."""
    if _matches(queue, settings.excluded_queues):
        return False
    return not settings.supervised_queues or _matches(queue, settings.supervised_queues)


def policy_of(actor: Actor[Any, Any], settings: Settings) -> Policy:
    """The policy of an actor."""
    return _policy(actor.actor_name, actor.queue_name, actor.options, actor.fn, actor.priority, settings)


def policy_of_unknown(actor_name: str, queue: str, settings: Settings) -> Policy:
    """The policy of an actor that this process only knows by name."""
    return _policy(actor_name, queue, {}, None, 0, settings)


def _policy(actor_name: str, queue: str, options: Mapping[str, Any], function: Any, priority: int, settings: Settings) -> Policy:
    return Policy(
        actor_name=actor_name,
        queue=queue,
        supervised=bool(options.get("supervised", is_supervised(actor_name, queue, settings))),
        parameters=_parameters(function),
        heartbeat_interval=_seconds(options.get("heartbeat_interval")),
        priority=priority,
        tenant=options.get("tenant"),
        limits=_limits(options),
        options=options,
        job_limits=resolve(settings, options),
        settings=settings,
        services=services_of(options.get("breaker")),
    )


def services_of(value: Any) -> tuple[str, ...]:
    """The services that an option ``breaker`` names: one, or a list."""
    if not value:
        return ()
    return (value,) if isinstance(value, str) else tuple(dict.fromkeys(value))


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _seconds(value: Any) -> float | None:
    """0 and None switch a limit off."""
    return float(value) if value else None


def _limits(options: Mapping[str, Any]) -> str | None:
    found = {name: options[name] for name in (*LIMITS, *_MARKS) if options.get(name) is not None}
    return json.dumps(found, default=repr) if found else None


def _parameters(function: Any) -> tuple[str, ...]:
    try:
        found = signature(unwrap(function)).parameters.values()
    except (TypeError, ValueError):
        return ()
    return tuple(parameter.name for parameter in found if parameter.kind in _POSITIONAL)
