"""Breakers of real processes on real stores: a script without a middleware, a fork, a store that is away."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dramatiq
import pytest
from dramatiq import Worker
from dramatiq.brokers.stub import StubBroker

from dramatiq_chaperone import BreakerOpen, Chaperone, breaker, breakers, events
from dramatiq_chaperone.breakers.registry import registry
from dramatiq_chaperone.breakers.sharing import shared, telling
from dramatiq_chaperone.breakers.storages.database import LOOK_EVERY_S, READ_EVERY_S
from dramatiq_chaperone.circuits import Circuit, order
from dramatiq_chaperone.errors import StoreUnavailable
from dramatiq_chaperone.journal.control import ControlBlock
from dramatiq_chaperone.settings import Settings
from dramatiq_chaperone.store import breakers as rows
from dramatiq_chaperone.store import open_store, queries
from dramatiq_chaperone.store.breakers import MOST
from dramatiq_chaperone.watcher import Watcher
from tests.waiting import wait_until

Env = Callable[..., None]


@pytest.fixture(autouse=True)
def no_breakers(chaperone_env: Env) -> Iterator[None]:
    registry().clear()
    yield
    registry().clear()


def fail() -> None:
    raise ConnectionError("no route")


def fails(service: str, times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(ConnectionError):
            breaker(service).call(fail)


def on_record(service: str) -> dict[str, Any] | None:
    settings = Settings.load()
    try:
        store = open_store(settings, create=False)
    except Exception:
        return None
    try:
        return next((row for row in queries.list_breakers(store) if row["service"] == service), None)
    finally:
        store.close()


def script(code: str) -> str:
    text = f"from dramatiq_chaperone import breaker, breakers, BreakerOpen\nimport time\n{code}"
    done = subprocess.run([sys.executable, "-W", "error", "-c", text], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def state(service: str) -> str:
    return breaker(service).status.state


def test_a_script_opens_it_for_everybody(state_dir: Path) -> None:
    svc = breaker("payments", failure_threshold=2)
    assert svc.call(lambda: 1) == 1
    script("for n in range(2):\n  try: breaker('payments', failure_threshold=2).call(lambda: 1 / 0)\n  except ZeroDivisionError: pass")
    wait_until(lambda: state("payments") == "open", timeout_s=5)
    with pytest.raises(BreakerOpen) as caught:
        svc.call(fail)
    assert 290 < caught.value.retry_after <= 300
    assert svc.status.last_error is not None


def test_nobody_who_only_looks_makes_a_store(state_dir: Path) -> None:
    breaker("payments")
    assert breakers()[0].state == "closed"
    assert script("breaker('mail'); print(len(breakers()))") == "1"
    assert not list(state_dir.glob("*.sqlite3"))


def test_what_a_short_script_did_is_on_record(state_dir: Path) -> None:
    script("for n in range(7): breaker('mail').call(int)")
    row = on_record("mail")
    assert row is not None
    assert row["last_success_at"] is not None
    store = open_store(Settings.load(), create=False)
    assert [value for name, labels, value in queries.counters(store) if name == rows.CALLS] == [7]
    store.close()


def test_events_are_published_where_it_happened_and_stored_once(state_dir: Path) -> None:
    heard: list[Any] = []
    stop = events.on(events.CircuitBreakerOpened, heard.append)
    try:
        breaker("payments", failure_threshold=2)
        fails("payments", 2)
        wait_until(lambda: heard)
        assert events.finish_events()
    finally:
        stop()
    (event,) = heard
    assert (event.service, event.failure_count, event.last_error) == ("payments", 2, "ConnectionError: no route")
    wait_until(lambda: on_record("payments") is not None)
    store = open_store(Settings.load(), create=False)
    wait_until(lambda: [row["name"] for row in queries.service_events(store, "payments")] == ["CircuitBreakerOpened"])
    store.close()


def test_a_success_in_another_process_begins_the_count_anew(state_dir: Path) -> None:
    breaker("payments", failure_threshold=3)
    fails("payments", 2)
    wait_until(lambda: (on_record("payments") or {}).get("failure_count") == 2)
    script("breaker('payments').call(int)")
    wait_until(lambda: breaker("payments").fail_counter == 0)
    fails("payments", 2)
    assert state("payments") == "closed"


def test_by_hand_from_outside(state_dir: Path) -> None:
    svc = breaker("payments")
    svc.call(int)
    script("breaker('payments').force_open()")
    wait_until(lambda: svc.status.mode == "forced_open", timeout_s=5)
    with pytest.raises(BreakerOpen):
        svc.call(int)
    script("breaker('payments').disable()")
    wait_until(lambda: svc.status.mode == "disabled", timeout_s=5)
    fails("payments", 9)
    script("breaker('payments').auto()")
    wait_until(lambda: svc.status.mode == "auto", timeout_s=5)


# -- the store is away


def test_no_store_to_be_had(chaperone_env: Env, caplog: pytest.LogCaptureFixture) -> None:
    chaperone_env(DATABASE_URL="postgresql://nobody:hunter2@127.0.0.1:1/none")
    caplog.set_level(logging.WARNING)
    svc = breaker("payments", failure_threshold=2, timeout=0, success_threshold=1)
    fails("payments", 2)
    assert svc.status.state == "open"
    wait_until(lambda: "Circuit breakers go on without the store" in caplog.text)
    assert svc.call(int) == 0
    assert svc.status.state == "closed"
    assert caplog.text.count("Circuit breakers go on without the store") == 1
    assert "hunter2" not in caplog.text


def test_it_catches_up(chaperone_env: Env, state_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    blocked = state_dir / "db"
    blocked.write_text("a file where the folder is to be")
    chaperone_env(DATABASE_URL=f"sqlite:///{blocked}/chaperone.sqlite3")
    svc = breaker("payments", failure_threshold=2)
    fails("payments", 2)
    assert svc.status.state == "open"
    wait_until(lambda: "go on without the store" in caplog.text)
    blocked.unlink()
    wait_until(lambda: (on_record("payments") or {}).get("state") == "open", timeout_s=15)
    opened = on_record("payments")
    assert opened is not None
    assert abs(opened["opened_at"].timestamp() - time.time()) < 30
    wait_until(lambda: "share the store" in caplog.text)
    assert svc.status.state == "open"


@pytest.mark.parametrize("goes_well", [True, False])
def test_how_a_trial_ends_while_the_store_is_away_is_told_when_it_is_back(
    chaperone_env: Env, monkeypatch: pytest.MonkeyPatch, goes_well: bool
) -> None:
    svc = breaker("payments", failure_threshold=1, timeout=0, success_threshold=1)
    fails("payments")
    wait_until(lambda: (on_record("payments") or {}).get("state") == "open", timeout_s=15)

    def away(*args: Any, **kwargs: Any) -> Any:
        raise StoreUnavailable

    with monkeypatch.context() as gone, contextlib.suppress(ValueError), svc:
        assert (svc.status.state, (on_record("payments") or {})["permits"]) == ("half_open", 1)
        gone.setattr(rows, "alter", away)
        if not goes_well:
            raise ValueError
    assert (on_record("payments") or {})["permits"] == 1, "nothing could be told"
    wait_until(lambda: (on_record("payments") or {}).get("permits") == 0, timeout_s=15)
    assert (on_record("payments") or {})["state"] == ("closed" if goes_well else "open")


@pytest.mark.parametrize("kind", ["postgres", "mysql"])
def test_a_server_that_hangs_holds_no_call_up(
    kind: str, request: pytest.FixtureRequest, chaperone_env: Env, proxy: Callable[..., Any], tmp_path: Path
) -> None:
    from urllib.parse import urlsplit

    url = str(request.getfixturevalue(f"{kind}_url"))
    parts = urlsplit(url)
    between = proxy(parts.hostname, parts.port or {"postgres": 5432, "mysql": 3306}[kind])
    login = parts.netloc.rpartition("@")[0]
    netloc = f"{login}@127.0.0.1:{between.port}" if login else f"127.0.0.1:{between.port}"
    chaperone_env(DATABASE_URL=parts._replace(netloc=netloc).geturl(), AUTO_MIGRATE=1, TABLE_PREFIX=f"brk{os.getpid()}_")
    tries, waited, waited_again = 3, [], []
    svc = breaker("payments", failure_threshold=1 + 2 * tries)
    fails("payments")
    wait_until(lambda: svc._circuit.version > 0, timeout_s=20)
    storage = registry()._database
    assert storage is not None
    for number in range(1, tries + 1):
        between.freeze()
        for times in (waited, waited_again):
            began = time.monotonic()
            fails("payments")
            times.append(time.monotonic() - began)
        between.thaw()
        wait_until(lambda told=1 + 2 * number: (on_record("payments") or {}).get("failure_count") == told, timeout_s=30)
        wait_until(lambda: not (storage._is_slow or storage.is_away or storage._kept), timeout_s=30)
    # On a machine that is busy a thread wakes up later than it wanted, but not each time.
    assert min(waited) < 0.35, "250 ms"
    assert min(waited_again) < 0.1, "not at all"
    assert svc.status.state == "open"
    assert (on_record("payments") or {})["state"] == "open"
    store = open_store(Settings.load(), create=False)
    registry().close()
    from tests.contracts.conftest import drop_tables

    drop_tables(store)
    store.close()


def test_the_store_is_slow_to_come(monkeypatch: pytest.MonkeyPatch, state_dir: Path) -> None:
    """The first failure makes the store, which may take longer than a call waits: nothing is lost, nothing counted twice."""
    from dramatiq_chaperone import store as package

    made = package.open_store

    def slowly(*arguments: Any, **more: Any) -> Any:
        time.sleep(0.6)
        return made(*arguments, **more)

    monkeypatch.setattr(package, "open_store", slowly)
    svc = breaker("payments", failure_threshold=4)
    fails("payments", 3)
    assert (svc.status.state, svc.fail_counter) == ("closed", 3)
    wait_until(lambda: not registry()._database._kept and not registry()._database._is_slow)  # type: ignore[union-attr]
    wait_until(lambda: (on_record("payments") or {}).get("failure_count") == 3)
    wait_until(lambda: svc.fail_counter == 3)
    fails("payments")
    assert svc.status.state == "open"


# -- forks, threads, the watcher


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_nothing_of_the_parents_is_used_after_a_fork(state_dir: Path) -> None:
    svc = breaker("payments", failure_threshold=9)
    for _ in range(5):
        svc.call(int)
    fails("payments")
    wait_until(lambda: on_record("payments") is not None)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            fails("payments")
            registry().close()
            code = 0 if svc.status.succeeded == 0 else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    wait_until(lambda: (on_record("payments") or {}).get("failure_count") == 2)
    registry().close()
    store = open_store(Settings.load(), create=False)
    counted = {labels["result"]: value for name, labels, value in queries.counters(store) if name == rows.CALLS}
    store.close()
    assert counted == {"succeeded": 5, "failed": 2}


def test_eight_threads_run_at_once(state_dir: Path) -> None:
    svc, inside = breaker("payments"), threading.Barrier(8, timeout=10)
    threads = [threading.Thread(target=svc.call, args=(inside.wait,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert svc.status.succeeded == 8


def test_eight_threads_that_fail_at_once_are_counted_once_each(state_dir: Path) -> None:
    breaker("payments", failure_threshold=1000)
    fails("payments")
    threads = [threading.Thread(target=fails, args=("payments", 10)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until(lambda: (on_record("payments") or {}).get("failure_count") == 81, timeout_s=20)
    wait_until(lambda: breaker("payments").fail_counter == 81)


def test_in_a_worker_of_this_process(state_dir: Path) -> None:
    broker = StubBroker(middleware=[])
    chaperone = Chaperone(circuit_breaker_threshold=2)
    broker.add_middleware(chaperone)

    @dramatiq.actor(broker=broker)
    def pay() -> None:
        with breaker("payments"):
            raise ConnectionError("no route")

    worker = Worker(broker, worker_threads=2, worker_timeout=50)
    worker.start()
    try:
        for _ in range(5):
            pay.send()
        broker.join("default", timeout=30_000, fail_fast=False)
        worker.join()
        wait_until(lambda: state("payments") == "open")
    finally:
        worker.stop()
        chaperone.close()
        broker.close()
    assert breaker("payments").policy.failure_threshold == 2, "the settings are those of the middleware"
    store = open_store(chaperone.settings, create=False)
    counted = {labels["result"]: value for name, labels, value in queries.counters(store) if name == rows.CALLS}
    assert counted["failed"] + counted["refused"] == 5
    assert [row["name"] for row in queries.service_events(store, "payments")] == ["CircuitBreakerOpened"]
    store.close()


class Watched:
    def __init__(self) -> None:
        self.written: list[tuple[Any, ...]] = []
        self.looks = 0

    def is_watched(self) -> bool:
        return True

    def look(self) -> None:
        self.looks += 1

    def append(self, entry: tuple[Any, ...]) -> None:
        self.written.append(entry)


def test_a_worker_with_a_watcher_asks_nobody_and_writes_into_its_journal(state_dir: Path) -> None:
    link = Watched()
    shared.link = link
    svc = breaker("payments", failure_threshold=2)
    svc.call(int)
    wait_until(lambda: link.written and link.looks > 2)
    assert link.written[0][2:7] == ("payments", 1, 0, 0, 0)
    assert not list(state_dir.glob("*.sqlite3"))
    opened = order(Circuit(version=7), svc.policy, "open", time.time()).circuit
    shared.told(telling([("payments", opened), ("mail", opened)], time.time()))
    with pytest.raises(BreakerOpen):
        svc.call(int)
    assert shared.state("mail").is_refusing, "known without a breaker, and without asking"
    shared.told(telling([("payments", Circuit(version=6))], time.time()))
    assert svc.status.state == "open", "what is older changes nothing"
    shared.told(telling([("payments", Circuit(version=9))], time.time()))
    assert svc.call(int) == 0


def test_the_periods_of_those_who_pass_a_change_on_add_up_to_less_than_a_second(chaperone_env: Env, state_dir: Path) -> None:
    """What a test sees by the clock depends on the machine; this does not."""
    watcher = Watcher(Settings.load(), multiprocessing.current_process())  # type: ignore[arg-type]  # it is only asked whether it lives
    told_s = watcher._duties.interval_s
    assert told_s + LOOK_EVERY_S <= 0.75, "from the store to the watcher, and from its control block to the breaker"
    assert READ_EVERY_S < 1, "from the store to a breaker without a watcher"


def test_the_last_error_is_told_shortened_while_a_circuit_is_not_closed() -> None:
    failed = Circuit(version=7, state="open", last_error="OSError: " + "x" * 400)
    shared.told(telling([("payments", failed), ("mail", replace(failed, state="closed"))], time.time()))
    assert shared.state("payments").last_error == ("OSError: " + "x" * 400)[:120]
    assert shared.state("mail").last_error is None


@pytest.mark.parametrize("letter", ["x", "é"])
def test_all_circuits_that_are_told_fit_a_control_block(tmp_path: Path, letter: str) -> None:
    """However long their names and errors are, as far as they are written in ASCII; errors in another script are left out first."""
    at = time.time()
    failed = Circuit(version=time.time_ns(), state="half_open", opened_at=at, reopens_at=at, half_opened_at=at, last_failure_at=at)
    failed = replace(failed, failures=10**6, successes=10**6, openings=10**6, last_error=letter * 500)
    block = ControlBlock(tmp_path / "block")
    message = telling([(f"{number:0191}", failed) for number in range(MOST)], at)
    ControlBlock.write(tmp_path / "block", {"known": {"breakers": message}, "requests": {}, "commands": []})
    read = block.read()
    assert read is not None
    shared.told(read["known"]["breakers"])
    assert shared.state(f"{0:0191}").last_error == letter * 120
    assert shared.state(f"{MOST - 1:0191}").state == "half_open"
    block.close()


def test_a_listener_may_use_another_breaker(state_dir: Path) -> None:
    """On the thread that speaks to the store it waits for nobody."""
    import pybreaker

    svc = breaker("payments", failure_threshold=1)

    class Curious(pybreaker.CircuitBreakerListener):
        def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:
            breaker("mail", failure_threshold=1)
            with pytest.raises(ConnectionError):
                breaker("mail").call(fail)

    svc.add_listener(Curious())
    fails("payments")
    wait_until(lambda: state("mail") == "open")
