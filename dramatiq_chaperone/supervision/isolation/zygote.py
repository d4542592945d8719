"""The zygote: a process of one thread that has imported the app once, and forks a child for each isolated job.

It knows what its worker cannot: the exact end of each child, and what it used.  It ends with its worker, and its
children end with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import logging
import os
import pickle
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from . import child, wire

logger = logging.getLogger("dramatiq_chaperone.isolation")

#: How often it looks whether its worker still lives, in seconds; mostly it hears of it at once.
WATCH_S: Final = 0.5
_PR_SET_PDEATHSIG: Final = 1
#: What our own code in a child exits with where it cannot report.
EXIT_BROKEN: Final = 70

_libc = ctypes.CDLL(None)


def serve(boot: dict[str, Any], homes: Callable[[], Sequence[child.Home]]) -> None:
    """Run as the zygote until the worker ends.

    Parameters:
      boot: what :class:`~.Isolation` wrote: the worker's pid, the descriptor of the socket to it, and what to import.
      homes: every broker of the app with a Chaperone, once it is imported.
    """
    signal.signal(signal.SIGCHLD, _nothing)
    _listen()
    control = socket.socket(fileno=boot["control"])
    os.set_inheritable(control.fileno(), False)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    sys.argv[:] = boot["argv"]
    zygote = Zygote(control, boot["worker"], homes)
    if boot["broker"] is not None:
        zygote.load_broker(boot["broker"])
    for module in boot["modules"]:
        zygote.load(module)
    if threading.active_count() > 1:
        names = ", ".join(thread.name for thread in threading.enumerate()[1:])
        logger.warning("The app starts threads when it is imported, which the processes of isolated jobs do not have: %s.", names)
    gc.collect()
    gc.freeze()
    try:
        zygote.run()
    except Exception:
        logger.exception("The process that forks isolated jobs ends.")
    finally:
        os._exit(0)  # what the app would do at its exit is its worker's to do


def _nothing(*_: object) -> None:
    """Not SIG_IGN, which programs that a job starts would inherit."""


def _listen() -> None:
    """What the whole process group gets, the worker decides about; the rest is for the children, from before their fork on."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _nothing)
    signal.signal(signal.SIGUSR1, child.on_signal)


class Zygote:
    """Forks, waits, tells."""

    def __init__(self, control: socket.socket, worker_pid: int, homes: Callable[[], Sequence[child.Home]]) -> None:
        self._control, self._worker_pid, self._homes = control, worker_pid, homes
        self._pid = os.getpid()
        #: Its status socket, and how often the system had run out of memory before, by pid.
        self._children: dict[int, tuple[socket.socket, int]] = {}
        self._loaded: set[str] = set()
        #: Why a module could not be imported.
        self._failures: dict[str, str] = {}
        self._woken, waker = socket.socketpair()
        self._waker = waker
        for end in (self._woken, waker):
            end.setblocking(False)
        self._memory_events: Path | None = None

    def load(self, module: str) -> None:
        """Import a module of the app."""
        if module not in self._loaded:
            self._loaded.add(module)
            self._attempt(module, lambda: importlib.import_module(module))
            _listen()  # it may have taken a signal for itself

    def load_broker(self, broker: str) -> None:
        """Import what the ``dramatiq`` command was given as its broker, and call it where it is a function."""
        from dramatiq.cli import import_broker

        self._attempt(broker.partition(":")[0], lambda: import_broker(broker))
        _listen()

    def _attempt(self, module: str, step: Callable[[], Any]) -> None:
        try:
            step()
        except (Exception, SystemExit):
            self._failures[module] = traceback.format_exc()
            logger.exception("The zygote cannot import %s.", module)

    def run(self) -> None:
        """Serve until the worker is gone."""
        with contextlib.suppress(OSError):
            self._memory_events = memory_events(Path("/proc/self/cgroup").read_text(), Path("/sys/fs/cgroup"))
        signal.set_wakeup_fd(self._waker.fileno())
        poller = select.poll()
        for each in (self._control, self._woken):
            poller.register(each, select.POLLIN)
        while os.getppid() == self._worker_pid:
            ready = {fd for fd, _ in poller.poll(WATCH_S * 1000)}
            if self._woken.fileno() in ready:
                with contextlib.suppress(BlockingIOError):
                    while self._woken.recv(4096):
                        pass
                self._reap(poller)
            for pid, (status, _) in list(self._children.items()):
                if status.fileno() in ready:
                    self._obey(pid, status, poller)
            if self._control.fileno() in ready and not self._accept(poller):
                break
        for pid in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _accept(self, poller: select.poll) -> bool:
        """Fork for the request that is there; False: the worker has closed."""
        try:
            module, fds, *_ = socket.recv_fds(self._control, 65536, 2)
        except OSError:
            return False
        if not module:
            return False
        data, status = (socket.socket(fileno=fd) for fd in fds)
        self.load(module.decode())
        kills = oom_kills(self._memory_events)
        try:
            pid = os.fork()
        except OSError:  # no memory, or no process more; the worker learns of it by the closed sockets
            logger.exception("No process can be forked for an isolated job.")
            data.close()
            status.close()
            return True
        if pid == 0:
            self._become_child(data, status)
        data.close()
        self._children[pid] = (status, kills)
        poller.register(status, select.POLLIN)
        self._tell(status, wire.Forked(pid))
        return True

    def _become_child(self, data: socket.socket, status: socket.socket) -> None:
        try:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != self._pid:  # the zygote died in between
                os._exit(EXIT_BROKEN)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for each in (self._control, self._woken, self._waker, status, *(status for status, _ in self._children.values())):
                each.close()
            _be_first_to_go()
            child.run(data, self._homes(), self._failures)
        except BaseException:  # noqa: BLE001 - it must end here, whatever it is
            with contextlib.suppress(BaseException):
                traceback.print_exc()
            os._exit(EXIT_BROKEN)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(0)

    def _obey(self, pid: int, status: socket.socket, poller: select.poll) -> None:
        """Send the child a signal; it has not been waited for, so its pid is still its own."""
        try:
            asked = status.recv(64)
        except OSError:
            asked = b""
        if asked == wire.INTERRUPT:
            os.kill(pid, signal.SIGUSR1)
        else:  # that, or the worker does not wait any more
            os.kill(pid, signal.SIGKILL)
            if not asked:
                poller.unregister(status)

    def _reap(self, poller: select.poll) -> None:
        for pid, (status, kills) in list(self._children.items()):
            found, wait_status, used = os.wait4(pid, os.WNOHANG)
            if found == 0:
                continue
            del self._children[pid]
            was_oom = oom_kills(self._memory_events) > kills
            code = os.waitstatus_to_exitcode(wait_status)
            self._tell(status, wire.Ended(code, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, was_oom))
            with contextlib.suppress(KeyError):  # its worker had closed it before
                poller.unregister(status)
            status.close()

    @staticmethod
    def _tell(status: socket.socket, what: Any) -> None:
        with contextlib.suppress(OSError):  # nobody waits for it any more
            status.send(pickle.dumps(what))


def _be_first_to_go() -> None:
    """Where memory runs out, the system is to take this process, not the worker.  Source: proc_pid_oom_score_adj(5)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def memory_events(cgroups: str, root: Path) -> Path | None:
    """Where the system counts what it has killed in our cgroup for want of memory; None where it does not.

    Parameters:
      cgroups: the text of ``/proc/self/cgroup``.
      root: where cgroups are mounted.

    Source: cgroups(7); ``memory.events`` of version 2, ``memory.oom_control`` of version 1.
    """
    for line in cgroups.splitlines():
        _, controllers, path = line.split(":", 2)
        folders = [path.strip("/"), ""]  # in a container the path may be that of the host
        if not controllers:
            places = [root / folder / "memory.events" for folder in folders]
        elif "memory" in controllers.split(","):
            places = [root / controllers / folder / "memory.oom_control" for folder in folders]
        else:
            continue
        found = next((place for place in places if place.exists()), None)
        if found is not None:
            return found
    return None


def oom_kills(path: Path | None) -> int:
    """The count that is at *path*; 0 where there is none."""
    if path is not None:
        with contextlib.suppress(OSError, ValueError):
            for line in path.read_text().splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    return 0
