"""One worker: what it is, how it ended, and what may have killed it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from dramatiq_chaperone.errors import ChaperoneError

from . import formats
from .output import Column, write_heading, write_json, write_pairs, write_table

if TYPE_CHECKING:
    from dramatiq_chaperone.store import Store

Row = Mapping[str, Any]

_CANDIDATES: Final = 10


def worker_detail(store: Store, beginning: str) -> dict[str, Any]:
    """A worker with ``end`` (what was said when it crashed or was lost, suspects included; None without) and ``lost_runs``.

    Raises ChaperoneError: there is none whose id begins like that, or there are several.
    """
    from dramatiq_chaperone.store import queries

    found = queries.workers_like(store, beginning, limit=_CANDIDATES + 1)
    worker = queries.worker_of(store, found[0]) if len(found) == 1 else None
    if worker is None:
        if found:
            raise ChaperoneError("\n".join([f"Several workers begin with {beginning}:", *(f"  {each}" for each in found)]))
        raise ChaperoneError(f"No worker {beginning} is on record; `chaperone workers --all` lists every one that is.")
    return {**worker, "end": queries.worker_end(store, worker["worker_id"]), "lost_runs": queries.lost_runs(store, worker["worker_id"])}


def write_worker(worker: Row, output: str) -> None:
    """The page, or its data."""
    if output == "json":
        write_json(worker)
        return
    now = datetime.now(UTC)
    write_pairs([(name, formats.text(value)) for name, value in _facts(worker, now) if value])
    runs = worker["lost_runs"]
    if not runs:
        return
    write_heading("What it ran when it died, the most suspect first" if len(runs) > 1 else "What it ran when it died")
    write_table(_COLUMNS, [_cells(run) for run in runs])
    stack = _context(runs[0]).get("stack")
    if stack:
        write_heading("The last known stack of the first, the innermost call last")
        click.echo("\n".join(map(str, stack)))


def _facts(worker: Row, now: datetime) -> list[tuple[str, Any]]:
    end = worker["end"] or {}
    code = worker["exit_code"]
    return [
        ("Worker", worker["worker_id"]),
        ("Status", worker["status"]),
        ("Host", f"{worker['host']}, process {worker['pid']}"),
        ("Broker", worker["broker"]),
        ("Queues", ", ".join(json.loads(worker["queues"] or "[]"))),
        ("Began", _when(worker["started_at"], now)),
        ("Heard", _when(worker["last_heartbeat_at"], now)),
        ("Ended", _when(worker["stopped_at"], now)),
        ("Cause", worker["exit_cause"] and worker["exit_cause"] + (f" (exit code {code})" if code is not None else "")),
        ("Told as", end.get("name")),
        ("Memory", formats.size(worker["rss"]) if worker["rss"] else None),
        ("Runs", f"{formats.number(worker['jobs_processed'])}, {formats.number(worker['jobs_failed'])} failed"),
    ]


def _when(at: datetime | None, now: datetime) -> str | None:
    return None if at is None else f"{formats.clock(at)}, {formats.ago(at, now)}"


_COLUMNS: Final = (
    Column("Job", is_firm=True),
    Column("Actor"),
    Column("Run", is_number=True),
    Column("Memory", is_number=True),
    Column("Progress", is_number=True, is_extra=True),
    Column("Phase", is_extra=True),
    Column("Why suspect"),
)


def _cells(run: Row) -> tuple[str, ...]:
    context = _context(run)
    reasons = (context.get("suspicion") or {}).get("reasons") or ()
    return (
        str(run["job_id"]),
        formats.text(run["actor_name"]),
        formats.text(run["attempt"]),
        formats.size(run["memory_peak"]),
        formats.percent(context.get("progress")),
        formats.text(context.get("phase")),
        formats.text("; ".join(reasons) or None),
    )


def _context(run: Row) -> Mapping[str, Any]:
    return run["context"] or {}
