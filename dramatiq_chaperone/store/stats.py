"""MetricsCollector: a fleet's figures for a page or a script.

What ended is read from the counters, which grow for ever and are not pruned, and from the rollups by minute and by hour; only what
has not ended is counted in the jobs themselves, by index.  So none of them takes longer with the number of jobs on record.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypedDict

from ..settings import Settings
from . import Store, counters, open_store, queries
from .queries import LIVE
from .times import aware, stored_time

#: Without a heartbeat for longer a worker does not count as healthy; seconds.
HEALTHY_S: Final = 30.0

#: A job is completed by a run that succeeds, and has failed when no retry follows one that did not; a lost run comes again.
_COMPLETED: Final = "SUM(runs_succeeded)"
_FAILED: Final = "SUM(runs_failed + runs_interrupted + runs_killed - retries)"


class Stats(TypedDict):
    """What :meth:`MetricsCollector.get_stats` gives; numbers of jobs and of worker processes."""

    #: Ever: all that have ended, pruned ones too, and all that have not.
    total_jobs: int
    #: Waiting: for a worker, for their time or a retry, or, lost with their worker, to be delivered again.
    pending: int
    #: Running, stuck ones too.
    processing: int
    #: Ever.
    completed: int
    #: Ever, for good.
    failed: int
    #: In the last 60 minutes, the current one among them.
    completed_last_hour: int
    #: The same, for good: cancelled ones count, and messages that never ran (unknown actor, too old) do not.
    failed_last_hour: int
    active_workers: int
    paused_workers: int


class HourlyThroughput(TypedDict):
    """One clock hour."""

    #: Its beginning, ``HH:MM`` in UTC.
    hour: str
    completed: int
    failed: int


class MinuteThroughput(TypedDict):
    """One minute."""

    #: ``HH:MM`` in UTC.
    minute: str
    #: Jobs that were completed or failed for good.
    count: int


class WorkerStats(TypedDict):
    """Worker processes on record; ``total`` is the sum of running, paused and stopped."""

    total: int
    running: int
    paused: int
    #: Ended, in order or not.
    stopped: int
    #: Running or paused, with a heartbeat in the last 30 s.
    healthy: int


class MetricsCollector:
    """The figures of one store.  Usable from any thread; each method reads anew.

    Parameters:
      store: default: that of the environment or chaperone.toml, opened with the first method and kept open until :meth:`close`.
      clock: what time it is, as an aware datetime.

    All methods raise StoreUnavailable or SchemaError where the store cannot be read.
    """

    def __init__(self, store: Store | None = None, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._given, self._clock = store, clock
        self._own: Store | None = None

    def close(self) -> None:
        """Close the store if it was opened here; the next method opens it again."""
        own, self._own = self._own, None
        if own is not None:
            own.close()

    def get_stats(self) -> Stats:
        """How many jobs and workers are in which state."""
        live: dict[str, int] = defaultdict(int)
        text = f"SELECT status, COUNT(*) FROM {{supervised_jobs}} WHERE status IN ({_marks(LIVE)}) GROUP BY status"
        live.update(self._rows(text, LIVE))
        ended: dict[str, int] = defaultdict(int)
        for _, labels, value in queries.counters(self._store, name=counters.JOBS):
            ended[labels["outcome"]] += int(value)
        hour_ago = (self._clock() - timedelta(minutes=59)).replace(second=0, microsecond=0)
        completed, failed = self._rows(f"SELECT {_COMPLETED}, {_FAILED} FROM {{rollups}} WHERE minute_at >= ?", (self._moment(hour_ago),))[
            0
        ]
        workers = self._workers()
        return {
            "total_jobs": sum(live.values()) + sum(ended.values()),
            "pending": live["pending"] + live["lost"],
            "processing": live["running"] + live["stalled"],
            "completed": ended["completed"],
            "failed": ended["failed"],
            "completed_last_hour": int(completed or 0),
            "failed_last_hour": int(failed or 0),
            "active_workers": workers["running"],
            "paused_workers": workers["paused"],
        }

    def get_hourly_throughput(self) -> list[HourlyThroughput]:
        """The last 24 clock hours, oldest first, the current one last; hours without jobs are there too."""
        this_hour = self._clock().astimezone(UTC).replace(minute=0, second=0, microsecond=0)
        hours = [this_hour - timedelta(hours=back) for back in reversed(range(24))]
        found = {hour: [0, 0] for hour in hours}
        text = "SELECT hour_at, SUM(completed), SUM(failed) FROM {hours} WHERE hour_at >= ? GROUP BY hour_at"
        for value, completed, failed in self._rows(text, (self._moment(hours[0]),)):
            if (at := aware(value)) in found:
                found[at] = [int(completed), int(failed)]
        return [{"hour": f"{hour:%H:%M}", "completed": completed, "failed": failed} for hour, (completed, failed) in found.items()]

    def get_recent_throughput(self) -> list[MinuteThroughput]:
        """The last 10 minutes, oldest first, the current one last; minutes without jobs are there too."""
        this_minute = self._clock().astimezone(UTC).replace(second=0, microsecond=0)
        minutes = [this_minute - timedelta(minutes=back) for back in reversed(range(10))]
        found = dict.fromkeys(minutes, 0)
        for at, completed, failed in self._by_minute(minutes[0]):
            if at in found:
                found[at] += completed + failed
        return [{"minute": f"{minute:%H:%M}", "count": count} for minute, count in found.items()]

    def get_queue_depths(self) -> dict[str, int]:
        """Jobs that wait, by queue, as the store knows them; what the broker says is in :func:`.queries.list_queues`."""
        text = "SELECT queue, COUNT(*) FROM {supervised_jobs} WHERE status = 'pending' GROUP BY queue ORDER BY queue"
        return {queue or "": count for queue, count in self._rows(text)}

    def get_average_durations(self) -> dict[str, float]:
        """Mean seconds of a run, by queue, to two places: of every run that was ever recorded, whatever its outcome."""
        sums: dict[str, list[float]] = {}
        for position, part in enumerate(("sum", "count")):
            for _, labels, value in queries.counters(self._store, name=f"{counters.DURATION}_{part}"):
                sums.setdefault(labels["queue"], [0.0, 0.0])[position] += value
        return {queue: round(seconds / runs, 2) for queue, (seconds, runs) in sorted(sums.items()) if runs}

    def get_worker_stats(self) -> WorkerStats:
        """How many workers there are in which state."""
        return self._workers()

    def _workers(self) -> WorkerStats:
        recent = self._moment(self._clock() - timedelta(seconds=HEALTHY_S))
        text = "SELECT status, COUNT(*), SUM(CASE WHEN last_heartbeat_at >= ? THEN 1 ELSE 0 END) FROM {workers} GROUP BY status"
        found: WorkerStats = {"total": 0, "running": 0, "paused": 0, "stopped": 0, "healthy": 0}
        for status, count, healthy in self._rows(text, (recent,)):
            found["total"] += count
            if status == "running":
                found["running"] += count
            elif status == "paused":
                found["paused"] += count
            else:
                found["stopped"] += count
                continue
            found["healthy"] += int(healthy)
        return found

    def _by_minute(self, since: datetime) -> list[tuple[datetime, int, int]]:
        text = f"SELECT minute_at, {_COMPLETED}, {_FAILED} FROM {{rollups}} WHERE minute_at >= ? GROUP BY minute_at"
        rows = self._rows(text, (self._moment(since),))
        return [(at, int(completed), int(failed)) for value, completed, failed in rows if (at := aware(value)) is not None]

    def _moment(self, at: datetime) -> Any:
        return stored_time(self._store.kind, at.timestamp())

    def _rows(self, text: str, values: Any = ()) -> list[tuple[Any, ...]]:
        return self._store.rows(text, values)

    @property
    def _store(self) -> Store:
        if self._given is not None:
            return self._given
        if self._own is None:
            self._own = open_store(Settings.load(), create=False)
        return self._own


def _marks(values: tuple[str, ...]) -> str:
    return ", ".join("?" for _ in values)
