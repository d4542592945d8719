"""The sixth version: events that wait to be judged, the life of alerts, their groups, and their deliveries.  Frozen, as the others."""

from __future__ import annotations

from typing import Final

COLUMNS: Final[dict[str, str]] = {
    "events": "to_judge int",
    "alerts": """
        subject name
        priority word
        is_point int
        is_settled int
        resolved_at time
        told_at time
        limited_from time
        suppressed word
        acknowledged_at time
        acknowledged_by name
    """,
    "alert_deliveries": """
        route name
        message key
        notice word
        title text
        alerts json
        next_at time
        claimed_at time
        claimed_by key
        finished_at time
        seconds real
        may_repeat int
    """,
    "silences": """
        starts_at time
        ended_at time
        notice word
    """,
}

TABLES: Final[dict[str, str]] = {
    "alert_groups": """
        series key !
        created_at time !
        updated_at time !
        route name !
        labels json
        state json
        due_at time
    """,
}

INDEXES: Final[dict[str, tuple[str, ...]]] = {
    "events": ("to_judge where to_judge is not null",),
    "alerts": ("is_settled, created_at", "created_at"),
    "alert_deliveries": ("result, next_at", "channel, result, finished_at", "finished_at", "created_at"),
    "alert_groups": ("unique series",),
}
