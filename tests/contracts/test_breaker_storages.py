"""One contract for every keeper of circuits; and what two processes do to one circuit at the same moment."""

from __future__ import annotations

import contextlib
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dramatiq_chaperone import circuits
from dramatiq_chaperone.breakers.sharing import shared
from dramatiq_chaperone.breakers.storages import Storage, acquire_permit, give_order, record_outcome, release_permit
from dramatiq_chaperone.breakers.storages.database import DatabaseStorage
from dramatiq_chaperone.breakers.storages.memory import MemoryStorage
from dramatiq_chaperone.circuits import Altered, Calls, Circuit, Operation, Outcome, Policy, Result
from dramatiq_chaperone.records import BREAKER_CALLS
from dramatiq_chaperone.store import Store, audit, breakers, open_store, queries, retention
from dramatiq_chaperone.store.turns import StoreTurns
from tests.contracts.conftest import MakeStore, Process, StoreSettings, drop_tables
from tests.waiting import wait_until

POLICY = Policy(failure_threshold=2, success_threshold=2, timeout=0, half_open_attempts=1)
FAILURE = Outcome(Result.FAILURE, error="OSError: no")
KEEPERS = ("memory", "sqlite", "postgres", "mysql")


@pytest.fixture(autouse=True)
def nothing_shared() -> Iterator[None]:
    yield
    shared.circuits.clear()


@pytest.fixture(params=KEEPERS)
def keeper(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def settings(keeper: str, request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[StoreSettings | None]:
    if keeper == "memory":
        yield None
        return
    url = f"sqlite:///{tmp_path / 'chaperone.sqlite3'}" if keeper == "sqlite" else str(request.getfixturevalue(f"{keeper}_url"))
    settings = StoreSettings(url)
    store = open_store(settings, create=True)
    yield settings
    drop_tables(store)
    store.close()


@pytest.fixture
def took() -> list[tuple[str, Altered, bool]]:
    return []


def database(settings: Any, took: list[tuple[str, Altered, bool]], calls: list[Calls] | None = None) -> DatabaseStorage:
    left = calls if calls is not None else []

    def collect() -> list[Calls]:
        found, left[:] = list(left), []
        return found

    return DatabaseStorage(
        settings,
        took=lambda *what: took.append(what),
        collect=collect,
        give_back=left.extend,
        services=lambda: sorted({service for service, _, _ in took}),
    )


@pytest.fixture
def storage(settings: StoreSettings | None, took: list[tuple[str, Altered, bool]]) -> Iterator[Storage]:
    if settings is None:
        yield MemoryStorage(lambda *what: took.append(what))
        return
    keeper = database(settings, took)
    assert keeper.start()
    # The first step makes the connection, which on a machine that is busy may take longer than a call waits.
    wait_until(lambda: record_outcome(keeper, "warm", POLICY, Outcome(Result.NEITHER)) is not None)
    took.clear()
    yield keeper
    assert keeper.stop()


def done(altered: Altered | None) -> Altered:
    assert altered is not None, "the storage did not answer"
    return altered


# -- one process


def test_the_life_of_a_circuit(storage: Storage, took: list[tuple[str, Altered, bool]]) -> None:
    first = done(record_outcome(storage, "svc", POLICY, FAILURE))
    assert (first.step.circuit.failures, first.step.entered) == (1, ())
    assert abs(first.now - storage.clock.now()) < 5
    opened = done(record_outcome(storage, "svc", POLICY, FAILURE))
    assert (opened.step.circuit.state, opened.step.entered) == ("open", ("open",))
    trial = done(acquire_permit(storage, "svc", POLICY))
    assert trial.step.entered == ("half_open",)
    assert trial.step.permit is not None
    assert not done(acquire_permit(storage, "svc", POLICY)).step.is_admitted
    assert done(release_permit(storage, "svc", POLICY, trial.step.permit)).step.circuit.permits == ()
    for state in ("half_open", "closed"):
        trial = done(acquire_permit(storage, "svc", POLICY))
        ended = done(record_outcome(storage, "svc", POLICY, Outcome(Result.SUCCESS, trial.step.permit)))
        assert ended.step.circuit.state == state
    assert [each[0] for each in took] == ["svc"] * 9
    assert [each[1].step.entered for each in took if each[1].step.entered] == [("open",), ("half_open",), ("closed",)]


def test_services_are_apart(storage: Storage) -> None:
    done(record_outcome(storage, "a", POLICY, FAILURE))
    assert done(record_outcome(storage, "b", POLICY, FAILURE)).step.circuit.failures == 1


def test_orders(storage: Storage) -> None:
    assert done(give_order(storage, "svc", POLICY, "force_open")).step.circuit.mode == "forced_open"
    assert not done(acquire_permit(storage, "svc", POLICY)).step.is_admitted
    assert done(give_order(storage, "svc", POLICY, "auto")).step.circuit.mode == "auto"


def test_versions_only_grow(storage: Storage) -> None:
    found = [done(record_outcome(storage, "svc", POLICY._replace(failure_threshold=99), FAILURE)).step.circuit.version for _ in range(5)]
    assert found == sorted(set(found))


#: A step is waited for 250 ms; a thread of a machine that is busy wakes up later than that, but not each time.
TRIES, LIMIT_S = 5, 0.3

STEPS: dict[str, Callable[[Storage], Altered | None]] = {
    "record": lambda storage: record_outcome(storage, "svc", POLICY, FAILURE),
    "acquire": lambda storage: acquire_permit(storage, "svc", POLICY),
    "release": lambda storage: release_permit(storage, "svc", POLICY, ("nobody's", 0.0)),
}


@pytest.mark.parametrize("step", STEPS)
def test_no_step_is_waited_for_longer_than_250_ms(
    settings: StoreSettings | None, storage: Storage, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if settings is None:
        return  # it waits for nobody
    alter, go_on = breakers.alter, threading.Event()

    def hangs(*arguments: Any, **more: Any) -> Altered:
        assert go_on.wait(30)
        return alter(*arguments, **more)

    waited, waited_again = [], []
    for _ in range(TRIES):
        go_on.clear()
        monkeypatch.setattr(breakers, "alter", hangs)
        for times in (waited, waited_again):
            began = time.monotonic()
            assert STEPS[step](storage) is None
            times.append(time.monotonic() - began)
        go_on.set()
        monkeypatch.undo()
        wait_until(lambda: record_outcome(storage, "other", POLICY, Outcome(Result.NEITHER)) is not None)
    assert min(waited) < LIMIT_S
    assert min(waited_again) < LIMIT_S / 5, "while it is slow the next does not wait at all"


def test_the_first_step_takes_the_connection_that_is_there(settings: StoreSettings | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """To open another one takes as long as a call waits, on a machine that is busy: its failure would come too late to stop the next."""
    if settings is None:
        return  # it has none
    from dramatiq_chaperone import store as package

    opened, open_one = [], package.open_store

    def noted(*arguments: Any, **more: Any) -> Store:
        opened.append(open_one(*arguments, **more))
        return opened[-1]

    monkeypatch.setattr(package, "open_store", noted)
    new = database(settings, [])
    assert new.start()
    wait_until(lambda: opened, what="it to look")
    wait_until(lambda: record_outcome(new, "svc", POLICY, FAILURE) is not None)
    assert new.stop()
    assert len(opened) == 1


def test_a_process_that_prepares_knows_how_the_circuits_stand(settings: StoreSettings | None, storage: Storage) -> None:
    if settings is None:
        return  # nobody else has them
    done(give_order(storage, "svc", POLICY, "force_open"))
    shared.circuits.clear()
    new = database(settings, [])
    try:
        new.prepare()
        assert shared.circuits["svc"].mode == "forced_open"
    finally:
        assert new.stop()


def test_a_process_that_prepares_waits_no_longer_than_250_ms_for_the_store(
    settings: StoreSettings | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if settings is None:
        return
    told, go_on, waited = breakers.read_told, threading.Event(), []

    def hangs(store: Store) -> Any:
        assert go_on.wait(30)
        return told(store)

    for _ in range(TRIES):
        go_on.clear()
        monkeypatch.setattr(breakers, "read_told", hangs)
        new = database(settings, [])
        began = time.monotonic()
        new.prepare()
        waited.append(time.monotonic() - began)
        go_on.set()
        monkeypatch.undo()
        assert new.stop()
    assert 0.2 < min(waited) < LIMIT_S


def test_a_permit_that_comes_too_late_goes_back(settings: StoreSettings | None, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    if settings is None:
        return  # it is never late
    done(give_order(storage, "svc", POLICY, "half_open"))
    altered, late = breakers.alter, threading.Event()

    def slowly(*arguments: Any, **more: Any) -> Altered:
        late.wait(10)
        return altered(*arguments, **more)

    monkeypatch.setattr(breakers, "alter", slowly)
    assert acquire_permit(storage, "svc", POLICY) is None, "the call goes on without it"
    assert record_outcome(storage, "svc", POLICY, FAILURE) is None, "and the next does not wait at all"
    late.set()
    with contextlib.closing(open_store(settings, create=False)) as store:

        def circuit() -> Circuit:
            return breakers.read(store, "svc")[0] or Circuit()

        wait_until(lambda: circuit().last_failure_at is not None)
        assert circuit().state == "half_open", "its permit went back, and the failure is of a call from before"
        assert circuit().permits == ()
    wait_until(lambda: acquire_permit(storage, "svc", POLICY) is not None)


# -- two processes, one of them in the middle of its step


class Pair:
    """Two processes; the second begins while the first holds the circuit."""

    def __init__(self, settings: StoreSettings | None) -> None:
        self._settings = settings
        self._memory = MemoryStorage()
        self.found: dict[str, Altered] = {}

    def step(self, operation: Operation, *, store: Store | None = None) -> Altered:
        if self._settings is None:
            return done(self._memory.apply("svc", operation, is_kept=False))
        if store is not None:
            return breakers.alter(store, "svc", operation)
        with contextlib.closing(open_store(self._settings, create=False)) as own:
            return breakers.alter(own, "svc", operation)

    def at_once(self, operation: Operation) -> list[Altered]:
        """Both take the same step."""
        holds, begun = threading.Event(), threading.Event()

        def slowly(circuit: Circuit, now: float) -> circuits.Step:
            holds.set()
            assert begun.wait(10)
            time.sleep(0.05)  # the other waits for the lock by now, or will find the step taken: either must do
            return operation(circuit, now)

        def first() -> None:
            self.found["first"] = self.step(slowly)

        def second() -> None:
            assert holds.wait(10)
            begun.set()
            self.found["second"] = self.step(operation)

        threads = [threading.Thread(target=each) for each in (first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        return [self.found["first"], self.found["second"]]

    def events(self) -> list[str]:
        assert self._settings is not None
        with contextlib.closing(open_store(self._settings, create=False)) as own:
            return [row["name"] for row in reversed(queries.service_events(own, "svc"))]


@pytest.fixture
def pair(settings: StoreSettings | None) -> Pair:
    return Pair(settings)


def recording(outcome: Outcome, policy: Policy = POLICY) -> Operation:
    return lambda circuit, now: circuits.record(circuit, policy, outcome, now)


def asking(policy: Policy = POLICY) -> Operation:
    permits = iter(range(100))
    return lambda circuit, now: circuits.acquire(circuit, policy, f"p{next(permits)}", now)


def entered(found: list[Altered]) -> list[str]:
    return [state for altered in found for state in altered.step.entered]


def test_the_failure_that_opens_it(pair: Pair) -> None:
    pair.step(recording(FAILURE))
    found = pair.at_once(recording(FAILURE))
    assert entered(found) == ["open"]
    assert found[1].step.circuit.state == "open"
    if pair._settings is not None:
        assert pair.events() == ["CircuitBreakerOpened"]


def test_two_failures_that_open_it_together(pair: Pair) -> None:
    found = pair.at_once(recording(FAILURE))
    assert [altered.step.circuit.failures for altered in found] == [1, 2]
    assert entered(found) == ["open"]


def test_two_who_ask_when_it_may_reopen(pair: Pair) -> None:
    pair.step(lambda circuit, now: circuits.order(circuit, POLICY, "open", now))
    found = pair.at_once(asking())
    assert [altered.step.is_admitted for altered in found] == [True, False]
    assert entered(found) == ["half_open"]


def half_open(pair: Pair, policy: Policy) -> list[circuits.Permit]:
    pair.step(lambda circuit, now: circuits.order(circuit, policy, "half_open", now))
    found = [pair.step(asking(policy)).step.permit for _ in range(policy.half_open_attempts)]
    return [permit for permit in found if permit is not None]


TWO = POLICY._replace(half_open_attempts=2, success_threshold=1)


def test_two_trials_that_succeed(pair: Pair) -> None:
    permits = iter(half_open(pair, TWO))
    found = pair.at_once(lambda circuit, now: circuits.record(circuit, TWO, Outcome(Result.SUCCESS, next(permits)), now))
    assert entered(found) == ["closed"]


def test_two_trials_that_fail(pair: Pair) -> None:
    permits = iter(half_open(pair, TWO))
    found = pair.at_once(lambda circuit, now: circuits.record(circuit, TWO, Outcome(Result.FAILURE, next(permits)), now))
    assert entered(found) == ["open"]
    assert found[1].step.circuit.openings == 1


def test_one_that_succeeds_and_one_that_fails(pair: Pair) -> None:
    permits = half_open(pair, TWO)
    ends = iter([Outcome(Result.FAILURE, permits[0]), Outcome(Result.SUCCESS, permits[1])])
    found = pair.at_once(lambda circuit, now: circuits.record(circuit, TWO, next(ends), now))
    assert entered(found) == ["open"]
    assert found[1].step.circuit.state == "open", "the success is of a phase that is over"


@pytest.mark.parametrize("what", [*circuits.ORDERS, *circuits.MODE_ORDERS])
def test_two_operators(pair: Pair, what: str) -> None:
    pair.step(recording(FAILURE))
    if what in {"close", "reset", "auto"}:
        pair.step(lambda circuit, now: circuits.order(circuit, POLICY, "disable" if what == "auto" else "open", now))
    found = pair.at_once(lambda circuit, now: circuits.order(circuit, POLICY, what, now))
    assert [altered.step.is_changed for altered in found] == [True, what == "reset"]
    assert len(entered(found)) <= 1


# -- sixteen of them


def _fail(settings: StoreSettings, barrier: Any, results: Any) -> None:
    store = open_store(settings, create=False)
    barrier.wait(60)
    try:
        found = [breakers.alter(store, "svc", recording(FAILURE, Policy(failure_threshold=5))) for _ in range(3)]
        results.put(entered(found))
    except BaseException as error:
        results.put([repr(error)])
    finally:
        store.close()


def test_sixteen_processes_open_it_once(make_store: MakeStore, make_settings: Callable[..., StoreSettings], kind: str) -> None:
    store = make_store(table_prefix="sixteen_")
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(16), context.Queue()
    arguments = (make_settings(table_prefix="sixteen_"), barrier, results)
    processes = [context.Process(target=_fail, args=arguments) for _ in range(16)]
    for process in processes:
        process.start()
    found = [each for _ in processes for each in results.get(timeout=90)]
    for process in processes:
        process.join(30)
    assert found == ["open"]
    (event,) = queries.service_events(store, "svc")
    assert event["name"] == "CircuitBreakerOpened"
    assert (event["data"]["failure_count"], event["data"]["last_error"]) == (5, "OSError: no")
    counted = [(labels, value) for name, labels, value in queries.counters(store) if name == breakers.TRANSITIONS]
    assert counted == [({"service": "svc", "state": "open"}, 1)]


# -- what the store keeps of them


@pytest.mark.parametrize("key_type", ["id", "ulid", "uuid"])
def test_the_row_is_fit_for_people(make_store: MakeStore, key_type: str) -> None:
    store = make_store(primary_key_type=key_type)
    for _ in range(2):
        breakers.alter(store, "svc", recording(FAILURE, POLICY._replace(timeout=60)))
    (row,) = queries.list_breakers(store)
    assert (row["service"], row["state"], row["mode"], row["failure_count"], row["last_error"]) == ("svc", "open", "auto", 2, "OSError: no")
    assert (row["reopens_at"] - row["opened_at"]).total_seconds() == pytest.approx(60)
    assert "details" not in row
    circuit, now = breakers.read(store, "svc")
    assert circuit is not None
    assert abs((circuit.opened_at or 0) - now) < 60
    assert breakers.read(store, "none")[0] is None


def test_a_row_of_somebody_else(store: Store) -> None:
    at = "2026-01-02 03:04:05"
    columns = "service, created_at, updated_at, state, mode, failure_count, opened_at"
    store.execute(f"INSERT INTO {{circuit_breakers}} ({columns}) VALUES ('svc', ?, ?, 'open', 'auto', 7, ?)", (at, at, at))
    step = breakers.alter(store, "svc", asking()).step
    assert (step.circuit.state, step.circuit.failures) == ("half_open", 7)


def test_what_every_process_has_to_know(store: Store) -> None:
    breakers.alter(store, "old", recording(FAILURE))
    store.execute("UPDATE {circuit_breakers} SET updated_at = ?", (retention._at(store, time.time() - 3600),))
    breakers.alter(store, "fresh", recording(FAILURE))
    breakers.alter(store, "open", lambda circuit, now: circuits.order(circuit, POLICY, "open", now))
    breakers.alter(store, "off", lambda circuit, now: circuits.order(circuit, POLICY, "disable", now))
    store.execute("UPDATE {circuit_breakers} SET updated_at = ? WHERE service = 'open'", (retention._at(store, time.time() - 3600),))
    found, _ = breakers.read_told(store)
    assert {service for service, _ in found} == {"fresh", "open", "off"}
    assert [service for service, _ in found] == ["off", "open", "fresh"], "however many have only changed lately"
    assert breakers.read_states(store) == [
        ("fresh", "closed", "auto"), ("off", "closed", "disabled"), ("old", "closed", "auto"), ("open", "open", "auto"),
    ]  # fmt: skip


def test_calls_come_through_the_journal(store: Store) -> None:
    breakers.alter(store, "svc", recording(FAILURE))
    later = time.time() + 5
    worker = Process(store)
    worker.writes((BREAKER_CALLS, later, "svc", 3, 1, 2, 0, 3, later, 0), (BREAKER_CALLS, later, "svc", 1, 0, 0, 4, 1, later, 0))
    counted = {labels["result"]: value for name, labels, value in queries.counters(store) if name == breakers.CALLS}
    assert counted == {"succeeded": 4, "failed": 1, "refused": 2, "ignored": 4}
    circuit, _ = breakers.read(store, "svc")
    assert circuit is not None
    assert circuit.failures == 0
    took = (0, 2, *[0] * 14, 1)
    worker.writes(
        (BREAKER_CALLS, later, "new", 1, 0, 0, 0, 1, later, 0),  # of an earlier version
        *[(BREAKER_CALLS, later, "new", 2, 1, 0, 0, 2, later, 0, 4000.5, took) for _ in range(2)],
    )
    durations = {labels.get("le", name[-5:]): value for name, labels, value in queries.counters(store) if breakers.CALL_DURATION in name}
    assert durations == {"0.01": 4, "+Inf": 2, "count": 6, "s_sum": 8001.0}
    assert breakers.read(store, "new")[0] is not None, "a service that is only ever well is on record too"


def test_rows_unseen_for_thirty_days_go_never_an_open_one(store: Store, make_settings: Callable[..., StoreSettings]) -> None:
    for service in ("closed", "forced", "half", "open", "fresh"):
        breakers.alter(store, service, recording(FAILURE, POLICY._replace(failure_threshold=9)))
    for service, what in (("open", "open"), ("half", "half_open"), ("forced", "force_open")):
        breakers.alter(store, service, lambda circuit, now, what=what: circuits.order(circuit, POLICY, what, now))  # type: ignore[misc]
    long_ago = retention._at(store, time.time() - 31 * retention.DAY_S)
    store.execute("UPDATE {circuit_breakers} SET updated_at = ? WHERE service <> 'fresh'", (long_ago,))
    assert dict(retention.prune(store, make_settings())) == {"circuit_breakers": 1}
    assert [service for service, _, _ in breakers.read_states(store)] == ["forced", "fresh", "half", "open"]


def test_what_has_to_be_known_soon_is_asked_twice_as_often(store: Store, make_settings: Callable[..., StoreSettings]) -> None:
    class Counting:
        turns = 0

        def turn(self, store: Store) -> None:
            self.turns += 1

        def leave(self, store: Store) -> None:
            pass

    often, others = Counting(), Counting()
    turns = StoreTurns(make_settings(), [others], often=[often])
    turns._store = store
    for _ in range(4):
        turns.run_once()
    assert (often.turns, others.turns) == (4, 2)
    turns.run_once()
    turns.wake()
    turns.run_once()
    assert others.turns == 4, "whoever wakes it wants all of it"


@pytest.mark.parametrize("key_type", ["id", "ulid"])
def test_the_audit_log(make_store: MakeStore, key_type: str) -> None:
    store = make_store(primary_key_type=key_type)
    audit.record(store, "ann", "breaker open", "svc", "command line", "done")
    (row,) = store.rows("SELECT who, what, target, origin, result FROM {audit_log}")
    assert row == ("ann", "breaker open", "svc", "command line", "done")
