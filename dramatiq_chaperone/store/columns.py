"""How reports of one job merge: the columns of ``supervised_jobs`` with their types and their rules, as one table.

The fold of a slice (:mod:`.batch`) lays its rows out in this order, and the statement that merges a row into the
database (:mod:`.statements`) is built from the same table, so that the two cannot drift apart.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

from ..records import FINAL_RANK, STATUS_RANK


class Rule(Enum):
    """What becomes of a column when a report meets what is known already."""

    #: The key itself.
    KEY = "key"
    #: One value for the message: the first known stays.
    FILL = "fill"
    #: The greatest for the message.
    MAX = "max"
    #: Added up: each report counts once.
    SUM = "sum"
    #: Belongs to the latest run: a newer run replaces it, other reports of that run update it.
    RUN = "run"
    #: The greatest within the latest run.
    RUNMAX = "runmax"
    #: Goes with the status: who tells the status tells this too.
    STATUS = "status"
    #: Likewise, but the last of those who tell the same status counts.
    STATUS_LAST = "status_last"
    #: The flush that first brought a final status; the message is counted by it.
    ENDED_BY = "ended_by"
    #: The flush that found that a second run came after one that had succeeded.
    TWICE_BY = "twice_by"
    #: Of the last report, whatever it says.
    LAST = "last"
    #: A run that is open, and is not the row's (any more): noted here for the writer, who keeps it in ``open_runs``.
    OTHER = "other"
    #: The flush that noted it.
    OTHER_BY = "other_by"


class Column(NamedTuple):
    """A column: its name, its type (see ``migrations``), its rule."""

    name: str
    type: str
    rule: Rule


#: What nearly every row has; alone it makes the narrow statement.
CORE: Final[tuple[Column, ...]] = (
    Column("job_id", "key", Rule.KEY),
    Column("created_at", "time", Rule.FILL),
    Column("updated_at", "time", Rule.MAX),
    Column("actor_name", "name", Rule.FILL),
    Column("queue", "name", Rule.FILL),
    Column("broker", "word", Rule.FILL),
    Column("priority", "int", Rule.FILL),
    Column("enqueued_at", "time", Rule.FILL),
    Column("payload", "json", Rule.FILL),
    Column("payload_complete", "flag", Rule.FILL),
    Column("initiator_type", "name", Rule.FILL),
    Column("initiator_id", "name", Rule.FILL),
    Column("parent_job_id", "key", Rule.FILL),
    Column("tenant", "name", Rule.FILL),
    Column("retries", "int", Rule.MAX),
    Column("attempt", "int", Rule.SUM),
    Column("deliveries", "int", Rule.SUM),
    Column("status", "word", Rule.STATUS),
    Column("level", "int", Rule.STATUS),
    Column("completed_at", "time", Rule.STATUS),
    Column("failed_at", "time", Rule.STATUS),
    Column("retry_at", "time", Rule.STATUS),
    Column("eta", "time", Rule.MAX),
    Column("run_id", "key", Rule.RUN),
    Column("run_retries", "int", Rule.RUN),
    Column("started_at", "time", Rule.RUN),
    Column("ended_at", "time", Rule.RUN),
    Column("timeout_at", "time", Rule.RUN),
    Column("heartbeat_interval", "real", Rule.RUN),
    Column("limits", "json", Rule.RUN),
    Column("worker_id", "key", Rule.RUN),
    Column("thread", "name", Rule.RUN),
    Column("memory_peak", "int", Rule.RUNMAX),
    Column("memory_attribution", "word", Rule.RUN),
    Column("cpu_seconds", "real", Rule.RUNMAX),
    Column("ended_by", "int", Rule.ENDED_BY),
    Column("flush", "int", Rule.LAST),
)

#: What only a run that lasts, or is in trouble, has.
MORE: Final[tuple[Column, ...]] = (
    Column("sampled_at", "time", Rule.RUNMAX),
    Column("memory_usage", "int", Rule.RUN),
    Column("cpu_usage", "real", Rule.RUN),
    Column("last_heartbeat_at", "time", Rule.RUNMAX),
    Column("metadata", "json", Rule.RUN),
    Column("progress", "real", Rule.RUN),
    Column("progress_current", "real", Rule.RUN),
    Column("progress_total", "real", Rule.RUN),
    Column("phase", "name", Rule.RUN),
    Column("health", "word", Rule.RUN),
    Column("twice_by", "int", Rule.TWICE_BY),
    Column("waiting_for", "name", Rule.STATUS_LAST),
)


#: Not in a report, but told by it: what a newer run clears, and which run was put aside.
CLEARED: Final[tuple[Column, ...]] = (
    Column("other_run_id", "key", Rule.OTHER),
    Column("other_run_retries", "int", Rule.OTHER),
    Column("other_worker_id", "key", Rule.OTHER),
    Column("other_started_at", "time", Rule.OTHER),
    Column("other_by", "int", Rule.OTHER_BY),
    Column("missed_heartbeats", "int", Rule.RUN),
)

JOB: Final = CORE + MORE
POSITION: Final[dict[str, int]] = {column.name: position for position, column in enumerate(JOB)}

_RETRY: Final = 32
#: Levels of one number of retries from here on are final.
FINAL_LEVEL: Final = 2 * FINAL_RANK
#: A dead-lettered message has failed, however it got there; who knows better (cancelled, failed, completed) is above.
DEAD_LEVEL: Final = 2 * FINAL_RANK + 1
STATUS_LEVEL: Final[dict[str, int]] = {status: 2 * rank for status, rank in STATUS_RANK.items()}


def level_of(retries: int, status: str) -> int:
    """The place of a status in a job's life: first its number of retries, then the rank of the status."""
    return retries * _RETRY + STATUS_LEVEL[status]


#: Rows of the other tables that a slice brings; ``job`` columns hold a message id that the statement turns into a key.
ERROR: Final[tuple[tuple[str, str], ...]] = (
    ("job", "key"),
    ("created_at", "time"),
    ("run_id", "key"),
    ("later_starts", "int"),
    ("outcome", "word"),
    ("worker_id", "key"),
    ("thread", "name"),
    ("started_at", "time"),
    ("ended_at", "time"),
    ("exit_cause", "name"),
    ("memory_peak", "int"),
    ("cpu_seconds", "real"),
    ("exception", "name"),
    ("message", "text"),
    ("trace", "text"),
    ("context", "json"),
)
HEARTBEAT: Final[tuple[tuple[str, str], ...]] = (
    ("job", "key"),
    ("created_at", "time"),
    ("run_id", "key"),
    ("heartbeat_id", "key"),
    ("kind", "word"),
    ("memory_usage", "int"),
    ("cpu_usage", "real"),
    ("progress_current", "real"),
    ("progress_total", "real"),
    ("metadata", "json"),
)
DEAD_LETTER: Final[tuple[tuple[str, str], ...]] = (
    ("job", "key"),
    ("job_id", "key"),
    ("created_at", "time"),
    ("failed_at", "time"),
    ("actor_name", "name"),
    ("queue", "name"),
    ("reason", "word"),
    ("exception", "name"),
    ("message", "text"),
    ("trace", "text"),
    ("payload", "json"),
    ("payload_complete", "flag"),
)
#: Of a job; where it is the worker's, without ``job``.
VIOLATION: Final[tuple[tuple[str, str], ...]] = (
    ("job", "key"),
    ("created_at", "time"),
    ("run_id", "key"),
    ("type", "word"),
    ("limit", "real"),
    ("actual", "real"),
    ("attribution", "word"),
    ("metadata", "json"),
    ("worker_id", "key"),
)
HEALTH_CHECK: Final[tuple[tuple[str, str], ...]] = (
    ("job", "key"),
    ("created_at", "time"),
    ("run_id", "key"),
    ("status", "word"),
    ("reason", "text"),
    ("metadata", "json"),
)
OPEN_RUN: Final[tuple[tuple[str, str], ...]] = (
    ("run_id", "key"),
    ("job_id", "key"),
    ("worker_id", "key"),
    ("retries", "int"),
    ("started_at", "time"),
    ("created_at", "time"),
)
EVENT: Final[tuple[tuple[str, str], ...]] = (
    ("created_at", "time"),
    ("name", "word"),
    ("job_id", "key"),
    ("worker_id", "key"),
    ("service", "name"),
    ("data", "json"),
    # 1 until the rules of alerts have seen it.
    ("to_judge", "int"),
)

QUEUE: Final[tuple[tuple[str, str], ...]] = (
    ("queue", "name"),
    ("broker", "word"),
    ("ready", "int"),
    ("delayed", "int"),
    ("dead", "int"),
    ("oldest_at", "time"),
    ("paused", "flag"),
    ("paused_for", "name"),
    ("read_at", "time"),
)
#: The later reading stays, whoever writes it; read_at is the last, for MySQL sees what it has assigned already.
QUEUE_UPDATE: Final = tuple(f"{name} = CASE WHEN e.read_at >= o.read_at THEN e.{name} ELSE o.{name} END" for name, _ in QUEUE[2:])

#: Characters that a column of this type holds.
WIDTH: Final[dict[str, int]] = {"key": 191, "name": 255, "word": 40}
