"""Who a process is: its host, its start, and whether it still lives.

A pid means something only inside one boot of one machine and one pid namespace (:func:`host_identity`), and only
together with the start of its process, for pids are used again.  Linux is read from ``/proc``; psutil is loaded
only elsewhere.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import socket
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

#: In the cause of an end: the kernel killed it because memory ran out.
OUT_OF_MEMORY: Final = "out of memory"

_FINGERPRINTS: Final = 1_000_000
_DEAD_STATES: Final = frozenset("ZXx")
_CGROUPS: Final = Path("/sys/fs/cgroup")
_PROC: Final = Path("/proc")
_HAS_PROC: Final = Path("/proc/self/stat").exists()
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class _Stat(NamedTuple):
    state: str
    #: Clock ticks from the boot of the machine to the start of the process.
    started_ticks: int
    #: As of waitpid; only a zombie has one.
    wait_status: int


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


def exit_code(pid: int, started_at: float) -> int | None:
    """The exit code of a process that has ended and that its parent has not waited for yet; negative: the signal that ended it.

    None where it still runs, is gone for good, or the system does not tell.  A zero is not believed: it is also what those
    see who may not know.  Source: proc_pid_stat(5), field 52.
    """
    stat = _read_stat(pid) if _HAS_PROC else None
    if stat is None or stat.state not in _DEAD_STATES or stat.started_ticks % _FINGERPRINTS != _fingerprint(started_at):
        return None
    return os.waitstatus_to_exitcode(stat.wait_status) or None


def oom_kills(pid: int) -> int | None:
    """How many processes of *pid*'s cgroup the kernel has killed because memory ran out, since the cgroup is there.

    None where *pid* is gone, or the system does not count.  Source: cgroup-v2.rst, memory.events; cgroup-v1/memory.rst, memory.oom_control.
    """
    try:
        groups = (_PROC / str(pid) / "cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in groups:
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            root, name = _CGROUPS, "memory.events"
        elif "memory" in controllers.split(","):
            root, name = _CGROUPS / "memory", "memory.oom_control"
        else:
            continue
        # In a container the path may be the host's, and what is mounted the container's own.
        for place in (root / path.lstrip("/"), root):
            found = _count_in(place / name)
            if found is not None:
                return found
    return None


def _count_in(path: Path) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(" ")
        if name == "oom_kill" and value.strip().isdigit():
            return int(value)
    return None


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped, by SIGSTOP, a terminal or a debugger.  False where the system does not tell."""
    stat = _read_stat(pid) if _HAS_PROC else None
    return stat is not None and stat.state in {"T", "t"}


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal; False where the system does not tell.  Source: proc_pid_status(5)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    masks = (line.removeprefix("SigCgt:") for line in status.splitlines() if line.startswith("SigCgt:"))
    return any(int(mask, 16) >> (number - 1) & 1 for mask in masks)


def rss_bytes() -> int:
    """The resident memory of this process."""
    if _HAS_PROC:
        with open("/proc/self/statm", "rb", buffering=0) as file:
            return int(file.read(64).split()[1]) * _PAGE
    import psutil

    return int(psutil.Process().memory_info().rss)


def new_worker_id(pid: int | None = None) -> str:
    """A new name for this process (or *pid*): ``<host>-<pid>-<8 hex digits>``, at most 90 characters, safe in a file name."""
    host = re.sub(r"[^A-Za-z0-9_.-]", "_", host_name())[:64].strip(".-") or "host"
    return f"{host}-{os.getpid() if pid is None else pid}-{os.urandom(4).hex()}"


def host_of(worker_id: str) -> str:
    """The host in a name that :func:`new_worker_id` made."""
    return worker_id.rsplit("-", 2)[0]


def _read_stat(pid: int) -> _Stat | None:
    """Source: proc_pid_stat(5); the command in parentheses may hold anything, so fields count from the last ``)``."""
    if pid <= 0:
        return None
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return _Stat(fields[0].decode(), int(fields[19]), int(fields[49]))
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


def exit_cause(exit_code: int | None, *, was_oom: bool = False) -> str:
    """What ended a process, in words; ``'unknown'`` where that is not known."""
    if exit_code is None:
        return "unknown"
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    return f"{name} ({OUT_OF_MEMORY})" if was_oom and exit_code == -signal.SIGKILL else name
