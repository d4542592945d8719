"""Chaperone watches over every Dramatiq job: ``broker.add_middleware(Chaperone())``.

Each name is imported when it is first asked for: pytest loads the plugin in :mod:`.testing` into every test run of an
environment, and that must not bring Dramatiq along, which gevent wants to find not imported yet.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

__version__ = "0.1.0"

__all__ = [
    # The one line.
    "Chaperone",
    # Inside a job.
    "Job",
    "current_job",
    "heartbeat",
    "report_progress",
    "supervision_id",
    "track",
    "SupervisedActor",
    "JobLogFilter",
    # Where jobs are sent.
    "initiated_by",
    # Services that fail.
    "breaker",
    "breakers",
    "BreakerOpen",
    # Events.
    "on",
    # Health of running jobs.
    "health_check",
    # Alerts.
    "alert_rule",
]

if TYPE_CHECKING:
    from .alerts.rules import alert_rule
    from .breakers.errors import BreakerOpen
    from .breakers.registry import breaker, breakers
    from .events import on
    from .health import health_check
    from .middleware import Chaperone
    from .supervision.actors import SupervisedActor
    from .supervision.jobs import Job, JobLogFilter, current_job, heartbeat, report_progress, supervision_id, track
    from .supervision.sending import initiated_by

_HOMES: Final = {
    **dict.fromkeys(["Job", "JobLogFilter", "current_job", "heartbeat", "report_progress", "supervision_id", "track"], "supervision.jobs"),
    "BreakerOpen": "breakers.errors",
    "Chaperone": "middleware",
    "breaker": "breakers.registry",
    "SupervisedActor": "supervision.actors",
    "alert_rule": "alerts.rules",
    "health_check": "health",
    "initiated_by": "supervision.sending",
    "on": "events",
}

if not TYPE_CHECKING:  # which would take any name for one of ours

    def __getattr__(name):
        if name == "breakers":  # the package, which is the function of this name too
            return import_module(".breakers", __name__)
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = globals()[name] = getattr(import_module(f".{_HOMES[name]}", __name__), name)
        return found

    def __dir__():
        return sorted({*globals(), *__all__})
