from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest

from dramatiq_chaperone import host


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
