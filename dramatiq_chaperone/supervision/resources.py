"""What this process uses: memory, CPU, children, open files.

On Linux it is read from ``/proc``, which costs microseconds and no import; elsewhere psutil is asked.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final, NamedTuple

_HAS_PROC: Final = Path("/proc/self/statm").exists()
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_TICKS: Final = os.sysconf("SC_CLK_TCK")


class Children(NamedTuple):
    """The descendants of this process that live now."""

    processes: int
    rss: int
    #: User and system seconds.
    cpu_seconds: float


def rss_bytes() -> int:
    """The resident memory of this process."""
    if _HAS_PROC:
        with open("/proc/self/statm", "rb", buffering=0) as file:
            return int(file.read(64).split()[1]) * _PAGE
    import psutil

    return int(psutil.Process().memory_info().rss)


def process_cpu_s() -> float:
    """User and system seconds of this process, without its children."""
    return time.process_time()


def open_files() -> int:
    """How many file descriptors this process has open."""
    if _HAS_PROC:
        return len(os.listdir("/proc/self/fd")) - 1  # one of them lists
    import psutil

    return int(psutil.Process().num_fds())


def children() -> Children:
    """What the descendants of this process use."""
    if not _HAS_PROC:
        return _children_elsewhere()
    count, rss, cpu_seconds = 0, 0, 0.0
    waiting = _children_of("self")
    while waiting:
        pid = waiting.pop()
        try:
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        count += 1
        cpu_seconds += (int(fields[11]) + int(fields[12])) / _TICKS
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
