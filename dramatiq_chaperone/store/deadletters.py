"""Dead letters as rows: found, claimed for a retry, purged."""

from __future__ import annotations

import functools
import json
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..errors import CommandRefused
from . import audit
from .leases import AGO, NOW
from .rows import row_key
from .times import stored_time

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from . import Store

#: States of a job that can be sent again: it has ended, and not well.
RETRIED: Final = ("failed", "cancelled")
#: The reason of a dead letter that is made at the retry of a job that has none.
NOT_KEPT: Final = "not kept"
#: A claim whose message never showed up may be renewed after so long, in seconds: until then it may still be on its way.
RENEW_S: Final = 60.0
#: Rows that are deleted in one transaction.
BATCH: Final = 500


class Claim(NamedTuple):
    """A dead letter that may be sent again, once, by whoever has this."""

    #: The key of its row.
    letter: str
    job_id: str
    actor: str
    queue: str
    args: list[Any]
    kwargs: dict[str, Any]
    #: As they were at its end, Dramatiq's bookkeeping included.
    options: dict[str, Any]
    #: The id of the message to send.
    new_id: str


def actor_of(store: Store, letter: str) -> str | None:
    """The actor of a dead letter; None where there is no such row."""
    found = store.rows("SELECT actor_name FROM {dead_letter_jobs} WHERE id = ?", (row_key(store, letter),))
    return str(found[0][0]) if found else None


def letter_of(store: Store, job_id: str) -> str:
    """The key of the latest dead letter of a job; for a job that failed and has none, as where they are not kept, one is made.

    Raises:
      CommandRefused: the job is not on record, or has not failed.
    """
    return store.transact(lambda: _letter_of(store, job_id))


def _letter_of(store: Store, job_id: str) -> str:
    lock = "" if store.kind == "sqlite" else " FOR UPDATE"
    text = "SELECT id, status, actor_name, queue, payload, payload_complete FROM {supervised_jobs} WHERE job_id = ?" + lock
    found = store.rows(text, (job_id,))
    letters = store.rows("SELECT id FROM {dead_letter_jobs} WHERE job_id = ? ORDER BY failed_at DESC, id DESC LIMIT 1", (job_id,))
    if letters:
        return str(letters[0][0])
    if not found:
        raise CommandRefused(f"job {job_id} is not on record")
    job, status, actor, queue, payload, is_complete = found[0]
    if status not in RETRIED:
        raise CommandRefused(f"job {job_id} is {status}; only one that has failed or was cancelled can be sent again")
    text = "SELECT exception, message, trace FROM {supervised_job_errors} WHERE supervised_job_id = ? ORDER BY created_at DESC LIMIT 1"
    errors = store.rows(text, (job,))
    exception, message, trace = errors[0] if errors else (None, None, None)
    known: dict[str, Any] = {
        "supervised_job_id": job, "job_id": job_id, "actor_name": actor, "queue": queue, "reason": NOT_KEPT, "exception": exception,
        "message": message, "trace": trace, "payload": json.dumps(payload) if isinstance(payload, dict) else payload,
        "payload_complete": is_complete,
    }  # fmt: skip
    key = store.new_key()
    if key is not None:
        known["id"] = key
    now, marks = NOW[store.kind], ", ".join("?" for _ in known)
    text = f"INSERT INTO {{dead_letter_jobs}} ({', '.join(known)}, created_at, failed_at) VALUES ({marks}, {now}, {now})"
    returning = " RETURNING id" if store.kind == "postgres" and key is None else ""
    cursor = store.execute(text + returning, list(known.values()))
    if key is not None:
        return key
    return str(cursor.fetchone()[0] if returning else cursor.lastrowid)


def claim(store: Store, letter: str, *, new_id: str, who: str, origin: str, again: bool = False) -> Claim:
    """Take a dead letter for a retry: of all who try, one gets it, and no other ever.

    The claim is committed before anything is sent.  Whoever dies between the two leaves a row that was retried as a job that is
    not on record, and nobody sends it by himself: *again* is for a person who has seen that.

    Parameters:
      new_id: of the message that will be sent.
      who, origin: for the audit log.
      again: renew a claim of which no message is on record a minute later.

    Raises:
      CommandRefused: it is not there, cannot be sent again, or was claimed before; the message says which.
    """
    return store.transact(lambda: _claim(store, letter, new_id, who, origin, again=again))


def _claim(store: Store, letter: str, new_id: str, who: str, origin: str, *, again: bool) -> Claim:
    lock = "" if store.kind == "sqlite" else " FOR UPDATE"
    now = NOW[store.kind]
    columns = "id, job_id, actor_name, queue, payload, payload_complete, retried_at, retried_as"
    found = store.rows(f"SELECT {columns} FROM {{dead_letter_jobs}} WHERE id = ?{lock}", (row_key(store, letter),))
    if not found:
        raise CommandRefused(f"there is no dead letter {letter}; it may be pruned")
    key, job_id, actor, queue, payload, is_complete, retried_at, retried_as = found[0]
    if retried_at is not None:
        _check_renewal(store, key, retried_at, retried_as, again=again)
    content = _complete(store, job_id, payload, is_complete=bool(is_complete))
    store.execute(f"UPDATE {{dead_letter_jobs}} SET retried_at = {now}, retried_as = ? WHERE id = ?", (new_id, key))
    audit.record(store, who, "retry dead letter", job_id, origin, f"as {new_id}")
    return Claim(letter, job_id, actor, queue, content.get("args") or [], content.get("kwargs") or {}, content.get("options") or {}, new_id)


def _check_renewal(store: Store, key: Any, retried_at: Any, retried_as: str, *, again: bool) -> None:
    status = store.rows("SELECT status FROM {supervised_jobs} WHERE job_id = ?", (retried_as,))
    if status:
        raise CommandRefused(f"it was retried already, as job {retried_as}, which is {status[0][0]}")
    if not again:
        raise CommandRefused(f"it was retried already, as job {retried_as}, which is not on record (yet)")
    text = f"SELECT 1 FROM {{dead_letter_jobs}} WHERE id = ? AND retried_at < {AGO[store.kind]}"
    if not store.rows(text, (key, RENEW_S)):
        raise CommandRefused(f"it was retried just now, as job {retried_as}; wait {RENEW_S:.0f} s for that to show up")


def _complete(store: Store, job_id: str, payload: Any, *, is_complete: bool) -> dict[str, Any]:
    """The arguments and options, if all of them are on record.  Raises CommandRefused."""
    if payload is None or not is_complete:
        text = "SELECT payload, payload_complete FROM {supervised_jobs} WHERE job_id = ?"
        found = store.rows(text, (job_id,))
        payload, is_complete = found[0] if found else (None, False)
    if payload is None:
        raise CommandRefused("its arguments are not on record")
    if not is_complete:
        raise CommandRefused("its arguments are on record redacted or cut, so it cannot be sent again from there")
    content = json.loads(payload) if isinstance(payload, str) else payload
    if not isinstance(content, dict):
        raise CommandRefused("its arguments are on record in a form that is not known")
    return content


class Picked(NamedTuple):
    """Which dead letters; None: whatever it is."""

    actor: str | None = None
    queue: str | None = None
    reason: str | None = None
    since: datetime | None = None
    before: datetime | None = None
    retried: bool | None = None
    #: A part of the exception's class, in whatever case.
    exception: str | None = None

    def conditions(self, store: Store) -> tuple[list[str], list[Any]]:
        """As they stand after WHERE, and their values."""
        found: list[str] = []
        values: list[Any] = []
        for column, value in (("actor_name", self.actor), ("queue", self.queue), ("reason", self.reason)):
            if value is not None:
                found.append(f"{column} = ?")
                values.append(value)
        for sign, at in ((">=", self.since), ("<", self.before)):
            if at is not None:
                found.append(f"failed_at {sign} ?")
                values.append(stored_time(store.kind, at.timestamp()))
        if self.exception is not None:
            found.append("LOWER(exception) LIKE ? ESCAPE '!'")
            values.append("%" + re.sub("([!%_])", r"!\1", self.exception.lower()) + "%")
        if self.retried is not None:
            found.append(f"retried_at IS {'NOT ' if self.retried else ''}NULL")
        return found, values


def count(store: Store, picked: Picked) -> int:
    """How many there are of them."""
    conditions, values = picked.conditions(store)
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    return int(store.rows(f"SELECT COUNT(*) FROM {{dead_letter_jobs}}{where}", values)[0][0])


def purge(store: Store, picked: Picked | None = None, *, letters: Sequence[str] = ()) -> Iterator[int]:
    """Delete dead letters, the oldest first, 500 in a transaction; yields how many after each.

    Parameters:
      picked: those; or
      letters: those of these keys.
    """
    if picked is None:
        for first in range(0, len(letters), BATCH):
            keys = [row_key(store, letter) for letter in letters[first : first + BATCH]]
            if deleted := store.transact(functools.partial(_delete, store, keys)):
                yield deleted
        return
    while deleted := store.transact(lambda: _delete(store, _oldest(store, picked))):
        yield deleted


def _oldest(store: Store, picked: Picked) -> list[Any]:
    conditions, values = picked.conditions(store)
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    return [key for (key,) in store.rows(f"SELECT id FROM {{dead_letter_jobs}}{where} ORDER BY failed_at LIMIT {BATCH}", values)]


def _delete(store: Store, keys: list[Any]) -> int:
    if not keys:
        return 0
    marks = ", ".join("?" for _ in keys)
    return int(store.execute(f"DELETE FROM {{dead_letter_jobs}} WHERE id IN ({marks})", sorted(keys)).rowcount)
