"""Who a process is: its host, its start, and whether it still lives.

A pid means something only inside one boot of one machine and one pid namespace (:func:`host_identity`), and only
together with the start of its process, for pids are used again.  Linux is read from ``/proc``; psutil is loaded
only elsewhere.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

_FINGERPRINTS: Final = 1_000_000
_DEAD_STATES: Final = frozenset("ZXx")
_HAS_PROC: Final = Path("/proc/self/stat").exists()


class _Stat(NamedTuple):
    state: str
    #: Clock ticks from the boot of the machine to the start of the process.
    started_ticks: int


def host_name() -> str:
    """The name of this machine, or of this container."""
    return socket.gethostname()


@cache
def host_identity() -> str:
    """16 hex digits that are the same for two processes only if they see each other's pids.

    Made of the boot id and the pid namespace; where the system tells neither, of the host's name and hardware address.
    """
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        parts = (boot_id, str(Path("/proc/self/ns/pid").readlink()))
    except OSError:
        import uuid

        parts = (host_name(), f"{uuid.getnode():x}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def process_started_at(pid: int) -> float | None:
    """When process *pid* started, in Unix seconds; None if there is none, or the system does not tell.

    The whole seconds are the time of day.  On Linux the fraction is not: it is a fingerprint, the ticks since the
    boot modulo one million, because the system derives the time of day of a start from the clock as it is set now,
    and a clock that is set must not make a living process look like another.  It survives columns with microseconds.
    """
    if _HAS_PROC:
        stat = _read_stat(pid)
        if stat is None:
            return None
        seconds = int(_boot_time() + stat.started_ticks / os.sysconf("SC_CLK_TCK"))
        return seconds + stat.started_ticks % _FINGERPRINTS / _FINGERPRINTS
    import psutil

    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None


def is_alive(pid: int, started_at: float) -> bool:
    """Whether the process *pid* that started at *started_at* (of :func:`process_started_at`) still lives.

    A zombie does not, nor does the successor that got its pid.  A process that exists but hides its start counts as
    alive: nobody is called dead on a guess.
    """
    if not _HAS_PROC:
        return _is_alive_elsewhere(pid, started_at)
    stat = _read_stat(pid)
    if stat is None:
        return _exists(pid)
    return stat.state not in _DEAD_STATES and stat.started_ticks % _FINGERPRINTS == _fingerprint(started_at)


def new_worker_id(pid: int | None = None) -> str:
    """A new name for this process (or *pid*): ``<host>-<pid>-<8 hex digits>``, at most 90 characters, safe in a file name."""
    host = re.sub(r"[^A-Za-z0-9_.-]", "_", host_name())[:64].strip(".-") or "host"
    return f"{host}-{os.getpid() if pid is None else pid}-{os.urandom(4).hex()}"


def _read_stat(pid: int) -> _Stat | None:
    """Source: proc_pid_stat(5); the command in parentheses may hold anything, so fields count from the last ``)``."""
    if pid <= 0:
        return None
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return _Stat(fields[0].decode(), int(fields[19]))
    except (OSError, IndexError):
        return None


def _boot_time() -> int:
    """Unix seconds; moves when the clock is set.  Source: proc_stat(5)."""
    for line in Path("/proc/stat").read_bytes().splitlines():
        if line.startswith(b"btime "):
            return int(line.split()[1])
    return 0


def _fingerprint(started_at: float) -> int:
    return round(started_at % 1 * _FINGERPRINTS) % _FINGERPRINTS


def _exists(pid: int) -> bool:
    """/proc may be mounted so that it hides the processes of others."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def _is_alive_elsewhere(pid: int, started_at: float) -> bool:
    import psutil

    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started_at) < 1.0 and bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.AccessDenied:
        return True
    except psutil.Error:
        return False
