"""Commands to workers, as rows: issued by anyone, claimed once by whoever carries them to their worker, answered once.

Time is the database's own clock: the one who asks and the one who answers may sit on different hosts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..records import Command
from .leases import LATER, NOW

if TYPE_CHECKING:
    from . import Store


class Answer(NamedTuple):
    """What became of a command."""

    #: 'done', 'refused', 'failed' or 'expired'; None while there is no answer yet.
    outcome: str | None
    #: What the worker said, decoded; None without an answer.
    detail: Any


def issue(store: Store, target: str, name: str, arguments: dict[str, Any], *, issued_by: str, seconds: float = 60.0) -> str:
    """Ask something of a worker.

    Parameters:
      target: its worker_id.
      issued_by: who asks, for the record.
      seconds: after which nobody may claim it any more.

    Returns the id of the command.
    """

    def insert() -> str:
        values = [target, name, json.dumps(arguments), issued_by[:255], seconds]
        key = store.new_key()
        columns, marks = ("", "") if key is None else (", id", ", ?")
        returning = " RETURNING id" if store.kind == "postgres" and key is None else ""
        cursor = store.execute(
            "INSERT INTO {commands} (created_at, target, command, arguments, issued_by, expires_at"
            f"{columns}) VALUES ({NOW[store.kind]}, ?, ?, ?, ?, {LATER[store.kind]}{marks}){returning}",
            values if key is None else [*values, key],
        )
        if key is not None:
            return key
        return str(cursor.fetchone()[0] if returning else cursor.lastrowid)

    return store.transact(insert)


def claim(store: Store, targets: Sequence[str]) -> list[Command]:
    """Take the commands for these workers, oldest first.  Each is given to one caller only, and none after it has expired."""
    if not targets:
        return []
    marks = ", ".join("?" * len(targets))
    found = store.rows(
        f"SELECT id, target, command, arguments FROM {{commands}} WHERE target IN ({marks}) AND claimed_at IS NULL"
        f" AND expires_at >= {NOW[store.kind]} ORDER BY created_at",
        tuple(targets),
    )
    text = f"UPDATE {{commands}} SET claimed_at = {NOW[store.kind]} WHERE id = ? AND claimed_at IS NULL"
    taken = []
    for key, target, name, arguments in found:
        if store.transact(lambda key=key: store.execute(text, (key,)).rowcount == 1):  # type: ignore[misc]  # bound to this turn
            taken.append(Command(str(key), target, name, _decoded(arguments) or {}))
    return taken


def answer(store: Store, command_id: str) -> Answer:
    """What has become of a command so far."""
    text = f"SELECT outcome, detail, claimed_at IS NULL AND expires_at < {NOW[store.kind]} FROM {{commands}} WHERE id = ?"
    found = store.rows(text, (command_id,))
    if not found:
        return Answer("expired", None)
    outcome, detail, is_expired = found[0]
    if outcome is None and is_expired:
        return Answer("expired", None)
    return Answer(outcome, _decoded(detail))


def _decoded(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value
