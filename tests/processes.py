"""Processes that tests start: each in a group of its own, its output in a file, ended whatever happens."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from tests.waiting import wait_until

ROOT = Path(__file__).parent.parent
LOG_TAIL_CHARS = 20_000


class Process:
    """A running command; its warnings are errors."""

    def __init__(self, command: Sequence[str | Path], *, log: Path, env: Mapping[str, str], cwd: Path) -> None:
        self.command = [str(part) for part in command]
        self.log_path = log
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "error", "PYTHONPATH": f"{cwd}{os.pathsep}{ROOT}", **env}
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=cwd, env=environment, start_new_session=True
            )
        self.pid = self._process.pid

    def log(self) -> str:
        """All that it has written, standard error included."""
        return self.log_path.read_text(errors="replace")

    def wait_for_log(self, text: str, *, times: int = 1, timeout_s: float = 30.0) -> None:
        """Wait until *text* is in the log *times* times; fail at once when the process has ended without."""

        def written() -> bool:
            ended = self._process.poll() is not None
            if self.log().count(text) >= times:
                return True
            assert not ended, f"it ended ({self._process.returncode}) before it wrote {text!r}:\n{self.tail()}"
            return False

        wait_until(written, timeout_s=timeout_s, interval_s=0.05, what=f"{text!r} in {self.log_path}")

    def tail(self) -> str:
        """The end of its log."""
        return self.log()[-LOG_TAIL_CHARS:]

    @property
    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def children(self) -> list[psutil.Process]:
        """Its direct children that are alive, oldest first."""
        children = psutil.Process(self.pid).children()
        return sorted((each for each in children if each.status() != psutil.STATUS_ZOMBIE), key=lambda each: each.create_time())

    def send_signal(self, number: signal.Signals) -> None:
        """To the process itself, not to its group."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL to the process itself: its children live on."""
        self._process.kill()
        self._process.wait()

    def wait(self, *, timeout_s: float = 30.0) -> int:
        """Its exit code.  Raises subprocess.TimeoutExpired."""
        return self._process.wait(timeout_s)

    def stop(self, *, timeout_s: float = 20.0) -> int:
        """SIGTERM, and its exit code; AssertionError with its log when it does not end in time."""
        self._process.terminate()
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired as e:
            raise AssertionError(f"{self.command} did not end within {timeout_s:g} s of SIGTERM:\n{self.tail()}") from e

    def end(self, *, grace_s: float = 10.0) -> None:
        """Whatever it takes: SIGTERM, and after at most *grace_s* SIGKILL to whatever is left of its group."""
        if self.is_running:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(grace_s)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()


class WorkerProcess(Process):
    """``python -m dramatiq``: a master and its worker processes."""

    READY = "Worker process is ready for action."

    def __init__(self, module: str, *arguments: str, processes: int, threads: int, log: Path, env: Mapping[str, str], cwd: Path) -> None:
        self.processes = processes
        command = [sys.executable, "-m", "dramatiq", module, "-p", str(processes), "-t", str(threads), *arguments]
        super().__init__(command, log=log, env=env, cwd=cwd)

    def wait_ready(self, *, boots: int = 1, timeout_s: float = 30.0) -> None:
        """Wait until every worker process has booted *boots* times."""
        self.wait_for_log(self.READY, times=self.processes * boots, timeout_s=timeout_s)
