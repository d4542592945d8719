"""What the demo shows: pure functions from a snapshot of the store to a screen, a line, or a summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Final, Literal

from dramatiq_chaperone.cli import formats
from dramatiq_chaperone.cli.output import STATUS_STYLES

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

STATES: Final = ("pending", "running", "completed", "failed", "lost", "cancelled", "skipped")
#: States in which a job has come to its end.
ENDED: Final = ("completed", "failed", "cancelled", "skipped")
#: The throughput is that of so many seconds.
RATE_S: Final = 10.0
_TRAIL: Final = 40
_BAR: Final = 18


@dataclass(frozen=True)
class RunningJob:
    """A job that runs, as the store has it."""

    actor: str
    #: What it works on.
    subject: str
    started_at: datetime
    progress: float | None
    phase: str | None
    memory: int | None
    cpu: float | None
    worker: str


@dataclass(frozen=True)
class Failure:
    """A job that failed for good: a dead letter."""

    at: datetime
    actor: str
    #: Why it is one.
    reason: str
    what: str


@dataclass(frozen=True)
class WorkerState:
    """A worker process."""

    pid: int | None
    memory: int | None
    cpu: float | None
    processed: int
    failed: int


@dataclass(frozen=True)
class Snapshot:
    """What the store says at one moment."""

    at: datetime
    counts: Mapping[str, int] = field(default_factory=dict)
    running: Sequence[RunningJob] = ()
    failures: Sequence[Failure] = ()
    workers: Sequence[WorkerState] = ()

    @property
    def ended(self) -> int:
        """Jobs that have come to their end."""
        return sum(self.counts.get(state, 0) for state in ENDED)


class Throughput:
    """Jobs that end per second, from the count that the store gives again and again."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, int]] = []

    def add(self, now: float, ended: int) -> None:
        """Note the count at *now*, in monotonic seconds."""
        self._seen.append((now, ended))
        del self._seen[: -_TRAIL * 8]

    @property
    def per_second(self) -> float:
        """Over the last ten seconds."""
        recent = [(at, ended) for at, ended in self._seen if at >= self._seen[-1][0] - RATE_S]
        if len(recent) < 2:
            return 0.0
        (then, before), (now, after) = recent[0], recent[-1]
        return (after - before) / (now - then) if now > then else 0.0

    def trail(self) -> list[float]:
        """Jobs in each of the last seconds."""
        if not self._seen:
            return []
        last = self._seen[-1][0]
        steps: list[float] = [0.0] * _TRAIL
        for (_, before), (at, after) in zip(self._seen, self._seen[1:], strict=False):
            place = _TRAIL - 1 - int(last - at)
            if place >= 0:
                steps[place] += after - before
        return steps


def screen(snapshot: Snapshot, throughput: Throughput, *, elapsed_s: float, left_s: float | None, rows: int) -> RenderableType:
    """The whole screen.

    Parameters:
      left_s: seconds until the demo ends by itself, None if it does not.
      rows: lines that there are; the list of running jobs takes what the rest leaves.
    """
    from rich.console import Group
    from rich.text import Text

    end = "Ctrl-C ends it" if left_s is None else f"{max(0.0, left_s):.0f} s to go"
    head = Text.assemble(("chaperone demo", "bold"), f"  {formats.seconds(elapsed_s)}, {end}", style="dim")
    fixed = 14 + len(snapshot.workers) + 5
    return Group(
        head,
        Text(),
        _states(snapshot, throughput),
        Text(),
        _running(snapshot, max(3, rows - fixed)),
        Text(),
        _workers(snapshot.workers),
        Text(),
        _failures(snapshot, 5),
    )


def _states(snapshot: Snapshot, throughput: Throughput) -> RenderableType:
    from rich.text import Text

    shown = [state for state in STATES if snapshot.counts.get(state) or state in {"pending", "running", "completed", "failed"}]
    cells = [(f"{snapshot.counts.get(state, 0):,} {state}   ", STATUS_STYLES[state]) for state in shown]
    rate = [(f"{throughput.per_second:.0f} jobs/s  ", "bold"), (formats.sparkline(throughput.trail(), _TRAIL), "green")]
    return Text.assemble(*cells, "\n", *rate)


def _grid(*columns: tuple[str, int], right: Sequence[str] = ()) -> Table:
    """A table of columns with these titles and widths; 0 takes what is left."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", expand=True)
    for title, width in columns:
        side: Literal["left", "right"] = "right" if title in right else "left"
        table.add_column(title, width=width or None, ratio=None if width else 1, justify=side, no_wrap=True, overflow="ellipsis")
    return table


def _running(snapshot: Snapshot, limit: int) -> RenderableType:
    from rich.text import Text

    titles = (("Running", 16), ("On", 0), ("Progress", _BAR + 6), ("Phase", 9), ("Age", 8), ("Memory", 8), ("CPU", 5), ("Worker", 7))
    table = _grid(*titles, right=("Age", "Memory", "CPU", "Worker"))
    jobs = sorted(snapshot.running, key=lambda job: job.started_at)
    for job in jobs[:limit]:
        age = formats.seconds(max(0.0, (snapshot.at - job.started_at).total_seconds()))
        table.add_row(
            Text(job.actor, style="cyan"),
            Text(job.subject),
            _progress(job.progress),
            Text(job.phase or ""),
            age,
            formats.size(job.memory),
            formats.percent(job.cpu),
            job.worker,
        )
    for _ in range(min(limit, 8) - len(jobs)):
        table.add_row()
    return table


def _progress(progress: float | None) -> Text:
    from rich.text import Text

    if progress is None:
        return Text()
    line = formats.bar(progress, _BAR)
    full = line.rstrip(formats.BAR_REST)
    return Text.assemble((full, "green"), (line[len(full) :], "bright_black"), (f" {progress:3.0f} %", "green"))


def _workers(workers: Sequence[WorkerState]) -> RenderableType:
    titles = (("Worker", 16), ("Runs", 8), ("Failed", 8), ("Memory", 8), ("CPU", 5), ("", 0))
    table = _grid(*titles, right=("Runs", "Failed", "Memory", "CPU"))
    for each in workers:
        pid = formats.text(each.pid)
        table.add_row(pid, f"{each.processed:,}", f"{each.failed:,}", formats.size(each.memory), formats.percent(each.cpu))
    return table


def _failures(snapshot: Snapshot, limit: int) -> RenderableType:
    from rich.text import Text

    table = _grid(("Dead letters", 16), ("Actor", 12), ("Why", 17), ("Error", 0))
    for each in snapshot.failures[:limit]:
        when = formats.ago(each.at, snapshot.at)
        table.add_row(Text(when, style="dim"), Text(each.actor, style="red"), each.reason, Text(formats.text(each.what)))
    return table


def line(snapshot: Snapshot, throughput: Throughput, *, elapsed_s: float) -> str:
    """The same in a line, for a log."""
    counts = ", ".join(f"{snapshot.counts[state]:,} {state}" for state in STATES if snapshot.counts.get(state))
    text = f"{elapsed_s:4.0f} s: {counts or 'nothing yet'}; {throughput.per_second:.0f} jobs/s"
    slow = [f"{job.actor} {job.subject} {job.progress:.0f} %" for job in snapshot.running if job.progress is not None]
    return f"{text}; {', '.join(slow[:3])}" if slow else text


def summary(snapshot: Snapshot, *, elapsed_s: float) -> list[str]:
    """What the demo says at its end."""
    counts = [f"{snapshot.counts[state]:,} {state}" for state in STATES if snapshot.counts.get(state)]
    rate = snapshot.ended / elapsed_s if elapsed_s > 0 else 0.0
    processed, failed = sum(each.processed for each in snapshot.workers), sum(each.failed for each in snapshot.workers)
    return [
        f"{sum(snapshot.counts.values()):,} jobs are on record: {', '.join(counts) or 'none'}.",
        f"{snapshot.ended:,} of them ended within {formats.seconds(elapsed_s)}, {rate:.0f} a second.",
        f"{len(snapshot.workers)} worker processes made {processed:,} runs, {failed:,} of which did not succeed.",
    ]
