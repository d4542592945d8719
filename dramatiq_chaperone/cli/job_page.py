"""Jobs as rows and as a page, from what the store has of them.  Pure: the time is passed in."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from . import formats
from .output import Column

Row = Mapping[str, Any]

#: States in which a job has come to its end.
ENDED: Final = ("completed", "failed", "cancelled", "skipped")
_PAYLOAD_CHARS: Final = 600

JOB_COLUMNS: Final = (
    Column("Job", is_firm=True),
    Column("Actor"),
    Column("Queue", is_extra=True),
    Column("Status", is_firm=True),
    Column("Run", is_number=True),
    Column("Sent", is_firm=True),
    Column("Waited", is_number=True, is_extra=True),
    Column("Took", is_number=True),
    Column("Progress", is_number=True),
    Column("Memory", is_number=True, is_extra=True),
    Column("Worker", is_extra=True),
)


def job_row(job: Row, now: datetime, *, is_short: bool) -> tuple[str, ...]:
    """A job in a list.  *is_short*: for a terminal, with a short id and no date of today."""
    job_id, sent = str(job["job_id"]), job["enqueued_at"] or job["created_at"]
    return (
        formats.short_id(job_id) if is_short else job_id,
        formats.text(job["actor_name"]),
        formats.text(job["queue"]),
        str(job["status"]),
        str(job["attempt"]),
        formats.clock_near(sent, now) if is_short else formats.clock(sent),
        formats.seconds(waited_s(job, now)),
        formats.seconds(took_s(job, now)),
        formats.percent(job["progress"]),
        formats.size(job["memory_peak"] or job["memory_usage"]),
        formats.text(job["worker_id"]),
    )


def waited_s(job: Row, now: datetime) -> float | None:
    """Seconds from when the job was due to its latest run; up to *now* while it waits for its first one."""
    due: datetime | None = max((at for at in (job["enqueued_at"], job["eta"]) if at is not None), default=None)
    until: datetime | None = job["started_at"] or (now if job["status"] == "pending" else None)
    if due is None or until is None or job["attempt"] > 1:
        return None
    return max(0.0, (until - due).total_seconds())


def took_s(job: Row, now: datetime) -> float | None:
    """Seconds that the latest run took, up to *now* while it lasts."""
    if job["started_at"] is None:
        return None
    until: datetime | None = now if job["status"] in {"running", "stalled"} else job["ended_at"] or job["completed_at"] or job["failed_at"]
    return None if until is None else max(0.0, (until - job["started_at"]).total_seconds())


def state_of(job: Row, now: datetime) -> str:
    """The state in words, with what it waits for."""
    status = str(job["status"])
    if status == "pending" and job["eta"] is not None and job["eta"] > now and job["waiting_for"] is not None:
        return f"pending: {job['waiting_for']}; it is looked at again {formats.ago(job['eta'], now)}"
    if status == "pending" and job.get("queue_paused_for") is not None:
        return f"pending: {job['queue_paused_for']}; its queue is paused"
    if status == "pending" and job["retry_at"] is not None:
        return f"pending: the next try is due {formats.ago(job['retry_at'], now)}"
    if status == "pending" and job["eta"] is not None and job["eta"] > now:
        return f"pending: due {formats.ago(job['eta'], now)}"
    if status == "running" and job["timeout_at"] is not None:
        return f"running; its timeout is {formats.ago(job['timeout_at'], now)}"
    if status == "stalled":
        return f"stalled: it has missed {job['missed_heartbeats'] or 'its'} heartbeats"
    if status == "lost":
        return "lost: its worker died; the broker will deliver it again"
    return status


def facts(job: Row, now: datetime) -> list[tuple[str, str]]:
    """The head of the page: names and values; what is not known is left out."""
    pairs: list[tuple[str, str | None]] = [
        ("Job", str(job["job_id"])),
        ("Actor", formats.text(job["actor_name"])),
        ("Queue", _joined(job["queue"], f"priority {job['priority']}" if job["priority"] else None, job["broker"])),
        ("Status", state_of(job, now)),
        ("Sent", _sent(job, now)),
        ("By", _by(job)),
        ("Tenant", job["tenant"]),
        ("Arguments", arguments_of(job)),
        ("Runs", _runs(job)),
        ("Worker", _joined(job["worker_id"], job["thread"])),
        ("Waited", _known(formats.seconds(waited_s(job, now)))),
        ("Took", _known(formats.seconds(took_s(job, now)))),
        ("Progress", _progress(job)),
        ("Memory", _memory(job)),
        ("CPU", _cpu(job)),
        ("Heartbeat", _heartbeat(job, now)),
        ("Data", _json(job["metadata"])),
        ("Limits", _json(job["limits"])),
    ]
    return [(name, value) for name, value in pairs if value]


def diagnosis(job: Row, events: Sequence[Row]) -> tuple[datetime, str, list[str]] | None:
    """The last one of the latest run: when it was made, what it says, and the stack, innermost call last; None where there is none."""
    for event in reversed(events):
        data = event["data"] if isinstance(event.get("data"), Mapping) else {}
        if data.get("diagnosis") and data.get("run_id") == job["run_id"]:
            return event["created_at"], formats.text(data["diagnosis"]), [str(line) for line in data.get("evidence", {}).get("stack", ())]
    return None


def timeline(job: Row, errors: Sequence[Row], dead_letters: Sequence[Row], events: Sequence[Row]) -> list[tuple[datetime, str]]:
    """What happened when, oldest first."""
    happened: list[tuple[datetime | None, str]] = [(job["enqueued_at"], "sent"), (job["eta"], "due")]
    for error in errors:
        worker = f" in {error['worker_id']}" if error["worker_id"] else ""
        happened.append((error["started_at"], f"run {formats.text(error['attempt'])} began{worker}"))
        happened.append((error["ended_at"], f"run {formats.text(error['attempt'])} {error['outcome']}: {why(error)}"))
    if job["run_id"] not in {error["run_id"] for error in errors}:
        happened.append((job["started_at"], f"run {job['attempt']} began" + (f" in {job['worker_id']}" if job["worker_id"] else "")))
    happened += [(job["retry_at"], "the next try is due"), (job["completed_at"], "completed"), (job["failed_at"], "failed")]
    if job["status"] in {"cancelled", "skipped"}:
        happened.append((job["ended_at"] or job["updated_at"], str(job["status"])))
    happened += [(letter["failed_at"], f"dead letter: {formats.text(letter['reason'])}") for letter in dead_letters]
    happened += [(letter["retried_at"], f"sent again as {letter['retried_as']}") for letter in dead_letters if letter.get("retried_at")]
    happened += [(event["created_at"], _told(event)) for event in events]
    return sorted(((at, what) for at, what in happened if at is not None), key=lambda pair: pair[0])


def _told(event: Row) -> str:
    """Its name; of a stop who asked for it, why, and what follows; of what waits or hangs why."""
    data = event["data"] or {}
    if event["name"] == "JobDeferred":
        return f"put off: {data.get('reason')}"
    if data.get("diagnosis"):
        return f"{event['name']}: {formats.text(data['diagnosis'])}"
    by = data.get("requested_by") or data.get("killed_by") or data.get("cancelled_by")
    if not by:
        return str(event["name"])
    facts = [data.get("means"), f"by {by}", data.get("reason"), data.get("consequence")]
    return f"{event['name']}: {', '.join(str(each) for each in facts if each)}"


RUN_COLUMNS: Final = (
    Column("Run", is_number=True),
    Column("Outcome", is_firm=True),
    Column("Began", is_firm=True),
    Column("Took", is_number=True),
    Column("CPU", is_number=True, is_extra=True),
    Column("Memory", is_number=True, is_extra=True),
    Column("Worker", is_extra=True),
    Column("Why"),
)


def runs(job: Row, errors: Sequence[Row], now: datetime) -> list[tuple[str, ...]]:
    """A row for each run, oldest first; the latest one is the job's own unless it is among the *errors*."""
    rows = [
        _run(error["attempt"], error["outcome"], error, error["ended_at"], why(error))
        for error in errors
        if error["started_at"] is not None
    ]
    if job["started_at"] is not None and job["run_id"] not in {error["run_id"] for error in errors}:
        until = now if job["status"] in {"running", "stalled"} else job["ended_at"] or job["completed_at"]
        rows.append(_run(job["attempt"], job["status"], job, until, ""))
    return rows


def _run(attempt: object, outcome: object, run: Row, until: datetime | None, cause: str) -> tuple[str, ...]:
    return (
        formats.text(attempt),
        str(outcome),
        formats.clock(run["started_at"]),
        formats.seconds(None if until is None else (until - run["started_at"]).total_seconds()),
        formats.seconds(run["cpu_seconds"]),
        formats.size(run["memory_peak"]),
        formats.text(run["worker_id"]),
        formats.text(cause),
    )


VIOLATION_COLUMNS: Final = (
    Column("At", is_firm=True),
    Column("Type", is_firm=True),
    Column("Limit", is_number=True),
    Column("Actual", is_number=True),
    Column("Of"),
)


def violation(row: Row) -> tuple[str, ...]:
    """A limit that was passed."""
    is_default = bool((row["metadata"] or {}).get("is_default"))
    whose = "the job" if row["attribution"] == "exact" else "its worker"
    return (
        formats.clock(row["created_at"]),
        str(row["type"]),
        formats.amount(row["type"], row["limit"]),
        formats.amount(row["type"], row["actual"]),
        f"{whose}; nobody set this limit" if is_default else whose,
    )


CHECK_COLUMNS: Final = (Column("At", is_firm=True), Column("Health", is_firm=True), Column("Reason"))


def check(row: Row) -> tuple[str, ...]:
    """A record of a job's health."""
    return formats.clock(row["created_at"]), str(row["status"]), formats.text(row["reason"])


class Curve(NamedTuple):
    """What is drawn over time: its title, (seconds, value) oldest first, how a value is shown, the ends of its axis."""

    title: str
    points: list[tuple[float, float]]
    show: Callable[[float], str]
    axis: tuple[float | None, float | None]


def curves(heartbeats: Sequence[Row], run_id: str | None) -> list[Curve]:
    """Memory, CPU and progress of one run; of each what has two points at least."""
    mine = [each for each in heartbeats if each["run_id"] == run_id]
    done = [
        (each["created_at"].timestamp(), 100 * each["progress_current"] / each["progress_total"])
        for each in mine
        if each["progress_current"] is not None and each["progress_total"]
    ]
    found = (
        Curve("Memory", _points(mine, "memory_usage"), formats.size, (None, None)),
        Curve("CPU", _points(mine, "cpu_usage"), formats.percent, (0.0, None)),
        Curve("Progress", done, formats.percent, (0.0, 100.0)),
    )
    return [each for each in found if len(each.points) > 1]


def _points(samples: Sequence[Row], column: str) -> list[tuple[float, float]]:
    return [
        (each["created_at"].timestamp(), float(each[column])) for each in samples if each["kind"] == "sample" and each[column] is not None
    ]


def report(heartbeat: Row) -> str:
    """What a job reported, on one line."""
    current, total = heartbeat["progress_current"], heartbeat["progress_total"]
    done = None if current is None else f"{current:g} of {total:g}" if total else f"{current:g}"
    return _joined(heartbeat["kind"], done, _json(heartbeat["metadata"])) or ""


def why(error: Row) -> str:
    """Why a run did not complete, on one line."""
    if error["exception"]:
        return formats.text(f"{error['exception']}: {error['message'] or ''}".rstrip(": "))
    return formats.text(_joined(error["exit_cause"], _suspicion(error)))


def _suspicion(error: Row) -> str | None:
    """Which suspect the run is among those that were lost with its worker, and why."""
    context = error.get("context")
    suspicion = context.get("suspicion") if isinstance(context, Mapping) else None
    if not isinstance(suspicion, Mapping):
        return None
    reasons = "; ".join(suspicion.get("reasons") or ()) or "nothing speaks against it"
    return f"suspect {suspicion.get('place')} of {suspicion.get('among')}: {reasons}"


def _joined(*parts: object) -> str | None:
    return ", ".join(str(part) for part in parts if part) or None


def _known(value: str) -> str | None:
    return None if value == formats.NOTHING else value


def _sent(job: Row, now: datetime) -> str | None:
    at = job["enqueued_at"]
    return None if at is None else f"{formats.clock(at)}, {formats.ago(at, now)}"


def _by(job: Row) -> str | None:
    initiator = f"{job['initiator_type']} {job['initiator_id']}" if job["initiator_type"] else None
    return _joined(initiator, f"job {job['parent_job_id']}" if job["parent_job_id"] else None)


def _runs(job: Row) -> str:
    crashes = int(job["crashes"] or 0)
    return ", ".join(
        text
        for text in (
            str(job["attempt"]),
            f"{job['deliveries']} deliveries" if (job["deliveries"] or 0) > 1 else "",
            f"{crashes} {'crash' if crashes == 1 else 'crashes'}" if crashes else "",
        )
        if text
    )


def arguments_of(job: Row) -> str | None:
    """The arguments of a job or a dead letter, on one line; None where they are not on record."""
    payload = job["payload"]
    if isinstance(payload, str):
        payload = json.loads(payload)
    if not isinstance(payload, Mapping):
        return None
    parts = [_json(value) or "" for value in payload.get("args") or []]
    parts += [f"{name}={_json(value)}" for name, value in (payload.get("kwargs") or {}).items()]
    text = formats.cut(", ".join(parts) or "none", _PAYLOAD_CHARS)
    return text if job["payload_complete"] else f"{text}   (not complete: redacted or cut)"


def _progress(job: Row) -> str | None:
    if job["progress"] is None:
        return _joined(job["phase"])
    total = job["progress_total"]
    count = f"{job['progress_current']:g} of {total:g}" if total else None
    return _joined(f"{formats.bar(job['progress'], 20)} {job['progress']:.0f} %", count, job["phase"])


def _memory(job: Row) -> str | None:
    if job["memory_usage"] is None and job["memory_peak"] is None:
        return None
    usage = None if job["memory_usage"] is None else formats.size(job["memory_usage"])
    peak = None if job["memory_peak"] is None else f"peak {formats.size(job['memory_peak'])}"
    shared = "of the process, shared with other jobs" if job["memory_attribution"] == "shared" else None
    return _joined(usage, peak, shared)


def _cpu(job: Row) -> str | None:
    usage = None if job["cpu_usage"] is None else f"{job['cpu_usage']:.0f} % of a core"
    spent = None if job["cpu_seconds"] is None else f"{formats.seconds(job['cpu_seconds'])} in all"
    return _joined(usage, spent)


def _heartbeat(job: Row, now: datetime) -> str | None:
    at, interval = job["last_heartbeat_at"], job["heartbeat_interval"]
    promised = f"promised every {formats.seconds(interval)}" if interval else None
    return _joined(None if at is None else formats.ago(at, now), promised)


def _json(value: object) -> str | None:
    if value is None or value == {}:
        return None
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    return formats.text(json.dumps(value, ensure_ascii=False, default=str))
