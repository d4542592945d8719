"""What this process uses: memory, CPU, children, open files.

On Linux it is read from ``/proc``, which costs microseconds and no import; elsewhere psutil is asked.
"""

from __future__ import annotations

import os
import time
from math import inf
from pathlib import Path
from typing import Final, NamedTuple

_HAS_PROC: Final = Path("/proc/self/statm").exists()
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_TICKS: Final = os.sysconf("SC_CLK_TCK")


#: A process that is younger may not have begun its own program yet, in seconds.
SETTLED_S: Final = 0.5


class Children(NamedTuple):
    """The descendants of this process that live now."""

    processes: int
    rss: int
    #: User and system seconds.
    cpu_seconds: float


class Usage(NamedTuple):
    """What one process uses, with its descendants."""

    #: Bytes.
    rss: int
    #: User and system seconds, of descendants that have ended too.
    cpu_seconds: float
    #: Of the process alone.
    open_files: int


def usage_of(pid: int) -> Usage | None:
    """What process *pid* and its descendants use; None where it has ended.  On Linux only."""
    try:
        open_files = len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None
    found = _family([str(pid)])
    return Usage(found.rss, found.cpu_seconds, open_files) if found.processes else None


_statm: int | None = None


def quick_rss_bytes() -> int | None:
    """The resident memory of this process, in a sixth of the time: for the start of a job.  None where it is not to be had."""
    global _statm
    try:
        if _statm is None:
            if not _HAS_PROC:
                return None
            _statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        return int(os.pread(_statm, 64, 0).split(None, 2)[1]) * _PAGE
    except (OSError, ValueError, IndexError):  # somebody has closed it, and it may be another file by now
        _statm = None
        return None


def _forget() -> None:
    """In a forked child: the open file tells of the parent."""
    global _statm
    _statm = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def process_cpu_s() -> float:
    """User and system seconds of this process, without its children."""
    return time.process_time()


def starved_s(thread: int) -> float:
    """Seconds in which a thread of this process could have run and had no processor; 0 where the system does not tell.

    Source: Documentation/scheduler/sched-stats of Linux.
    """
    try:
        with open(f"/proc/self/task/{thread}/schedstat", "rb", buffering=0) as file:
            return int(file.read(100).split()[1]) / 1e9
    except (OSError, LookupError, ValueError):
        return 0.0


def open_files() -> int:
    """How many file descriptors this process has open."""
    if _HAS_PROC:
        return len(os.listdir("/proc/self/fd")) - 1  # one of them lists
    import psutil

    return int(psutil.Process().num_fds())


def children(without: int | None = None) -> Children:
    """What the descendants of this process use; not *without*, a child, and its own.

    The memory of one that has just been made is left out: until it begins a program of its own, it is that of its parent.
    """
    if not _HAS_PROC:
        return _children_elsewhere()
    found = [pid for pid in _children_of("self") if pid != str(without)]
    return _family(found, with_waited=False, settled_s=SETTLED_S)


def _family(waiting: list[str], *, with_waited: bool = True, settled_s: float = 0.0) -> Children:
    """The processes *waiting* and their descendants.

    Parameters:
      with_waited: also the CPU of those that have ended.
      settled_s: the memory of those that are younger is left out.
    """
    count, rss, cpu_seconds = 0, 0, 0.0
    latest = (time.clock_gettime(time.CLOCK_BOOTTIME) - settled_s) * _TICKS if settled_s else inf
    while waiting:
        pid = waiting.pop()
        try:
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if fields[20] == b"0":  # no address space: so has this one, but nobody has asked for its end yet
            continue
        count += 1
        cpu_seconds += sum(int(field) for field in fields[11 : 15 if with_waited else 13]) / _TICKS
        if int(fields[19]) <= latest:
            rss += int(fields[21]) * _PAGE
        waiting.extend(_children_of(pid))
    return Children(count, rss, cpu_seconds)


def _children_of(pid: str) -> list[str]:
    """Source: proc(5): children are listed by the thread that made them."""
    found: list[str] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", "rb", buffering=0) as file:
                found.extend(file.read().decode().split())
    except OSError:
        return found
    return found


def _children_elsewhere() -> Children:
    import psutil

    count, rss, cpu_seconds = 0, 0, 0.0
    for child in psutil.Process().children(recursive=True):
        try:
            times = child.cpu_times()
            rss += child.memory_info().rss
        except psutil.Error:
            continue
        count += 1
        cpu_seconds += times.user + times.system
    return Children(count, rss, cpu_seconds)
