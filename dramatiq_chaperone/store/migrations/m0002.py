"""The second version: what ended in each clock hour, by the process that ran it, so that nobody adds up a day's minutes.

No two processes share a row, so their writers never wait for each other.  Frozen, as the first one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..keys import new_key

if TYPE_CHECKING:
    from ..database import Connections

TABLES: Final[dict[str, str]] = {
    "hours": """
        hour_at time !
        process key !
        completed int =0
        failed int =0
    """,
}

INDEXES: Final[dict[str, tuple[str, ...]]] = {"hours": ("unique process, hour_at", "hour_at")}

#: The beginning of the hour of ``minute_at``, in UTC.
_HOUR: Final = {
    "sqlite": "substr(minute_at, 1, 14) || '00:00.000000+00:00'",
    "postgres": "date_trunc('hour', minute_at, 'UTC')",
    "mysql": "CAST(DATE_FORMAT(minute_at, '%Y-%m-%d %H:00:00') AS DATETIME(6))",
}


def fill(connections: Connections, key_type: str) -> None:
    """Take what the minutes have, unless a try before has."""
    if connections.rows("SELECT 1 FROM {hours} LIMIT 1"):
        return
    text = (
        f"SELECT {_HOUR[connections.kind]}, SUM(runs_succeeded), SUM(runs_failed + runs_interrupted + runs_killed - retries) "
        "FROM {rollups} GROUP BY 1"
    )
    for hour_at, completed, failed in connections.rows(text):
        names, values = ["hour_at", "process", "completed", "failed"], [hour_at, "before", int(completed), int(failed)]
        if (key := new_key(key_type)) is not None:
            names, values = [*names, "id"], [*values, key]
        marks = ", ".join("?" for _ in values)
        connections.execute(f"INSERT INTO {{hours}} ({', '.join(names)}) VALUES ({marks})", values)
