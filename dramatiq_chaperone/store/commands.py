"""Commands to workers, as rows: issued by anyone, claimed once by whoever carries them to their worker, answered once.

Time is the database's own clock: the one who asks and the one who answers may sit on different hosts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..records import Command
from .leases import AGO, LATER, NOW

if TYPE_CHECKING:
    from . import Store


#: The target of what any worker of the fleet can do.
FLEET: Final = "fleet"
#: Commands for the fleet that wait are looked through for one that can be carried out here, at most so many.
_FLEET_LOOK: Final = 500
#: So long a message may wait to be sent again, in seconds: the fleet may be down for a deployment.
RETRY_S: Final = 3600.0


class Answer(NamedTuple):
    """What became of a command."""

    #: 'done', 'refused', 'failed' or 'expired'; None while there is no answer yet.
    outcome: str | None
    #: What the worker said, decoded; None without an answer.  Of one for the fleet also why some worker has passed it on.
    detail: Any


def issue(store: Store, target: str, name: str, arguments: dict[str, Any], *, issued_by: str, seconds: float = 60.0) -> str:
    """Ask something of a worker.

    Parameters:
      target: its worker_id, or FLEET.
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


def kill(store: Store, job_id: str, worker_id: str, *, by: str, reason: str = "", force: bool = False, seconds: float = 60.0) -> str:
    """Ask a worker to end a job that it runs, for good.

    Parameters:
      by: who asks, for the record.
      reason: why, in words.
      force: end its process too where other jobs run in it, or nothing is known to replace it.

    Returns the id of the command; the answer tells what :meth:`.ladder.StopLadder.kill` gives.
    """
    arguments = {"job_id": job_id, "by": by[:255], "reason": reason[:1000], "force": force}
    return issue(store, worker_id, "kill", arguments, issued_by=by, seconds=seconds)


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


def claim_for_fleet(
    store: Store, workers: Sequence[str], *, limit: int, choose: Callable[[Sequence[str]], str] = lambda among: among[0]
) -> list[Command]:
    """Take commands for the fleet, oldest first, each for one of these workers: one that has not passed it on before.

    A worker that takes messages from the queue that the arguments name goes first, for it has the actors of that queue.

    Parameters:
      limit: so many at most.
      choose: picks one of several that will do.
    """
    if not workers:
        return []
    found = store.rows(
        "SELECT id, command, arguments, detail FROM {commands} WHERE target = ? AND claimed_at IS NULL"
        f" AND expires_at >= {NOW[store.kind]} ORDER BY created_at LIMIT {_FLEET_LOOK}",
        (FLEET,),
    )
    queues = _queues_of(store, workers) if found else {}
    text = f"UPDATE {{commands}} SET claimed_at = {NOW[store.kind]} WHERE id = ? AND claimed_at IS NULL AND finished_at IS NULL"
    taken: list[Command] = []
    for key, name, arguments, detail in found:
        if len(taken) == limit:
            break
        wanted = _decoded(arguments) or {}
        passed = (_decoded(detail) or {}).get("workers", ())
        among = [worker for worker in workers if worker not in passed]
        best = [worker for worker in among if wanted.get("queue") in queues.get(worker, ())]
        if among and store.transact(lambda key=key: store.execute(text, (key,)).rowcount == 1):  # type: ignore[misc]  # bound to this turn
            taken.append(Command(str(key), choose(best or among), name, wanted))
    return taken


def _queues_of(store: Store, workers: Sequence[str]) -> dict[str, list[str]]:
    marks = ", ".join("?" * len(workers))
    found = store.rows(f"SELECT worker_id, queues FROM {{workers}} WHERE worker_id IN ({marks})", tuple(workers))
    return {worker: _decoded(queues) or [] for worker, queues in found}


def passed_on(store: Store, command_id: str, detail: str | None) -> bool:
    """Let another worker try a command for the fleet.  For the inside of a transaction.  False: it is not for the fleet.

    Parameters:
      detail: JSON text with the ``reason``, and the ``workers`` that passed it on, which are added up.
    """
    lock = "" if store.kind == "sqlite" else " FOR UPDATE"
    found = store.rows("SELECT target, detail FROM {commands} WHERE id = ?" + lock, (command_id,))
    if not found or found[0][0] != FLEET:
        return False
    before, now = _decoded(found[0][1]) or {}, _decoded(detail) or {}
    now["workers"] = sorted({*before.get("workers", ()), *now.get("workers", ())})
    text = "UPDATE {commands} SET claimed_at = NULL, detail = ? WHERE id = ? AND finished_at IS NULL"
    store.execute(text, (json.dumps(now), command_id))
    return True


def give_back(store: Store, *, after_s: float) -> int:
    """Let commands for the fleet be claimed again that were claimed so long ago and not answered: whoever had one is gone.

    Returns how many.
    """
    now, then = NOW[store.kind], AGO[store.kind]
    is_stale = f"claimed_at < {then} AND finished_at IS NULL AND expires_at >= {now}"
    text = f"UPDATE {{commands}} SET claimed_at = NULL WHERE target = ? AND {is_stale}"
    return int(store.execute(text, (FLEET, after_s)).rowcount)


def answer(store: Store, command_id: str) -> Answer:
    """What has become of a command so far."""
    text = f"SELECT outcome, detail, claimed_at IS NULL AND expires_at < {NOW[store.kind]} FROM {{commands}} WHERE id = ?"
    found = store.rows(text, (command_id,))
    if not found:
        return Answer("expired", None)
    outcome, detail, is_expired = found[0]
    if outcome is None and is_expired:
        return Answer("expired", _decoded(detail))
    return Answer(outcome, _decoded(detail))


def _decoded(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value
