"""The statements that write a batch, built from the columns for each database.

PostgreSQL takes all rows of a batch as one JSON parameter, MySQL as literals (but for child rows, which find their job's
key inside the statement, and come as JSON), SQLite one by one (``executemany``): each is the fastest way there.

The order of reports (see :data:`WINS`): a report wins over what is known if its level, first the number of retries,
then the rank of the status, is higher.  Among runs of the same delivery of retries that have not ended, the one that
shows up for the first time is the new one.  No clock is compared.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

from .columns import CLEARED, FINAL_LEVEL, JOB, Column, Rule

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_POSTGRES_CAST: Final = {
    "key": "(v->>{0})", "name": "(v->>{0})", "word": "(v->>{0})", "text": "(v->>{0})", "json": "(v->>{0})::jsonb",
    "time": "to_timestamp((v->>{0})::float8)", "int": "(v->>{0})::bigint", "real": "(v->>{0})::float8",
    "flag": "(v->>{0})::boolean", "uuid": "(v->>{0})::uuid",
}  # fmt: skip
#: Where the rows of a statement for MySQL stand: its JSON_TABLE takes longer for forty columns than all the rest.
ROWS: Final = "@rows"
_MYSQL_TYPE: Final = {
    "key": "VARCHAR(191)", "name": "VARCHAR(255)", "word": "VARCHAR(40)", "text": "LONGTEXT", "json": "LONGTEXT",
    "time": "DECIMAL(20,6)", "int": "BIGINT", "real": "DOUBLE", "flag": "VARCHAR(5)", "uuid": "VARCHAR(36)",
}  # fmt: skip
_MYSQL_VALUE: Final = {"time": "TIMESTAMP'1970-01-01 00:00:00' + INTERVAL s.c{0} SECOND", "flag": "(s.c{0} = 'true')"}


def _values(kind: str, columns: Sequence[tuple[str, str]]) -> tuple[list[str], str]:
    """The expression of each column, and where they come from."""
    if kind == "sqlite":
        return [f"?{n}" for n in range(1, len(columns) + 1)], ""
    if kind == "postgres":
        return [_POSTGRES_CAST[type_].format(n) for n, (_, type_) in enumerate(columns)], "jsonb_array_elements(?::jsonb) AS s(v)"
    table = ", ".join(f"c{n} {_MYSQL_TYPE[type_]} PATH '$[{n}]'" for n, (_, type_) in enumerate(columns))
    values = [_MYSQL_VALUE.get(type_, "s.c{0}").format(n) for n, (_, type_) in enumerate(columns)]
    return values, f"JSON_TABLE(?, '$[*]' COLUMNS({table})) AS s"


def _quoted(kind: str, names: Sequence[str]) -> str:
    mark = "`" if kind == "mysql" else '"'
    return ", ".join(f"{mark}{name}{mark}" for name in names)


#: Whether a report (e) tells the state rather than what is known (o).  The first question: is it about another run of the
#: same number of retries, which has not ended?  (A report of the run before, which ends in this number, is not.)  Two runs
#: that both ended on one level are told apart by their ids, for the outcome must not depend on which report came first.
WINS: Final = (
    f"CASE WHEN e.run_id <> o.run_id AND e.level - e.level % 32 = o.level - o.level % 32 AND e.level % 32 < {FINAL_LEVEL} "
    "AND e.run_retries * 32 = e.level - e.level % 32 "
    f"THEN o.level % 32 < {FINAL_LEVEL} AND e.attempt > 0 "
    f"ELSE e.level > o.level OR (e.level = o.level AND e.run_id > o.run_id AND e.level % 32 >= {FINAL_LEVEL}) END"
)
_OTHER_RUN: Final = "e.run_id <> o.run_id"
#: Whatever the status says: a retry may have been reported by another run of the message.
_OWN_OPEN: Final = "o.run_id IS NOT NULL AND o.ended_at IS NULL"
#: Two runs of one delivery.  One of the same retries has ended by itself, and this one starts or ends; or this one ends, long
#: after its start was reported, and one of the same retries has begun since.  Or one of any later retries has, and this one
#: succeeds, or its worker says itself that others have the message (lost).  Of a run whose worker died no end is reported, so
#: it has no failed_at either, and one that fails may have been retried already: those are in order.
_TWICE: Final = (
    "e.run_id <> o.run_id AND ("
    "(e.run_retries = o.run_retries AND o.ended_at IS NOT NULL AND o.status NOT IN ('running', 'stalled') "
    "AND (o.status <> 'lost' OR o.failed_at IS NOT NULL) AND (e.attempt > 0 OR e.ended_at IS NOT NULL)) "
    "OR (e.run_retries = o.run_retries AND e.attempt = 0 AND e.ended_at IS NOT NULL) "
    "OR (e.run_retries < o.run_retries AND e.attempt = 0 AND e.ended_at IS NOT NULL AND e.status IN ('lost', 'completed')))"
)


def _rule(column: Column, greatest: str) -> str:
    """What a column becomes; ``{wins}`` and ``{other}`` stand for the two questions above."""
    name = column.name
    own, new = f"o.{name}", f"e.{name}"
    top = f"COALESCE({greatest}({own}, {new}), {own}, {new})"
    match column.rule:
        case Rule.FILL:
            return f"COALESCE({own}, {new})"
        case Rule.MAX:
            return top
        case Rule.SUM:
            return f"{own} + {new}"
        case Rule.RUN:
            return f"CASE WHEN {{other}} THEN CASE WHEN {{wins}} THEN {new} ELSE {own} END ELSE COALESCE({new}, {own}) END"
        case Rule.RUNMAX:
            return f"CASE WHEN {{other}} THEN CASE WHEN {{wins}} THEN {new} ELSE {own} END ELSE {top} END"
        case Rule.STATUS:
            return f"CASE WHEN {{wins}} THEN {new} WHEN e.level = o.level THEN COALESCE({own}, {new}) ELSE {own} END"
        case Rule.STATUS_LAST:
            return f"CASE WHEN {{wins}} THEN {new} WHEN e.level = o.level THEN COALESCE({new}, {own}) ELSE {own} END"
        case Rule.ENDED_BY:
            return f"COALESCE({own}, CASE WHEN {{wins}} THEN {new} END)"
        case Rule.TWICE_BY:
            return f"COALESCE({own}, {new}, CASE WHEN {_TWICE} THEN e.flush END)"
        case Rule.LAST:
            return new
        case Rule.OTHER:
            return _other(name)
        case Rule.OTHER_BY:
            return f"CASE WHEN {_PUT_ASIDE} THEN e.flush WHEN {_CAME_LATE} THEN e.flush ELSE {own} END"
    raise ValueError(column)


#: The run of the row is put aside by a newer one; or a run that starts is an older one, reported late.
_PUT_ASIDE: Final = f"{{other}} AND {{wins}} AND {_OWN_OPEN}"
_CAME_LATE: Final = "{other} AND NOT ({wins}) AND e.attempt > 0 AND e.ended_at IS NULL"


def _other(name: str) -> str:
    source = name.removeprefix("other_")
    return f"CASE WHEN {_PUT_ASIDE} THEN o.{source} WHEN {_CAME_LATE} THEN e.{source} ELSE o.{name} END"


#: MySQL sees what it has assigned already: what others look at comes last.
_LAST: Final = (
    *("other_by", "other_started_at", "other_worker_id", "other_run_retries", "other_run_id"),
    *("worker_id", "started_at", "ended_at", "failed_at", "attempt", "run_retries", "status", "level", "run_id"),
)


@functools.lru_cache(maxsize=16)
def job_upsert(kind: str, columns: tuple[Column, ...], key_type: str, *, ordered: bool = True) -> str:
    """The statement that merges rows of these columns into ``supervised_jobs``.

    Parameters:
      ordered: False takes the order away, so that the last report always wins; a test shows what that breaks.
    """
    inserted = with_key([(column.name, column.type) for column in columns], key_type)
    values, source = _values(kind, inserted)
    greatest = "MAX" if kind == "sqlite" else "GREATEST"
    wins = WINS if ordered else "1 = 1"
    assignments = {column.name: _rule(column, greatest) for column in (*JOB, *CLEARED) if column.rule is not Rule.KEY}
    names = _quoted(kind, [name for name, _ in inserted])
    if kind == "mysql":
        body = ", ".join(_mysql_assignments(assignments, wins))
        return f"INSERT INTO {{supervised_jobs}} ({names}) VALUES {ROWS} ON DUPLICATE KEY UPDATE {body}"
    body = ", ".join(f"{name} = {rule.format(wins=wins, other=_OTHER_RUN)}" for name, rule in assignments.items())
    body = _replaced(body, "o.{0}".format, "excluded.{0}".format)
    rows = f"VALUES ({', '.join(values)})" if kind == "sqlite" else f"SELECT {', '.join(values)} FROM {source}"
    return f"INSERT INTO {{supervised_jobs}} AS o ({names}) {rows} ON CONFLICT (job_id) DO UPDATE SET {body}"


def _mysql_assignments(assignments: dict[str, str], wins: str) -> list[str]:
    own, new = "{{supervised_jobs}}.{0}".format, "VALUES({0})".format
    decided = f"(CASE WHEN {wins} THEN 1 ELSE 0 END) + (CASE WHEN {_OTHER_RUN} THEN 2 ELSE 0 END)"
    order = sorted(assignments, key=lambda name: _LAST.index(name) if name in _LAST else -1)
    lines = [("decided", decided), *((name, assignments[name].format(wins="o.decided % 2 = 1", other="o.decided >= 2")) for name in order)]
    return [f"{{supervised_jobs}}.{name} = {_replaced(rule, own, new)}" for name, rule in lines]


def _replaced(text: str, own: Callable[[str], str], new: Callable[[str], str]) -> str:
    """Put a database's words for the row that is there (o) and the one that comes (e) into a rule."""
    words = text.replace("(", "( ").replace(")", " )").replace(",", " ,").split(" ")
    translate = {"o": own, "e": new}
    out = []
    for word in words:
        owner, dot, name = word.partition(".")
        out.append(translate[owner](name) if dot and owner in translate else word)
    return " ".join(out)


def with_key(columns: Sequence[tuple[str, str]], key_type: str) -> list[tuple[str, str]]:
    """The columns of an insert; keys that the database does not count come last."""
    extra = {"id": [], "ulid": [("id", "key")], "uuid": [("id", "uuid")]}[key_type]
    return [*columns, *extra]


@functools.lru_cache(maxsize=64)
def child_insert(kind: str, table: str, columns: tuple[tuple[str, str], ...], key_type: str) -> str:
    """Insert rows whose first column, ``job``, is a message id: the statement looks up the job's key."""
    given = with_key(columns, key_type)
    values, source = _values(kind, given)
    targets = ["supervised_job_id", *(name if name != "later_starts" else "attempt" for name, _ in given[1:])]
    picked = ["j.id", *values[1:]]
    if table == "supervised_job_errors":
        names = [name for name, _ in given]
        picked[names.index("later_starts")] = _attempt(values[names.index("run_id")], values[names.index("later_starts")])
    text = f"INSERT INTO {{{table}}} ({_quoted(kind, targets)}) SELECT {', '.join(picked)} FROM "
    if kind == "sqlite":
        text += f"{{supervised_jobs}} j WHERE j.job_id = {values[0]}"
    else:
        text += f"{source} JOIN {{supervised_jobs}} j ON j.job_id = {values[0]}"
    return text + (_keep_first(kind, table, "run_id") if table == "supervised_job_errors" else "")


def _attempt(run_id: str, later: str) -> str:
    """Which attempt a run was: the job's count, less the runs that this slice started after it, or another has started."""
    return f"CASE WHEN j.run_id <> {run_id} AND {later} = 0 AND j.attempt > 1 THEN j.attempt - 1 ELSE j.attempt - {later} END"


def _keep_first(kind: str, table: str, key: str) -> str:
    if kind == "mysql":
        return f" ON DUPLICATE KEY UPDATE {key} = {{{table}}}.{key}"
    return f" ON CONFLICT ({key}) DO NOTHING"


@functools.lru_cache(maxsize=64)
def insert(
    kind: str, table: str, columns: tuple[tuple[str, str], ...], key_type: str, *, key: str = "", update: tuple[str, ...] = ()
) -> str:
    """Insert rows; where *key* (columns, comma-separated) is there already, assign *update* (``name = rule``)."""
    given = with_key(columns, key_type)
    values, source = _values(kind, given)
    names = _quoted(kind, [name for name, _ in given])
    alias = "" if kind == "mysql" else " AS o"
    rows = ROWS if kind == "mysql" else f"({', '.join(values)})"
    rows = f"SELECT {', '.join(values)} FROM {source}" if kind == "postgres" else f"VALUES {rows}"
    text = f"INSERT INTO {{{table}}}{alias} ({names}) {rows}"
    if not key:
        return text
    if kind == "mysql":
        quoted = [f"`{name}` = {rule}" for name, _, rule in (each.partition(" = ") for each in update)]  # `delayed` is a word of its own
        body = _replaced(", ".join(quoted), f"{{{{{table}}}}}.`{{0}}`".format, "VALUES(`{0}`)".format)
        return f"{text} ON DUPLICATE KEY UPDATE {body}"
    body = _replaced(", ".join(update), "o.{0}".format, "excluded.{0}".format)
    return f"{text} ON CONFLICT ({key}) DO UPDATE SET {body}"
