"""Which thread holds the GIL, from what the system tells of a process."""

from __future__ import annotations

import os
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from dramatiq_chaperone import host
from dramatiq_chaperone.freezes import ThreadUse, lone_worker, thread_uses
from tests.waiting import wait_until

uses = st.dictionaries(st.integers(1, 12), st.builds(ThreadUse, st.floats(0, 1e4), st.integers(0, 100_000)), max_size=8)


def after(before: dict[int, ThreadUse], **more: tuple[float, int]) -> dict[int, ThreadUse]:
    """What the threads have used after *more*: ``t1=(cpu_s, slices)``."""
    grown = dict(before)
    for name, (cpu_s, slices) in more.items():
        use = before[int(name[1:])]
        grown[int(name[1:])] = ThreadUse(use.cpu_s + cpu_s, use.slices + slices)
    return grown


BEFORE = {1: ThreadUse(5.0, 100), 2: ThreadUse(1.0, 50), 3: ThreadUse(0.0, 1)}


SAMPLER = 1


def test_one_works_and_the_sampler_waits_for_the_gil() -> None:
    assert lone_worker(BEFORE, after(BEFORE, t3=(2.9, 300), t1=(0.004, 600)), 3.0, SAMPLER) == 3


def test_on_a_machine_that_is_busy() -> None:
    assert lone_worker(BEFORE, after(BEFORE, t3=(0.4, 100), t1=(0.006, 30), t2=(0.006, 30)), 3.0, SAMPLER) == 3


def test_two_that_work_hold_no_gil() -> None:
    assert lone_worker(BEFORE, after(BEFORE, t3=(2.9, 300), t1=(0.2, 600)), 3.0, SAMPLER) is None


def test_a_sampler_that_waits_for_something_else() -> None:
    """For a disk, say: it would turn if it could get that."""
    assert lone_worker(BEFORE, after(BEFORE, t3=(2.9, 300), t1=(0.0, 3), t2=(0.0, 600)), 3.0, SAMPLER) is None


def test_nobody_works() -> None:
    assert lone_worker(BEFORE, after(BEFORE, t1=(0.004, 600)), 3.0, SAMPLER) is None


def test_a_process_that_was_stopped_and_has_just_gone_on() -> None:
    assert lone_worker(BEFORE, after(BEFORE, t3=(0.2, 20), t1=(0.1, 30)), 60.0, SAMPLER) is None


def test_a_thread_that_is_new() -> None:
    assert lone_worker(BEFORE, {**after(BEFORE, t1=(0.004, 600)), 9: ThreadUse(2.0, 10)}, 3.0, SAMPLER) == 9


@given(uses, uses, st.floats(-1, 100))
def test_whoever_it_is_worked_more_than_all_others(before: dict[int, ThreadUse], now: dict[int, ThreadUse], seconds: float) -> None:
    found = lone_worker(before, now, seconds, SAMPLER)
    if found is None:
        return
    assert seconds > 0
    zero = ThreadUse(0.0, 0)
    used = {tid: use.cpu_s - before.get(tid, zero).cpu_s for tid, use in now.items()}
    assert all(used[found] >= 5 * used[tid] for tid in used if tid != found)


def test_the_threads_of_a_process() -> None:
    before = thread_uses(os.getpid())
    assert before
    sum(range(2_000_000))
    now = thread_uses(os.getpid())
    assert sum(use.cpu_s for use in now.values()) > sum(use.cpu_s for use in before.values())
    assert thread_uses(2**22 + 1) == {}


def test_whether_a_process_is_stopped_and_what_it_catches() -> None:
    code = "import signal, sys; signal.signal(signal.SIGUSR1, lambda *_: None); print(1, flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert host.catches(process.pid, 10)
        assert not host.catches(process.pid, 41)
        assert not host.is_stopped(process.pid)
        process.send_signal(19)
        wait_until(lambda: host.is_stopped(process.pid))
        process.send_signal(18)
        wait_until(lambda: not host.is_stopped(process.pid))
        process.communicate()
    assert not host.catches(process.pid, 10)
    assert not host.is_stopped(process.pid)
