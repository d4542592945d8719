"""Class-based actors with the job's handle as methods."""

from __future__ import annotations

from typing import Any

from dramatiq import GenericActor

from . import jobs


class SupervisedActor(GenericActor):
    """A class-based actor that reports on itself; see ``dramatiq.GenericActor`` for how to declare one.

    Example::

        class Import(SupervisedActor):
            class Meta:
                queue_name = "imports"

            def perform(self, path):
                for done, row in enumerate(rows := read(path)):
                    self.report_progress(done, len(rows))
    """

    class Meta:
        abstract = True

    def heartbeat(self, metadata: dict[str, Any] | None = None, /, **more: Any) -> None:
        """:func:`dramatiq_chaperone.heartbeat`."""
        jobs.heartbeat(metadata, **more)

    def report_progress(
        self, current: float, total: float, metadata: dict[str, Any] | None = None, /, *, phase: str | None = None, **more: Any
    ) -> None:
        """:func:`dramatiq_chaperone.report_progress`."""
        jobs.report_progress(current, total, metadata, phase=phase, **more)

    def supervision_id(self) -> str | None:
        """:func:`dramatiq_chaperone.supervision_id`."""
        return jobs.supervision_id()
