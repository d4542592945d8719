"""What the demo shows, read from the store like anyone else would."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

from dramatiq_chaperone.cli.job_page import why
from dramatiq_chaperone.errors import StoreError

from .screen import Failure, RunningJob, Snapshot, WorkerState

if TYPE_CHECKING:
    from dramatiq_chaperone.settings import Settings
    from dramatiq_chaperone.store import Store

_RUNNING: Final = 64
_FAILURES: Final = 8
_SUBJECT_CHARS: Final = 24


class Reader:
    """Looks at a store that may not be there yet.

    Attributes:
      error: why the last look saw nothing; None if it did.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._store: Store | None = None
        self.error: StoreError | None = None

    def snapshot(self, now: datetime) -> Snapshot:
        """What the store says; nothing while it cannot be read."""
        try:
            found, self.error = self._read(now), None
        except StoreError as error:
            found, self.error = Snapshot(at=now), error
        return found

    def close(self) -> None:
        """Let the store go."""
        if self._store is not None:
            self._store.close()
            self._store = None

    def _read(self, now: datetime) -> Snapshot:
        from dramatiq_chaperone.store import open_store, queries

        if self._store is None:
            self._store = open_store(self._settings, create=False)
        return Snapshot(
            at=now,
            counts=queries.status_summary(self._store)["jobs"],
            running=[running_job(row) for row in queries.list_jobs(self._store, status=("running", "stalled"), limit=_RUNNING)[0]],
            failures=[failure(row) for row in queries.list_dead_letters(self._store, limit=_FAILURES)],
            workers=sorted((worker_state(row) for row in queries.list_workers(self._store)), key=lambda worker: worker.pid or 0),
        )


def running_job(row: Mapping[str, Any]) -> RunningJob:
    """A running job out of its row."""
    return RunningJob(
        actor=str(row["actor_name"]),
        subject=subject(row["payload"]),
        started_at=row["started_at"] or row["updated_at"],
        progress=row["progress"],
        phase=row["phase"],
        memory=row["memory_usage"],
        cpu=row["cpu_usage"],
        worker=pid_of(row["worker_id"]),
    )


def subject(payload: Any) -> str:
    """What a job works on: its first argument, of a path the last part."""
    arguments = payload.get("args") if isinstance(payload, Mapping) else None
    if not arguments:
        return ""
    first = arguments[0]
    if isinstance(first, str):
        return (PurePath(first).name if "/" in first else first)[:_SUBJECT_CHARS]
    return f"{len(first)} items" if isinstance(first, (list, Mapping)) else str(first)[:_SUBJECT_CHARS]


def pid_of(worker_id: str | None) -> str:
    """The pid in a worker's id, which is ``<host>-<pid>-<8 hex digits>``."""
    parts = (worker_id or "").rsplit("-", 2)
    return parts[1] if len(parts) == 3 else ""


def failure(row: Mapping[str, Any]) -> Failure:
    """A dead letter out of its row."""
    what = why({"exit_cause": None, **row})
    return Failure(at=row["failed_at"], actor=str(row["actor_name"]), reason=str(row["reason"] or ""), what=what)


def worker_state(row: Mapping[str, Any]) -> WorkerState:
    """A worker process out of its row."""
    return WorkerState(
        pid=row["pid"], memory=row["rss"], cpu=row["cpu"], processed=row["jobs_processed"] or 0, failed=row["jobs_failed"] or 0
    )
