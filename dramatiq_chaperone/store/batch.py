"""The fold: the entries of one journal slice become rows, one for each job.

It runs once for every entry of every job, so it is plain lists and local names; the layout of a job's row is
``columns.JOB``.  What of two reports in one slice counts is decided as the statement decides it between slices.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections import Counter
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Final

from .. import records
from ..circuits import Calls
from ..payload import payload_text
from ..records import BUCKETS
from .columns import CORE, DEAD_LEVEL, FINAL_LEVEL, JOB, POSITION, STATUS_LEVEL, WIDTH, Rule
from .counters import CPU_SUM, DURATION_FROM, DURATION_SUM, EMPTY, OUTCOME, RETRY_COUNT, WAIT_FROM, WAIT_SUM, Peaks, Statistics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Row = list[Any]

_KEY_WIDTH: Final = WIDTH["key"]
_NAME_WIDTH: Final = WIDTH["name"]
#: Characters of a message, a traceback or a JSON text; the sender has its own, lower, limits.
_TEXT_WIDTH: Final = 1_000_000
#: Years 1970 to 9999: what every database can hold.
_LAST_TIME: Final = 253_402_300_000.0

_EMPTY: Final[Row] = [None] * len(JOB)
(_JOB_ID, _CREATED, _UPDATED, _ACTOR, _QUEUE, _BROKER, _PRIORITY, _ENQUEUED, _PAYLOAD, _COMPLETE, _ITYPE, _IID, _PARENT, _TENANT,
 _RETRIES, _ATTEMPT, _DELIVERIES, _STATUS, _LEVEL, _COMPLETED, _FAILED, _RETRY, _ETA, _RUN, _RUN_RETRIES, _STARTED, _ENDED, _TIMEOUT,
 _INTERVAL, _LIMITS, _WORKER, _THREAD, _PEAK, _ATTRIBUTION, _CPU, _ENDED_BY, _FLUSH, _SAMPLED, _USAGE, _CPU_USAGE, _BEAT_AT, _METADATA,
 _PROGRESS, _CURRENT, _TOTAL, _PHASE, _HEALTH, _TWICE_BY, _WAITING) = range(len(JOB))  # fmt: skip
_RUN_COLUMNS: Final = tuple(POSITION[column.name] for column in JOB if column.rule in {Rule.RUN, Rule.RUNMAX})
for _zeroed in (_ATTEMPT, _DELIVERIES, _RETRIES):
    _EMPTY[_zeroed] = 0
_EMPTY[_LEVEL] = -1

_RUNNING: Final = STATUS_LEVEL["running"]
_SKIPPED: Final = STATUS_LEVEL["skipped"]
#: Where the moment of an end is kept.
_END_COLUMN: Final = {"completed": _COMPLETED, "skipped": _COMPLETED, "failed": _FAILED, "cancelled": _FAILED, "lost": _FAILED}


def clean(text: Any, width: int) -> Any:
    """A text as the column takes it: no NUL, no half surrogate, at most *width* characters (``…`` says that it was cut)."""
    if text is None:
        return None
    if not isinstance(text, str):
        text = str(text)
    if "\0" in text:
        text = text.replace("\0", "\ufffd")
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= width else text[: width - 1] + "…"


def clean_key(text: Any) -> str:
    """A key as the column takes it; what is too long keeps its difference from others in a digest."""
    text = clean(text, _TEXT_WIDTH) or ""
    if len(text) > _KEY_WIDTH:
        import hashlib

        text = text[: _KEY_WIDTH - 33] + "-" + hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    return str(text)


_BAD_ESCAPE: Final = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")


def clean_json(text: Any) -> Any:
    """A JSON text as every database takes it: valid, no NUL, no half surrogate; None where it is too long to keep."""
    if text is None or (isinstance(text, str) and len(text) > _TEXT_WIDTH):
        return None
    try:
        value = json.loads(text, parse_constant=str)
    except (TypeError, ValueError, RecursionError):
        value = str(text)
    return json.dumps(_clean_value(value), ensure_ascii=False)


def _clean_value(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value, _TEXT_WIDTH)
    if isinstance(value, list):
        return [_clean_value(each) for each in value]
    if isinstance(value, dict):
        return {clean(name, _NAME_WIDTH): _clean_value(each) for name, each in value.items()}
    return value


def _json(text: str | None) -> Any:
    """The same, quickly: what it looks for is rare."""
    if text is not None and (len(text) > _TEXT_WIDTH or ("\\u" in text and _BAD_ESCAPE.search(text))):
        return clean_json(text)
    return text


def _time(at: float | None) -> float | None:
    return at if at is None or 0 <= at < _LAST_TIME else None


class Batch:
    """The rows that one slice of one journal brings.

    Parameters:
      worker_id: whose journal it is.
      broker: the kind of broker that this worker is on, None where that is not known.
      flush: the number of this flush; with it the rows that it changed are found again.
    """

    def __init__(self, *, worker_id: str, broker: str | None, flush: int) -> None:
        self.jobs: dict[str, Row] = {}
        self.errors: list[Row] = []
        self.heartbeats: list[Row] = []
        self.dead_letters: list[Row] = []
        self.violations: list[Row] = []
        #: Of the worker, whose jobs cannot be told apart.
        self.shared_violations: list[Row] = []
        self.health_checks: list[Row] = []
        self.events: list[Row] = []
        self.worker: dict[str, Any] = {}
        #: Runs that are open and not their row's any more, by run_id.
        self.open_runs: dict[str, Row] = {}
        self.ended_runs: set[str] = set()
        self.statistics: Statistics = {}
        self.dropped: Counter[str] = Counter()
        #: (job_id, run_id, missed heartbeats, whether it is stuck), the last word of each run, by run_id.
        self.stuck: dict[str, Row] = {}
        #: (finished at, outcome, detail, command id)
        self.commands: list[Row] = []
        #: The last reading of each queue, by (queue, broker).
        self.queues: dict[tuple[str, str], Row] = {}
        #: The highest memory of a run that ended, by (queue, actor).
        self.peaks: Peaks = {}
        #: Limits that were passed: (queue, actor, type) to how many; those that somebody has set.
        self.passed: Counter[tuple[str, str, str]] = Counter()
        #: Jobs that an operator has ended for good, and when.
        self.cancelled: dict[str, float] = {}
        #: Messages that were sent: (queue, actor) to how many.
        self.sent: Counter[tuple[str, str]] = Counter()
        #: Jobs of which only the number is left: (queue, actor, outcome) to how many.
        self.counted_jobs: Counter[tuple[str, str, str]] = Counter()
        #: Guarded calls, by service.
        self.breaker_calls: dict[str, Calls] = {}
        self.broken = 0
        #: Whether a row needs more than the narrow statement.
        self.is_wide = False
        self._worker_id, self._broker, self._flush = worker_id, broker, flush
        self._names: dict[str, str] = {}
        self._handlers: dict[int, Callable[[Any], None]] = {
            records.ENQUEUED: self._enqueued,
            records.STARTED: self._started,
            records.ENDED: self._ended,
            records.SKIPPED: self._skipped,
            records.SAMPLED: self._sampled,
            records.HEARTBEAT: self._heartbeat,
            records.DEAD: self._dead,
            records.EVENT: self._event,
            records.WORKER: self._booted,
            records.BEAT: self._beat,
            records.WORKER_STOPPED: self._stopped,
            records.DROPPED: self._drop,
            records.COMMAND_DONE: self._command_done,
            records.COUNTED: self._counted,
            records.QUEUE_READ: self._queue_read,
            records.VIOLATED: self._violated,
            records.HEALTH_CHECKED: self._health_checked,
            records.DEFERRED: self._deferred,
            records.STUCK: self._stuck,
            records.BREAKER_CALLS: self._breaker_calls,
        }

    def add(self, entries: Iterable[tuple[Any, ...]]) -> None:
        """Fold the entries in, in their order.  An entry that makes no sense is counted and left out."""
        handlers = self._handlers
        for entry in entries:
            try:
                handlers[entry[0]](entry)
            except (LookupError, TypeError, ValueError, AttributeError):
                self.broken += 1

    def finish(self) -> None:
        """Number the attempts, now that all starts are known, and sort, so that two writers cannot deadlock."""
        for error in self.errors:
            error[3] = self.jobs[error[0]][_ATTEMPT] - error[3]
        for rows in (self.errors, self.heartbeats, self.dead_letters, self.violations, self.health_checks):
            rows.sort(key=_first)

    def job_rows(self) -> list[Row]:
        """The rows of ``supervised_jobs``, sorted by key."""
        rows = [row for _, row in sorted(self.jobs.items())]
        narrow = len(CORE)
        for row in rows:
            row[_FLUSH] = self._flush
            if row[_LEVEL] % 32 >= FINAL_LEVEL:
                row[_ENDED_BY] = self._flush
            if row[_PAYLOAD] is None:
                row[_COMPLETE] = None
        return rows if self.is_wide else [row[:narrow] for row in rows]

    def starts(self) -> dict[str, tuple[float, int, tuple[str, str]]]:
        """The runs that have begun in this slice, the last of each job: job_id to when, its retries, and (queue, actor)."""
        rows = ((job_id, row) for job_id, row in self.jobs.items() if row[_ATTEMPT] and row[_STARTED] is not None)
        return {job_id: (row[_STARTED], row[_RUN_RETRIES], (row[_QUEUE] or "", row[_ACTOR] or "")) for job_id, row in rows}

    def run_of(self, job_id: str) -> str | None:
        """The run that this slice has told of a job, the last of several."""
        row = self.jobs.get(job_id)
        return None if row is None else row[_RUN]

    # -- what entries have in common

    def _row(self, job_id: str, at: float) -> Row:
        if len(job_id) > _KEY_WIDTH or "\0" in job_id:
            job_id = clean_key(job_id)
        row = self.jobs.get(job_id)
        if row is None:
            row = _EMPTY.copy()
            row[_JOB_ID], row[_CREATED], row[_UPDATED] = job_id, at, at
            self.jobs[job_id] = row
        elif at > row[_UPDATED]:
            row[_UPDATED] = at
        return row

    def _name(self, text: Any) -> str:
        name: str = clean(text, _NAME_WIDTH)
        self._names[text] = name
        return name

    def _identify(self, row: Row, actor: str, queue: str, enqueued_at: float) -> None:
        if row[_ACTOR] is None:
            names = self._names
            row[_ACTOR] = names.get(actor) or self._name(actor)
            row[_QUEUE] = names.get(queue) or self._name(queue)
            row[_ENQUEUED] = enqueued_at if 0 <= enqueued_at < _LAST_TIME else None

    def _numbers(self, at: float, queue: str, actor: str) -> list[float]:
        names = self._names
        key = (int(at // 60), names.get(queue) or self._name(queue), names.get(actor) or self._name(actor))
        numbers = self.statistics.get(key)
        if numbers is None:
            numbers = self.statistics[key] = EMPTY.copy()
        return numbers

    @staticmethod
    def _tell(row: Row, level: int, status: str, retries: int) -> None:
        """Take a status: its level is higher than the one that the row has."""
        row[_LEVEL], row[_STATUS] = level, status
        row[_COMPLETED] = row[_FAILED] = row[_RETRY] = row[_WAITING] = None
        row[_RETRIES] = max(row[_RETRIES], retries)

    # -- the life of a job

    def _enqueued(self, entry: tuple[Any, ...]) -> None:
        _, at, job_id, actor, queue, retries, priority, enqueued_at, eta, retry_at, payload, complete, *extra = entry
        row = self._row(job_id, at)
        self._identify(row, actor, queue, enqueued_at)
        if row[_PRIORITY] is None:
            row[_PRIORITY] = priority
        if row[_PAYLOAD] is None and payload is not None:
            row[_PAYLOAD], row[_COMPLETE] = _json(payload_text(payload)), complete
        if extra != _NO_EXTRA:
            self._initiated(row, *extra)
        level = retries * 32
        if level > row[_LEVEL]:
            self._tell(row, level, "pending", retries)
            row[_RETRY] = retry_at
        elif level == row[_LEVEL] and row[_RETRY] is None:
            row[_RETRY] = retry_at
        if eta is not None:
            self._due(row, eta)
        if not retries and (eta is None or at < eta):  # else it was sent before, and comes again
            self.sent[row[_QUEUE], row[_ACTOR]] += 1
        if retry_at is not None:
            row[_RETRY] = _time(row[_RETRY])

    def _initiated(self, row: Row, initiator_type: Any, initiator_id: Any, parent: Any, tenant: Any) -> None:
        if row[_ITYPE] is None:
            row[_ITYPE], row[_IID] = clean(initiator_type, _NAME_WIDTH), clean(initiator_id, _NAME_WIDTH)
        if row[_PARENT] is None and parent is not None:
            row[_PARENT] = clean_key(parent)
        if row[_TENANT] is None:
            row[_TENANT] = clean(tenant, _NAME_WIDTH)

    def _started(self, entry: tuple[Any, ...]) -> None:
        (_, at, job_id, run_id, retries, actor, queue, thread, priority, enqueued_at, waited_s, timeout_at, interval, limits) = entry
        row = self._row(job_id, at)
        self._identify(row, actor, queue, enqueued_at)
        if row[_PRIORITY] is None:
            row[_PRIORITY] = priority
        row[_ATTEMPT] += 1
        row[_DELIVERIES] += 1
        numbers = self._numbers(at, queue, actor)
        if waited_s >= 0:
            numbers[WAIT_SUM] += waited_s
            numbers[WAIT_FROM + bisect_left(BUCKETS, waited_s)] += 1
        level = retries * 32 + _RUNNING
        if row[_RUN] is not None and row[_RUN] != run_id and not self._change_run(row, run_id, level, at, retries, is_start=True):
            return
        if level > row[_LEVEL]:
            self._tell(row, level, "running", retries)
        row[_RUN], row[_RUN_RETRIES], row[_STARTED], row[_BROKER] = run_id, retries, at, self._broker
        row[_TIMEOUT], row[_INTERVAL], row[_LIMITS] = _time(timeout_at), interval, _json(limits)
        names = self._names
        row[_WORKER], row[_THREAD] = self._worker_id, names.get(thread) or self._name(thread)

    def _change_run(self, row: Row, run_id: str, level: int, at: float, retries: int, *, is_start: bool) -> bool:
        """Another run of a message is heard of in the same slice: whether the row is about it from now on."""
        own = row[_LEVEL]
        self.is_wide = True
        if level // 32 == own // 32 and level % 32 < FINAL_LEVEL:
            wins = own % 32 < FINAL_LEVEL and is_start
        else:
            wins = level > own or (level == own and run_id > row[_RUN] and level % 32 >= FINAL_LEVEL)
        if row[_RUN_RETRIES] == retries and row[_STATUS] in {"completed", "lost"}:
            row[_TWICE_BY] = self._flush
        if wins:
            if row[_ENDED] is None:
                self._put_aside(row, row[_RUN], row[_RUN_RETRIES], row[_STARTED])
            for position in _RUN_COLUMNS:
                row[position] = None
            row[_LEVEL] = -1
        elif is_start:
            self._put_aside(row, run_id, retries, at)
        return wins

    def _put_aside(self, row: Row, run_id: str, retries: int, started_at: float) -> None:
        self.open_runs[run_id] = [run_id, row[_JOB_ID], self._worker_id, retries, started_at, row[_UPDATED]]

    def _ended(self, entry: tuple[Any, ...]) -> None:
        (_, at, job_id, run_id, retries, actor, queue, outcome, status, duration_s, cpu_seconds, peak, attribution, _, started_at,
         thread) = entry  # fmt: skip
        row = self._row(job_id, at)
        names = self._names
        if row[_ACTOR] is None:
            row[_ACTOR], row[_QUEUE] = names.get(actor) or self._name(actor), names.get(queue) or self._name(queue)
        if peak is not None:
            key = (names.get(queue) or self._name(queue), names.get(actor) or self._name(actor))
            self.peaks[key] = max(peak, self.peaks.get(key, 0))
        numbers = self._numbers(at, queue, actor)
        numbers[OUTCOME[outcome]] += 1
        numbers[DURATION_SUM] += duration_s
        numbers[DURATION_FROM + bisect_left(BUCKETS, duration_s)] += 1
        if cpu_seconds:
            numbers[CPU_SUM] += cpu_seconds
        if status is None:
            level, status_told, retries_told = (retries + 1) * 32, "pending", retries + 1
            numbers[RETRY_COUNT] += 1
        else:
            level, status_told, retries_told = retries * 32 + STATUS_LEVEL[status], status, retries
        if outcome != "succeeded":
            self._error(row, entry)
        if status == "cancelled":
            self.cancelled[row[_JOB_ID]] = at
        self.ended_runs.add(run_id)
        self.open_runs.pop(run_id, None)
        if row[_RUN] is not None and row[_RUN] != run_id and not self._change_run(row, run_id, level, at, retries, is_start=False):
            return
        if level > row[_LEVEL]:
            self._tell(row, level, status_told, retries_told)
            if status in _END_COLUMN:  # else a retry follows
                row[_END_COLUMN[status]] = at
        row[_RUN], row[_RUN_RETRIES], row[_STARTED], row[_ENDED] = run_id, retries, started_at, at
        row[_WORKER], row[_THREAD] = self._worker_id, names.get(thread) or self._name(thread)
        if cpu_seconds is not None:
            row[_CPU] = cpu_seconds
        if peak is not None:
            row[_PEAK], row[_ATTRIBUTION] = peak, attribution

    def _error(self, row: Row, entry: tuple[Any, ...]) -> None:
        (_, at, _, run_id, _, _, _, outcome, _, _, cpu_seconds, peak, _, error, started_at, thread) = entry
        exception, message, trace, context = error or (None, None, None, None)
        self.errors.append(
            [row[_JOB_ID], at, run_id, row[_ATTEMPT], outcome, self._worker_id, clean(thread, _NAME_WIDTH), started_at, at, None, peak,
             cpu_seconds, clean(exception, _NAME_WIDTH), clean(message, _TEXT_WIDTH), clean(trace, _TEXT_WIDTH), _json(context)]
        )  # fmt: skip

    def _skipped(self, entry: tuple[Any, ...]) -> None:
        _, at, job_id, retries, actor, queue, enqueued_at = entry
        row = self._row(job_id, at)
        self._identify(row, actor, queue, enqueued_at)
        row[_DELIVERIES] += 1
        level = retries * 32 + _SKIPPED
        if level > row[_LEVEL]:
            self._tell(row, level, "skipped", retries)
            row[_COMPLETED] = at

    def _deferred(self, entry: tuple[Any, ...]) -> None:
        _, at, job_id, retries, actor, queue, enqueued_at, eta, *reason = entry
        row = self._row(job_id, at)
        self._identify(row, actor, queue, enqueued_at)
        row[_DELIVERIES] += 1
        level = retries * 32
        if level > row[_LEVEL]:
            self._tell(row, level, "pending", retries)
        if level == row[_LEVEL]:
            self.is_wide = True
            row[_WAITING] = clean(reason[0] if reason else None, _NAME_WIDTH)
        self._due(row, eta)

    @staticmethod
    def _due(row: Row, eta: float) -> None:
        at = _time(eta)
        if at is not None:
            row[_ETA] = at if row[_ETA] is None else max(row[_ETA], at)

    def _dead(self, entry: tuple[Any, ...]) -> None:
        (_, at, job_id, retries, actor, queue, enqueued_at, reason, exception, message, trace, payload, complete) = entry
        row = self._row(job_id, at)
        self._identify(row, actor, queue, enqueued_at)
        level = retries * 32 + DEAD_LEVEL
        if level > row[_LEVEL]:
            self._tell(row, level, "failed", retries)
            row[_FAILED] = at
        payload = _json(payload)
        self.dead_letters.append(
            [row[_JOB_ID], row[_JOB_ID], at, at, clean(actor, _NAME_WIDTH), clean(queue, _NAME_WIDTH), clean(reason, WIDTH["word"]),
             clean(exception, _NAME_WIDTH), clean(message, _TEXT_WIDTH), clean(trace, _TEXT_WIDTH), payload,
             None if payload is None else complete]
        )  # fmt: skip

    # -- while it runs

    def _of_run(self, job_id: str, run_id: str, at: float) -> tuple[Row, bool]:
        """The job's row, and whether it is about this run."""
        row = self._row(job_id, at)
        self.is_wide = True
        if row[_RUN] is None:
            row[_RUN], row[_WORKER] = run_id, self._worker_id
            if row[_LEVEL] < _RUNNING:
                self._tell(row, _RUNNING, "running", 0)
        return row, row[_RUN] == run_id

    def _sampled(self, entry: tuple[Any, ...]) -> None:
        (_, at, job_id, run_id, usage, peak, attribution, cpu_usage, cpu_seconds, keep, span) = entry
        row, is_latest = self._of_run(job_id, run_id, at)
        if is_latest:
            row[_SAMPLED], row[_USAGE], row[_ATTRIBUTION], row[_CPU_USAGE] = at, usage, attribution, cpu_usage
            row[_CPU] = cpu_seconds if row[_CPU] is None else max(row[_CPU], cpu_seconds)
            row[_PEAK] = peak if row[_PEAK] is None else max(row[_PEAK], peak)
        if keep:
            text = None
            if span is not None:
                names = ("memory_min", "memory_max", "cpu_min", "cpu_max")
                text = json.dumps(dict(zip(names, span, strict=True)))
            self.heartbeats.append([row[_JOB_ID], at, run_id, None, "sample", usage, cpu_usage, None, None, text])

    def _heartbeat(self, entry: tuple[Any, ...]) -> None:
        (_, at, job_id, run_id, heartbeat_id, source, metadata, current, total, phase, keep) = entry
        row, is_latest = self._of_run(job_id, run_id, at)
        metadata = _json(metadata)
        if is_latest:
            row[_BEAT_AT] = at
            if metadata is not None:
                row[_METADATA] = metadata
            if current is not None:
                row[_CURRENT], row[_TOTAL] = current, total
                row[_PROGRESS] = min(100.0, max(0.0, 100.0 * current / total)) if total else 0.0
            if phase is not None:
                row[_PHASE] = clean(phase, _NAME_WIDTH)
        if keep:
            self.heartbeats.append([row[_JOB_ID], at, run_id, clean(heartbeat_id, 191), source, None, None, current, total, metadata])

    def _violated(self, entry: tuple[Any, ...]) -> None:
        (_, at, job_id, run_id, type_, limit, actual, attribution, metadata, actor, queue, is_default) = entry
        type_ = clean(type_, WIDTH["word"])
        facts = [at, run_id, type_, float(limit), float(actual), attribution, _json(metadata), self._worker_id]
        if job_id is None:
            self.shared_violations.append(facts)
        else:
            row, _ = self._of_run(job_id, run_id, at)
            self.violations.append([row[_JOB_ID], *facts])
        if not is_default:
            self.passed[clean(queue, _NAME_WIDTH), clean(actor, _NAME_WIDTH), type_] += 1

    def _health_checked(self, entry: tuple[Any, ...]) -> None:
        (_, at, job_id, run_id, status, reason, metadata, _) = entry
        row, is_latest = self._of_run(job_id, run_id, at)
        status = clean(status, WIDTH["word"])
        if is_latest:
            row[_HEALTH] = status
        self.health_checks.append([row[_JOB_ID], at, run_id, status, clean(reason, _TEXT_WIDTH), _json(metadata)])

    def _stuck(self, entry: tuple[Any, ...]) -> None:
        _, at, job_id, run_id, missed, is_stuck = entry
        row, _ = self._of_run(job_id, run_id, at)
        self.stuck[run_id] = [row[_JOB_ID], run_id, int(missed), bool(is_stuck)]

    # -- the process

    def _event(self, entry: tuple[Any, ...]) -> None:
        _, at, name, job_id, worker_id, service, data = entry
        key = None if job_id is None else clean_key(job_id)
        self.events.append([at, clean(name, WIDTH["word"]), key, worker_id, clean(service, _NAME_WIDTH), _json(data)])

    def _booted(self, entry: tuple[Any, ...]) -> None:
        _, at, broker, broker_id, queues, threads, pool, versions = entry
        self._broker = clean(broker, WIDTH["word"])
        self.worker.update(
            created_at=at, updated_at=at, started_at=at, broker=self._broker, broker_id=clean(broker_id, 191), threads=threads,
            queues=clean(queues, _TEXT_WIDTH), pool=clean(pool, _NAME_WIDTH), versions=clean(versions, _TEXT_WIDTH), status="running",
        )  # fmt: skip

    def _beat(self, entry: tuple[Any, ...]) -> None:
        _, at, beat, rss, cpu, processed, failed, gauges = entry
        self.worker.update(updated_at=at, last_heartbeat_at=at, beat=beat, rss=rss, cpu=cpu, gauges=_json(gauges))
        self.worker.update(jobs_processed=processed, jobs_failed=failed)
        self.worker.setdefault("created_at", at)
        self.worker.setdefault("status", "running")

    def _stopped(self, entry: tuple[Any, ...]) -> None:
        at = entry[1]
        self.worker.update(updated_at=at, stopped_at=at, status="stopped")
        self.worker.setdefault("created_at", at)

    def _drop(self, entry: tuple[Any, ...]) -> None:
        _, _, what, count = entry
        self.dropped[clean(what, _NAME_WIDTH)] += count

    def _command_done(self, entry: tuple[Any, ...]) -> None:
        _, at, command_id, outcome, detail = entry
        self.commands.append([at, clean(outcome, WIDTH["word"]), clean(detail, _TEXT_WIDTH), command_id])

    def _queue_read(self, entry: tuple[Any, ...]) -> None:
        _, at, broker, queue, ready, delayed, dead, oldest_at, *more = entry
        paused, paused_for = more or (None, None)
        key = (clean(queue, _NAME_WIDTH), clean(broker, WIDTH["word"]))
        self.queues[key] = [*key, ready, delayed, dead, _time(oldest_at), paused, clean(paused_for, _NAME_WIDTH), at]

    def _breaker_calls(self, entry: tuple[Any, ...]) -> None:
        calls = Calls(*entry[2:])
        service = clean_key(calls.service)
        known = self.breaker_calls.get(service)
        if known is None:
            self.breaker_calls[service] = calls._replace(service=service)
            return
        sums = {name: getattr(known, name) + getattr(calls, name) for name in ("succeeded", "failed", "refused", "ignored", "successes")}
        last, seconds = max(known.last_success_at, calls.last_success_at), known.seconds + calls.seconds
        buckets = tuple(map(sum, zip_longest(known.buckets, calls.buckets, fillvalue=0)))
        self.breaker_calls[service] = known._replace(
            **sums, last_success_at=last, window_size=calls.window_size, seconds=seconds, buckets=buckets
        )

    def _counted(self, entry: tuple[Any, ...]) -> None:
        _, at, queue, actor, outcome, status, jobs, duration_sum_s = entry
        numbers = self._numbers(at, queue, actor)
        numbers[OUTCOME[outcome]] += jobs
        numbers[DURATION_SUM] += duration_sum_s
        # How they spread is lost; their mean is known.
        numbers[DURATION_FROM + bisect_left(BUCKETS, duration_sum_s / jobs)] += jobs
        if status is not None:
            self.counted_jobs[self._names[queue], self._names[actor], status] += jobs
            self.sent[self._names[queue], self._names[actor]] += jobs


_NO_EXTRA: Final = [None, None, None, None]


def _first(row: Row) -> Any:
    return row[0]
