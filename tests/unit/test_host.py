from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from dramatiq_chaperone import host
from tests.waiting import wait_until


@pytest.fixture
def child():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.wait()
    process.stdin.close()


def wait_for_zombie(child):
    os.kill(child.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline


def test_the_identity_is_short_stable_and_the_same_for_a_child_process():
    code = "from dramatiq_chaperone.host import host_identity; print(host_identity())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert re.fullmatch(r"[0-9a-f]{16}", host.host_identity())
    assert other == host.host_identity()


def test_a_start_is_told_in_unix_seconds():
    started_at = host.process_started_at(os.getpid())
    assert started_at == pytest.approx(psutil.Process().create_time(), abs=2)
    assert started_at == host.process_started_at(os.getpid())


def test_there_is_no_start_where_there_is_no_process(child):
    child.kill()
    child.wait()
    assert host.process_started_at(child.pid) is None
    assert host.process_started_at(0) is None
    assert host.process_started_at(-1) is None


def test_a_living_process_is_alive_and_its_successor_under_the_same_pid_is_another(child):
    started_at = host.process_started_at(child.pid)
    assert host.is_alive(child.pid, started_at)
    assert not host.is_alive(child.pid, started_at + 0.01)


def test_a_stopped_process_is_alive(child):
    started_at = host.process_started_at(child.pid)
    os.kill(child.pid, signal.SIGSTOP)
    assert host.is_alive(child.pid, started_at)


def test_a_zombie_is_not_alive(child):
    started_at = host.process_started_at(child.pid)
    wait_for_zombie(child)
    assert not host.is_alive(child.pid, started_at)


def test_a_process_that_is_gone_is_not_alive(child):
    started_at = host.process_started_at(child.pid)
    child.kill()
    child.wait()
    assert not host.is_alive(child.pid, started_at)
    assert not host.is_alive(0, started_at)
    assert not host.is_alive(2**40, started_at)


@pytest.mark.parametrize("jump_s", [-3600, -1, 1, 3600])
def test_a_clock_that_is_set_makes_nobody_another(monkeypatch, jump_s):
    started_at = host.process_started_at(os.getpid())
    boot_time = host._boot_time()
    monkeypatch.setattr(host, "_boot_time", lambda: boot_time + jump_s)
    assert host.is_alive(os.getpid(), started_at)
    assert host.process_started_at(os.getpid()) == pytest.approx(started_at + jump_s, abs=1e-6)


def test_the_fingerprint_survives_a_column_with_microseconds():
    for ticks in (0, 1, 7, 999_999, 1_000_000, 123_456_789):
        seconds = 1_790_000_000 + ticks % 1_000_000 / 1_000_000
        assert host._fingerprint(float(f"{seconds:.6f}")) == ticks % 1_000_000


def test_a_process_that_hides_its_start_is_alive(monkeypatch):
    started_at = host.process_started_at(os.getpid())
    monkeypatch.setattr(host, "_read_stat", lambda pid: None)
    assert host.is_alive(os.getpid(), started_at)


def test_without_proc_psutil_tells(monkeypatch, child):
    monkeypatch.setattr(host, "_HAS_PROC", False)
    started_at = host.process_started_at(child.pid)
    assert host.is_alive(child.pid, started_at)
    assert not host.is_alive(child.pid, started_at + 5)
    wait_for_zombie(child)
    assert not host.is_alive(child.pid, started_at)
    child.wait()
    assert not host.is_alive(child.pid, started_at)
    assert host.process_started_at(child.pid) is None


def test_worker_ids_are_unique_and_safe_in_file_names(monkeypatch):
    monkeypatch.setattr(host, "host_name", lambda: "../we ird/höst" + "x" * 100)
    first, second = host.new_worker_id(), host.new_worker_id(4711)
    assert first != second
    assert re.fullmatch(rf"[A-Za-z0-9_][A-Za-z0-9_.-]*-{os.getpid()}-[0-9a-f]{{8}}", first)
    assert "-4711-" in second
    assert len(first) <= 90
    monkeypatch.setattr(host, "host_name", lambda: "...")
    assert host.new_worker_id(1).startswith("host-1-")


def test_importing_host_loads_no_psutil():
    code = "import sys, dramatiq_chaperone.host as h; h.is_alive(1, 1.0); h.host_identity(); assert 'psutil' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux tells")
@pytest.mark.parametrize(("code", "expected"), [("os.kill(os.getpid(), 9)", -9), ("sys.exit(3)", 3), ("sys.exit(0)", None)])
def test_the_exit_code_of_a_process_that_nobody_waited_for(code: str, expected: int | None) -> None:
    child = subprocess.Popen([sys.executable, "-c", f"import os, sys\nsys.stdin.read()\n{code}"], stdin=subprocess.PIPE)
    started_at = host.process_started_at(child.pid)
    assert started_at is not None
    assert host.exit_code(child.pid, started_at) is None
    assert child.stdin is not None
    child.stdin.close()
    wait_until(lambda: not host.is_alive(child.pid, started_at))
    assert host.exit_code(child.pid, started_at) == expected
    child.wait()
    assert host.exit_code(child.pid, started_at) is None


class TestOomKills:
    """The kernel's count, as files; the real ones are those of whatever machine this is."""

    @pytest.fixture
    def system(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
        monkeypatch.setattr(host, "_CGROUPS", tmp_path / "cgroup")
        monkeypatch.setattr(host, "_PROC", tmp_path / "proc")

        def write(groups: str, **files: str) -> None:
            (tmp_path / "proc" / "7").mkdir(parents=True)
            (tmp_path / "proc" / "7" / "cgroup").write_text(groups)
            for place, text in files.items():
                path = tmp_path / "cgroup" / place.replace("__", "/").replace("_events", ".events").replace("_control", ".oom_control")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)

        return write

    def test_version_2(self, system: Callable[..., None]) -> None:
        system("0::/a/b\n", a__b__memory_events="low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n")
        assert host.oom_kills(7) == 2

    def test_version_1(self, system: Callable[..., None]) -> None:
        groups = "9:name=systemd:/x\n4:cpu,memory:/a\n0::/\n"
        system(groups, memory__a__memory_control="oom_kill_disable 0\nunder_oom 0\noom_kill 4\n")
        assert host.oom_kills(7) == 4

    def test_a_container_that_sees_the_path_of_its_host(self, system: Callable[..., None]) -> None:
        system("0::/docker/4711\n", memory_events="oom_kill 1\n")
        assert host.oom_kills(7) == 1

    def test_a_system_that_does_not_count(self, system: Callable[..., None]) -> None:
        system("0::/a\n", a__memory_events="low 0\n")
        assert host.oom_kills(7) is None
        assert host.oom_kills(8) is None


@pytest.mark.parametrize(
    ("code", "was_oom", "cause"),
    [
        (None, False, "unknown"),
        (0, False, "exit code 0"),
        (3, True, "exit code 3"),
        (-9, False, "SIGKILL"),
        (-9, True, "SIGKILL (out of memory)"),
        (-11, True, "SIGSEGV"),
        (-99, False, "signal 99"),
    ],
)
def test_what_ended_a_process(code: int | None, was_oom: bool, cause: str) -> None:
    assert host.exit_cause(code, was_oom=was_oom) == cause
