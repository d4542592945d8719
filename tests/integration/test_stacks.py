"""What real threads that hang look like, and what is told of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from dramatiq.asyncio import EventLoopThread

from dramatiq_chaperone.diagnosis import Diagnosis, Look, diagnose
from dramatiq_chaperone.supervision.stacks import coroutine_stack, expression, lock_chain, stack_of
from tests.waiting import wait_until

LOCK = threading.Lock()


class Hangs:
    """Threads that hang until the end of the test."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.names: dict[int, tuple[str, str | None]] = {}
        self.threads: list[threading.Thread] = []

    def start(self, target: Callable[[], object], job_id: str | None = None) -> int:
        ident: list[int] = []

        def run() -> None:
            ident.append(threading.get_ident())
            with contextlib.suppress(OSError):
                target()

        thread = threading.Thread(target=run, name=f"hang-{len(self.threads)}", daemon=True)
        self.threads.append(thread)
        thread.start()
        wait_until(lambda: ident)
        self.names[ident[0]] = (thread.name, job_id)
        return ident[0]

    def look(self, ident: int, cpu_s: float | None = 0.0) -> Look:
        return Look(time.monotonic(), cpu_s, stack_of(sys._current_frames().get(ident)))

    def settled(self, ident: int) -> None:
        """Wait until the thread stands still."""
        seen: list[object] = []

        def still() -> bool:
            seen.append(self.look(ident).stack)
            return len(seen) > 5 and len(set(seen[-5:])) == 1

        wait_until(still, interval_s=0.02)

    def diagnosis(self, ident: int) -> Diagnosis:
        self.settled(ident)
        first = self.look(ident)
        looks = [first._replace(at=first.at - 300), first._replace(at=first.at - 100), self.look(ident)]
        return diagnose(looks, links=lock_chain(ident, self.names), quiet_s=400.0)


@pytest.fixture
def hangs() -> Iterator[Hangs]:
    hangs = Hangs()
    yield hangs
    hangs.over.set()
    for thread in hangs.threads:
        thread.join(10)


def test_a_lock_and_its_holder(hangs: Hangs) -> None:
    def keep() -> None:
        with LOCK:
            hangs.over.wait()

    def want() -> None:
        with LOCK:
            pass

    holder = hangs.start(keep, "job-2")
    hangs.settled(holder)
    waiter = hangs.start(want, "job-1")
    found = hangs.diagnosis(waiter)
    assert found.cause == "blocked"
    assert "want (" in found.text
    assert "waits for the lock LOCK, held by job job-2 (hang-0) in " in found.text
    assert "keep (" in found.text
    assert " for 300 s" in found.text
    assert found.evidence["locks"][0]["holder_job_id"] == "job-2"
    assert found.evidence["stack"][-1].endswith(": LOCK")


@pytest.mark.parametrize("kind", [threading.Lock, threading.RLock])
def test_a_lock_that_is_acquired_by_a_call(hangs: Hangs, kind: Callable[[], threading.Lock]) -> None:
    class Store:
        def __init__(self) -> None:
            self.locks = {"a": kind()}

        def keep(self) -> None:
            self.locks["a"].acquire()
            try:
                hangs.over.wait()
            finally:
                self.locks["a"].release()

        def want(self) -> None:
            lock = self.locks["a"]
            lock.acquire()
            lock.release()

    store = Store()
    hangs.settled(hangs.start(store.keep))
    found = hangs.diagnosis(hangs.start(store.want))
    assert found.cause == "blocked"
    assert "waits for the lock lock, held by thread hang-0" in found.text


def test_a_deadlock_of_two(hangs: Hangs) -> None:
    one, two = threading.Lock(), threading.Lock()
    both = threading.Barrier(2)

    def left() -> None:
        with one:
            both.wait()
            if not two.acquire(timeout=3):
                return
            two.release()

    def right() -> None:
        with two:
            both.wait()
            with one:
                pass

    first, second = hangs.start(left, "job-1"), hangs.start(right, "job-2")
    hangs.settled(second)
    for each in (first, second):
        found = hangs.diagnosis(each)
        assert found.cause == "deadlock"
        assert "job job-1 (hang-0) waits in " in found.text
        assert "held by job job-1 (hang-0)" in found.text
        assert "held by job job-2 (hang-1)" in found.text


def test_a_lock_that_is_taken_twice(hangs: Hangs) -> None:
    lock = threading.Lock()

    def twice() -> None:
        with lock:
            lock.acquire(timeout=2)

    found = hangs.diagnosis(hangs.start(twice, "job-1"))
    assert found.cause == "deadlock"
    assert "job job-1 (hang-0) waits in " in found.text


def test_what_nobody_can_be_told_to_hold(hangs: Hangs) -> None:
    lock = threading.Lock()

    def take() -> None:
        lock.acquire()

    def want() -> None:
        lock.acquire(timeout=30)

    take()

    ident = hangs.start(want)
    assert lock_chain(ident, hangs.names) == []
    found = hangs.diagnosis(ident)
    lock.release()
    assert found.cause == "blocked"
    assert "waits for a lock in lock.acquire(timeout=30)" in found.text


def test_sleep_socket_queue_process_event(hangs: Hangs) -> None:
    ours, theirs = socket.socketpair()
    empty: queue.Queue[int] = queue.Queue()
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    file = ours.makefile("rb")

    def nap() -> None:
        time.sleep(2)

    def fetch() -> None:
        theirs.recv(10)

    def fetch_by_file() -> None:
        file.readline()

    def take() -> None:
        empty.get()

    def run() -> None:
        process.wait()

    def wait() -> None:
        hangs.over.wait()

    expected = {
        nap: "sleeps in time.sleep(2)",
        fetch: "waits for data from a socket in theirs.recv(10)",
        fetch_by_file: "waits for data from a socket",
        take: "waits for something in a queue",
        run: "waits for a process",
        wait: "waits to be woken",
    }
    idents = {target: hangs.start(target) for target in expected}
    for target, said in expected.items():
        found = hangs.diagnosis(idents[target])
        assert (found.cause, found.text.endswith(f" for 300 s: {said}")) == ("blocked", True), found.text
        assert f"blocked in {target.__qualname__.replace('.<locals>', '')} (" in found.text
    ours.sendall(b"x\n")
    theirs.sendall(b"x\n")
    empty.put(1)
    process.communicate()
    file.close()
    ours.close()
    theirs.close()


def test_the_source_of_a_call_over_several_lines(hangs: Hangs) -> None:
    def wait() -> None:
        hangs.over.wait(
            timeout=30,
        )

    ident = hangs.start(wait)
    hangs.settled(ident)
    frame = sys._current_frames()[ident]
    while frame.f_code.co_name != "wait" or frame.f_code.co_filename != __file__:
        assert frame.f_back is not None
        frame = frame.f_back
    assert "".join(expression(frame).split()) == "hangs.over.wait(timeout=30,)"


def test_code_without_a_source(hangs: Hangs) -> None:
    scope: dict[str, object] = {"over": hangs.over, "lock": threading.Lock()}
    exec(compile("def made():\n    over.wait()\n", "<made>", "exec"), scope)
    found = hangs.diagnosis(hangs.start(scope["made"]))  # type: ignore[arg-type]  # it is a function
    assert found.cause == "blocked"
    assert "blocked in made (<made>:2)" in found.text


@pytest.fixture
def event_loop() -> Iterator[EventLoopThread]:
    thread = EventLoopThread(logging.getLogger("test"))
    thread.start(timeout=10)
    yield thread
    thread.stop()


def test_a_coroutine_that_waits(hangs: Hangs, event_loop: EventLoopThread) -> None:
    over = asyncio.Event()

    async def fetch() -> None:
        await over.wait()

    async def work() -> None:
        await fetch()

    ident = hangs.start(lambda: event_loop.run_coroutine(work()))
    wait_until(lambda: len(coroutine_stack(ident)[0]) == 3)
    stack, is_running = coroutine_stack(ident)
    found = diagnose([Look(0.0, None, stack), Look(90.0, None, stack)], quiet_s=100)
    event_loop.loop.call_soon_threadsafe(over.set)
    assert not is_running
    assert [frame.function.rpartition(".")[2] for frame in stack] == ["work", "fetch", "wait"]
    assert "fetch (" in found.text
    assert found.text.endswith("for 90 s: waits to be woken")


def test_a_coroutine_that_never_waits(hangs: Hangs, event_loop: EventLoopThread) -> None:
    async def work() -> None:
        hangs.over.wait(20)

    ident = hangs.start(lambda: event_loop.run_coroutine(work()))
    wait_until(lambda: coroutine_stack(ident)[1] and "wait" in coroutine_stack(ident)[0][-1].function)
    stack, _ = coroutine_stack(ident)
    found = diagnose([Look(0.0, 0.0, stack), Look(90.0, 0.0, stack)])
    assert found.cause == "blocked"
    assert "work (" in found.text


def test_a_thread_without_a_coroutine(hangs: Hangs) -> None:
    assert coroutine_stack(hangs.start(hangs.over.wait)) == ((), False)
    assert coroutine_stack(1) == ((), False)


def test_a_loop_evaluates_nothing_where_it_jumps_back(hangs: Hangs) -> None:
    def spin() -> None:
        number = 1
        while not hangs.over.is_set():
            number = (number * 7 + 1) % 5

    ident = hangs.start(spin)
    calls = {stack_of(sys._current_frames().get(ident))[-1].call for _ in range(200) if not time.sleep(0.001)}
    assert not [call for call in calls if call.startswith("while")]
    looks = [Look(float(n), n * 0.9, stack_of(sys._current_frames().get(ident))) for n in range(3)]
    assert diagnose(looks).text.startswith("spinning at ")
