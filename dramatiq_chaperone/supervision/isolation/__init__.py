"""Isolated actors, the worker's side: ``@dramatiq.actor(isolate=True)``.

Each job runs in a child of its own, forked by the zygote.  The worker thread waits for it, takes what it reports for its
own job, and raises what it raised.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
from multiprocessing.spawn import get_executable
from typing import TYPE_CHECKING, Any, Final

from dramatiq import Actor
from dramatiq.threading import is_gevent_active

from ...errors import SettingsError
from ...service import internal_error
from .run import MemoryExceeded, Run

if TYPE_CHECKING:
    from ..recorder import Recorder
    from ..slots import Slot

__all__ = ["Isolation", "Run"]

logger = logging.getLogger("dramatiq_chaperone.isolation")

#: How long the zygote has to end, in seconds.
STOP_S: Final = 2.0

#: What a zygote runs.  It reads from its standard input what it needs to find modules as its worker does.
PROGRAM: Final = (
    "import json, sys; boot = json.load(sys.stdin); sys.path[:] = boot['path']; "
    "from dramatiq_chaperone.runtime import isolate; isolate(boot)"
)


class Isolation:
    """Runs jobs in processes of their own; owns the zygote, which is started when it is first needed.

    Any worker thread may call :meth:`run`.

    Attributes:
      memory_exceeded: told of a job that is past its memory_limit, by the thread that waits for it, to do something about it.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self.memory_exceeded: MemoryExceeded | None = None
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._modules: list[str] = []
        #: The threads that wait for a child.
        self._running: set[int] = set()
        self._is_stopping = False

    @property
    def pid(self) -> int | None:
        """The zygote's, None where there is none."""
        process = self._process
        return None if process is None else process.pid

    def expect(self, actor: Actor[Any, Any]) -> None:
        """The zygote will be asked for this actor.

        Raises:
          SettingsError: this system, or gevent, cannot have isolated actors.
        """
        if (why := _unsupported()) is not None:
            raise SettingsError(
                f"The actor {actor.actor_name} cannot be isolated: {why}.",
                field="isolate",
                value=True,
                origin=f"options of actor {actor.actor_name}",
            )
        module = _module_of(actor)
        if module is not None and module not in self._modules:
            self._modules.append(module)

    def start(self) -> None:
        """Start the zygote ahead of the first job; it imports the app meanwhile."""
        try:
            with self._lock:
                self._zygote()
        except Exception as error:  # noqa: BLE001 - the first job tries again
            internal_error("isolation", error)

    def run(self, slot: Slot, actor: Actor[Any, Any], message: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the job of *slot* in a child; returns what it returned, and raises what it raised.

        Raises:
          JobProcessDied: the child, or the zygote, ended before it could say how it went.
          SettingsError: the actor cannot be found in a process that has only imported the app.
        """
        self.expect(actor)
        module = _module_of(actor)
        if module is None:
            raise SettingsError(
                f"The actor {actor.actor_name} cannot be isolated: it is declared in a script or interactively, where a process "
                "of its own cannot import it. Move it to the top level of a module.",
                field="isolate",
                value=True,
                origin=f"options of actor {actor.actor_name}",
            )
        try:
            self._running.add(slot.ident)
            run = Run(self._recorder, slot, actor, message, self.memory_exceeded)
            if not run.start(self.fork, module, args, kwargs):  # the zygote died before it could fork: another one will
                run = Run(self._recorder, slot, actor, message, self.memory_exceeded)
                run.start(self.fork, module, args, kwargs)
            return run.result()
        finally:
            self._running.discard(slot.ident)
            if self._is_stopping:
                self._end_if_idle()

    def fork(self, module: str, ends: tuple[socket.socket, socket.socket]) -> None:
        """Ask the zygote for a child that gets these sockets.  Raises OSError where there is no zygote to be had."""
        with self._lock:
            for is_last in (False, True):
                control = self._zygote()
                try:
                    socket.send_fds(control, [module.encode()], [end.fileno() for end in ends])
                    return
                except OSError:
                    if is_last:
                        raise
                    self._end(timeout_s=0.0)

    def stop(self) -> None:
        """End the zygote.  Jobs that run still are left to run, as threads are; they end with the worker process."""
        self._is_stopping = True
        self._end_if_idle()

    def _end_if_idle(self) -> None:
        with self._lock:
            if not self._running:
                self._end()

    def _zygote(self) -> socket.socket:
        if self._process is not None and self._process.poll() is not None:
            logger.warning("The process that forks isolated jobs has ended with %s; a new one is started.", self._process.returncode)
            self._end()
        if self._control is None:
            self._begin()
        assert self._control is not None
        return self._control

    def _begin(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            broker, modules = _imports()
            boot = {
                "path": [str(entry) for entry in sys.path],
                "argv": [str(entry) for entry in sys.argv],
                "worker": os.getpid(),
                "control": theirs.fileno(),
                "broker": broker,
                "modules": [*modules, *self._modules],
            }
            flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # as multiprocessing does
            process = subprocess.Popen(
                [os.fsdecode(get_executable()), *flags, "-c", PROGRAM], stdin=subprocess.PIPE, pass_fds=[theirs.fileno()]
            )
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError), process.stdin:  # it has died; the first job learns of it
                process.stdin.write(json.dumps(boot).encode())
            self._process, self._control = process, ours
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()

    def _end(self, *, timeout_s: float = STOP_S) -> None:
        process, self._process = self._process, None
        control, self._control = self._control, None
        if control is not None:
            control.close()
        if process is None:
            return
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _unsupported() -> str | None:
    if not sys.platform.startswith("linux"):
        return f"processes of their own are forked on Linux only, and this is {sys.platform}"
    return "gevent cannot be forked; give it a worker without gevent" if is_gevent_active() else None


def _module_of(actor: Actor[Any, Any]) -> str | None:
    """Where the actor's function is declared; None where nobody else can import it."""
    module = getattr(actor.fn, "__module__", None)
    return None if module in {None, "__main__", "__mp_main__"} else module


def _imports() -> tuple[str | None, list[str]]:
    """What the ``dramatiq`` command has told this worker to import, in its order: the broker, and modules."""
    found = getattr(multiprocessing.current_process(), "_args", ())
    arguments = found[0] if found else None
    if isinstance(arguments, argparse.Namespace) and hasattr(arguments, "broker") and hasattr(arguments, "modules"):
        return arguments.broker, list(arguments.modules)
    return None, []
