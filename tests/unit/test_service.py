from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from dramatiq_chaperone import service
from dramatiq_chaperone.service import Service, internal_error, internal_errors


class Turns(Service):
    name = "turns"

    def __init__(self, interval_s=60.0):
        super().__init__(interval_s=interval_s)
        self.turns = 0
        self.drains = 0
        self.turned = threading.Event()
        self.in_turn = lambda: None

    def run_once(self):
        self.turns += 1
        self.turned.set()
        self.in_turn()

    def drain(self):
        assert not any(t.name == "chaperone-turns" for t in threading.enumerate() if t is self._thread)
        self.drains += 1

    def wait_for_turn(self):
        assert self.turned.wait(10)
        self.turned.clear()


@pytest.fixture
def turns():
    it = Turns()
    yield it
    assert it.stop()


@pytest.fixture(autouse=True)
def fresh_errors(monkeypatch):
    monkeypatch.setattr(service, "_seen", set())
    internal_errors.clear()


def test_it_takes_a_turn_at_once_and_another_when_woken(turns):
    assert turns.start()
    turns.wait_for_turn()
    turns.wake()
    turns.wait_for_turn()
    assert turns.is_running
    assert any(t.name == "chaperone-turns" and t.daemon for t in threading.enumerate())


def test_it_takes_a_turn_each_interval():
    it = Turns(interval_s=0.001)
    it.start()
    for _ in range(5):
        it.wait_for_turn()
    assert it.stop()


def test_start_and_stop_are_idempotent_and_it_can_be_restarted(turns):
    assert turns.stop()
    for round_ in range(1, 4):
        assert turns.start()
        assert turns.start()
        turns.wait_for_turn()
        assert turns.stop()
        assert turns.stop()
        assert not turns.is_running
        assert turns.drains == round_


def test_a_stop_that_times_out_says_so_and_may_be_called_again(turns):
    go_on = threading.Event()
    turns.in_turn = lambda: go_on.wait(30)
    turns.start()
    turns.wait_for_turn()
    assert not turns.stop(timeout_s=0.01)
    assert not turns.is_running
    assert not turns.start(), "the old thread still hangs in its last turn"
    assert turns.drains == 0
    go_on.set()
    assert turns.stop()
    assert turns.drains == 1


def test_its_own_thread_may_ask_it_to_stop(turns):
    results = []
    turns.in_turn = lambda: results.append((turns.start(), turns.stop(), turns.start()))
    turns.start()
    turns.wait_for_turn()
    assert turns.stop()
    assert results == [(True, False, False)]


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_an_error_ends_its_turn_but_not_the_loop_and_is_logged_once(turns, caplog, error):
    def fail():
        raise error("boom")

    turns.in_turn = fail
    turns.start()
    for _ in range(3):
        turns.wait_for_turn()
        turns.wake()
    turns.wait_for_turn()
    assert turns.stop()
    assert internal_errors["turns"] >= 4
    assert [r.levelno for r in caplog.records] == [logging.ERROR]
    assert caplog.records[0].exc_info


def test_an_error_while_draining_is_counted(turns):
    turns.drain = lambda: 1 / 0
    turns.start()
    assert turns.stop()
    assert internal_errors["turns"] == 1


def test_a_thread_that_cannot_be_started_is_an_internal_error(turns, monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as m:
        m.setattr(threading.Thread, "start", refuse)
        assert not turns.start()
    assert internal_errors["turns"] == 1
    assert turns.start()


def test_ten_threads_start_and_stop_it_fifty_times():
    it = Turns(interval_s=0.0005)

    def toggle():
        for _ in range(50):
            it.start()
            it.wake()
            it.stop()

    with ThreadPoolExecutor(10) as pool:
        for done in [pool.submit(toggle) for _ in range(10)]:
            done.result(timeout=60)
    assert it.stop()
    assert not any(t.name == "chaperone-turns" for t in threading.enumerate())
    assert not internal_errors


def test_in_a_forked_child_it_is_stopped_and_can_be_started():
    code = """
import os, threading, warnings
warnings.simplefilter("ignore")
from dramatiq_chaperone import service

class S(service.Service):
    name = "s"
    pids = []
    def run_once(self): self.turned.set()
    def forked(self): self.pids.append(os.getpid())

s = S(interval_s=60); s.turned = threading.Event()
s.start(); assert s.turned.wait(10)
s._lock.acquire(); service._errors_lock.acquire()   # as if another thread held them
pid = os.fork()
if pid == 0:
    s.turned.clear()
    ok = not s.is_running and s.stop() and s.pids == [os.getpid()]
    service.internal_error("x", ValueError())
    ok = ok and s.start() and s.turned.wait(10) and s.stop()
    os._exit(0 if ok else 1)
_, status = os.waitpid(pid, 0)
s._lock.release(); service._errors_lock.release()
assert status == 0 and s.pids == [] and s.is_running and s.stop()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env={**os.environ, "PYTHONWARNINGS": "ignore"})


def test_internal_errors_are_counted_by_component_and_logged_once_a_kind(caplog):
    for _ in range(3):
        internal_error("store", ValueError("a"), job_id="42")
    internal_error("store", KeyError("b"))
    internal_error("gate", ValueError("c"))
    assert internal_errors == {"store": 4, "gate": 1}
    assert len(caplog.records) == 3
    assert "store (job 42)" in caplog.text


def test_the_log_of_internal_errors_is_bounded(caplog):
    for i in range(1000):
        internal_error(f"c{i}", ValueError())
    assert len(caplog.records) == service._MAX_KINDS
    assert internal_errors.total() == 1000


def test_an_internal_error_never_raises(monkeypatch):
    monkeypatch.setattr(service.logger, "error", lambda *a, **k: 1 / 0)
    internal_error("x", ValueError())
    assert internal_errors["x"] == 1
