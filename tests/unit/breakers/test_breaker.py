"""Every way to use a breaker, and what each kind of end does to it."""

from __future__ import annotations

import asyncio
import inspect
import pickle
import threading
from abc import ABC
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from math import inf
from typing import Any

import pybreaker
import pytest
from dramatiq.errors import RateLimitExceeded, Retry
from dramatiq.middleware import Shutdown, TimeLimitExceeded

from dramatiq_chaperone import BreakerOpen, breaker, breakers
from dramatiq_chaperone.breakers import permits
from dramatiq_chaperone.breakers.breaker import CircuitBreaker
from dramatiq_chaperone.circuits import Calls
from dramatiq_chaperone.errors import JobCancelled
from dramatiq_chaperone.records import BUCKETS
from tests.waiting import wait_until

from .conftest import Hands


class Down(Exception):
    pass


@pytest.fixture
def svc(clock: Hands) -> CircuitBreaker:
    return breaker("svc", storage="memory", failure_threshold=2, success_threshold=2, timeout=60, half_open_attempts=2)


def fail(*args: object, **kwargs: object) -> None:
    raise Down("no")


def fine(*args: object) -> str:
    return "fine"


def open_it(svc: CircuitBreaker) -> None:
    for _ in range(2):
        with pytest.raises(Down):
            svc.call(fail)
    assert svc.current_state == "open"


def through_with(svc: CircuitBreaker, function: Callable[[], Any]) -> Any:
    with svc:
        return function()


def through_calling(svc: CircuitBreaker, function: Callable[[], Any]) -> Any:
    with svc.calling():
        return function()


def through_call(svc: CircuitBreaker, function: Callable[[], Any]) -> Any:
    return svc.call(function)


def through_decorator(svc: CircuitBreaker, function: Callable[[], Any]) -> Any:
    return svc(function)()


def through_generator(svc: CircuitBreaker, function: Callable[[], Any]) -> Any:
    @svc
    def numbers() -> Iterator[int]:
        yield 1
        return function()

    def run() -> Any:
        return (yield from numbers())

    running = run()
    assert next(running) == 1
    try:
        next(running)
    except StopIteration as end:
        return end.value


def through_async_with(svc: CircuitBreaker, function: Callable[[], Any]) -> Any:
    async def run() -> Any:
        async with svc:
            await asyncio.sleep(0)
            return function()

    return asyncio.run(run())


def through_coroutine(svc: CircuitBreaker, function: Callable[[], Any]) -> Any:
    @svc
    async def run() -> Any:
        await asyncio.sleep(0)
        return function()

    assert inspect.iscoroutinefunction(run)
    return asyncio.run(run())


def through_call_of_coroutine(svc: CircuitBreaker, function: Callable[[], Any]) -> Any:
    async def run() -> Any:
        await asyncio.sleep(0)
        return function()

    return asyncio.run(svc.call(run))


def through_maker_of_coroutine(svc: CircuitBreaker, function: Callable[[], Any]) -> Any:
    async def run() -> Any:
        return function()

    def make() -> Any:
        return run()

    async def main() -> Any:
        return await svc.call(make)

    return asyncio.run(main())


def through_async_generator(svc: CircuitBreaker, function: Callable[[], Any]) -> Any:
    @svc
    async def numbers() -> AsyncIterator[Any]:
        yield 1
        yield function()

    assert inspect.isasyncgenfunction(numbers)

    async def run() -> Any:
        return [each async for each in numbers()][-1]

    return asyncio.run(run())


WAYS = [value for name, value in sorted(globals().items()) if name.startswith("through_")]


@pytest.mark.parametrize("way", WAYS)
def test_every_way_counts_and_refuses(svc: CircuitBreaker, clock: Hands, way: Callable[..., Any]) -> None:
    assert way(svc, fine) == "fine"
    for _ in range(2):
        with pytest.raises(Down):
            way(svc, fail)
    ran: list[int] = []
    with pytest.raises(BreakerOpen) as caught:
        way(svc, lambda: ran.append(1))
    assert ran == []
    assert (caught.value.service, caught.value.retry_after) == ("svc", 60)
    assert caught.value.since == datetime.fromtimestamp(clock.at, UTC)
    clock.at += 60
    assert way(svc, fine) == "fine"
    assert svc.current_state == "half-open"
    assert way(svc, fine) == "fine"
    assert svc.current_state == "closed"
    state = svc.status
    assert (state.succeeded, state.failed, state.refused, state.ignored) == (3, 2, 1, 0)


@pytest.mark.parametrize("way", WAYS)
def test_a_trial_that_fails_opens_it_whatever_way(svc: CircuitBreaker, clock: Hands, way: Callable[..., Any]) -> None:
    open_it(svc)
    clock.at += 60
    with pytest.raises(Down):
        way(svc, fail)
    assert svc.current_state == "open"
    assert permits.find("svc") is None


NEITHER = [Shutdown, TimeLimitExceeded, JobCancelled, Retry, RateLimitExceeded, KeyboardInterrupt, SystemExit, GeneratorExit,
           asyncio.CancelledError, pybreaker.CircuitBreakerError]  # fmt: skip


@pytest.mark.parametrize("kind", NEITHER)
def test_what_says_nothing_of_the_service(svc: CircuitBreaker, clock: Hands, kind: type[BaseException]) -> None:
    def interrupted() -> None:
        raise kind("x")

    with pytest.raises(Down):
        svc.call(fail)
    for _ in range(5):
        with pytest.raises(kind):
            svc.call(interrupted)
    assert (svc.fail_counter, svc.status.ignored) == (1, 5)
    with pytest.raises(Down):
        svc.call(fail)
    clock.at += 60
    for _ in range(5):
        with pytest.raises(kind):
            svc.call(interrupted)
    assert svc.current_state == "half-open", "and its permit came back each time"


def test_the_call_that_trips_it_raises_its_own_exception(svc: CircuitBreaker) -> None:
    with pytest.raises(Down):
        svc.call(fail)
    with pytest.raises(Down):
        svc.call(fail)
    with pytest.raises(BreakerOpen):
        svc.call(fail)


def test_fallbacks(svc: CircuitBreaker, clock: Hands) -> None:
    with pytest.raises(Down):
        svc.call(fail, fallback="cached")
    assert svc.execute(fail, fallback="cached", fallback_on_failure=True) == "cached"
    assert svc.call(fine, 1, fallback="cached") == "cached", "it is open"
    assert svc.call(fine, 1, 2, fallback=lambda a, b: a + b) == 3
    assert svc.call(fine, fallback=None) is None

    @svc(fallback=lambda number: -number)
    def double(number: int) -> int:
        return 2 * number

    assert double(3) == -3
    clock.at += 60
    assert double(3) == 6

    @svc(fallback="cached")
    async def load() -> str:
        return "loaded"

    svc.open()
    assert asyncio.run(load()) == "cached"

    async def other() -> str:
        return "other"

    assert asyncio.run(svc.call(load.__wrapped__, fallback=other)) == "other"


def count(up_to: int) -> Iterator[int]:
    yield from range(up_to)


async def acount(up_to: int) -> AsyncIterator[int]:
    for number in range(up_to):
        yield number


def make_count(up_to: int) -> Iterator[int]:
    return count(up_to)


def make_acount(up_to: int) -> AsyncIterator[int]:
    return acount(up_to)


GENERATORS = [count, acount, make_count, make_acount]


def everything_of(made: Any) -> list[Any]:
    async def run() -> list[Any]:
        return [each async for each in made]

    return asyncio.run(run()) if hasattr(made, "__aiter__") else list(made)


async def a_list(*args: object) -> list[int]:
    return [8, 9]


@pytest.mark.parametrize("function", GENERATORS)
def test_a_fallback_stands_in_for_a_generator(svc: CircuitBreaker, function: Callable[..., Any]) -> None:
    assert everything_of(svc.call(function, 2, fallback=[9])) == [0, 1]
    open_it(svc)
    fallbacks = [([8, 9], [8, 9]), ("ab", ["a", "b"]), (lambda up_to: (up_to,), [3]), (count, [0, 1, 2])]
    if function is acount:
        fallbacks += [(acount, [0, 1, 2]), (a_list, [8, 9])]
    for fallback, found in fallbacks:
        assert everything_of(svc.call(function, 3, fallback=fallback)) == found
        if not function.__name__.startswith("make"):
            assert everything_of(svc(fallback=fallback)(function)(3)) == found


@pytest.mark.parametrize("function", GENERATORS)
@pytest.mark.parametrize("fallback", [None, 5, lambda up_to: up_to])
def test_a_fallback_that_cannot_be_iterated_is_named(svc: CircuitBreaker, function: Callable[..., Any], fallback: Any) -> None:
    open_it(svc)
    name = function.__name__.removeprefix("make_")
    got = "None" if fallback is None else "5"
    # One that gives a generator is not even called while the breaker is open, and then nobody knows that it does.
    if function.__name__.startswith("make"):
        svc.half_open()
        made = svc.call(function, 5, fallback=fallback)
        svc.open()
    else:
        made = svc.call(function, 5, fallback=fallback)
    with pytest.raises(TypeError, match=f"breaker 'svc' has for the generator {name} a fallback that cannot be iterated: {got}$"):
        everything_of(made)


@pytest.mark.parametrize("function", GENERATORS)
def test_a_generator_takes_no_fallback_for_a_failure(svc: CircuitBreaker, function: Callable[..., Any]) -> None:
    """Half of what it gives, and then all that the fallback gives, is what nobody has asked for."""
    refused = rf"fallback_on_failure is not for the generator {function.__name__.removeprefix('make_')}:"
    with pytest.raises(TypeError, match=refused):
        svc.call(function, 3, fallback=[9], fallback_on_failure=True)
    with pytest.raises(TypeError, match=refused):
        svc.call(function, 3, fallback_on_failure=True)
    decorate = svc(fallback=[9], fallback_on_failure=True)
    with pytest.raises(TypeError, match=refused):
        decorate(function)(3)
    if not function.__name__.startswith("make"):
        with pytest.raises(TypeError, match=refused):
            decorate(function)
    assert (svc.status.failed, svc._trials) == (0, 0)


def test_a_fallback_may_use_another_breaker(svc: CircuitBreaker) -> None:
    mirror = breaker("mirror", storage="memory", failure_threshold=1)
    open_it(svc)
    assert svc.call(fail, fallback=lambda: mirror.call(fine, fallback="cached")) == "fine"
    mirror.open()
    assert svc.call(fail, fallback=lambda: mirror.call(fine, fallback="cached")) == "cached"


def test_an_exception_to_ignore_is_no_failure_and_no_success(clock: Hands) -> None:
    svc = breaker("svc", storage="memory", failure_threshold=2, ignore_exceptions=[KeyError, lambda error: "later" in str(error)])
    for kind in (Down, KeyError, KeyError):
        with pytest.raises(kind):
            svc.call(raising(kind("x")))
    with pytest.raises(Down):
        svc.call(raising(Down("ask later")))
    assert svc.fail_counter == 1
    with pytest.raises(KeyError):
        svc.call(raising(KeyError()), fallback="cached", fallback_on_failure=True)
    with pytest.raises(Down):
        svc.call(fail)
    assert svc.current_state == "open"


def raising(error: BaseException) -> Callable[[], None]:
    def call() -> None:
        raise error

    return call


class Transient(ABC):  # noqa: B024 - a marker, as in collections.abc
    pass


Transient.register(TimeoutError)


class Hiccup(Down, Transient):
    pass


def test_classes_that_are_abstract_are_classes(clock: Hands) -> None:
    other = breaker("other", storage="memory", ignore_exceptions=[Transient])
    for error in (Hiccup(), TimeoutError(), Down()):
        with pytest.raises(type(error)):
            other.call(raising(error))
    assert (other.status.ignored, other.status.failed) == (2, 1)

    class Odd(Exception, metaclass=type("Meta", (type,), {})):  # type: ignore[misc]  # such classes exist
        pass

    svc = breaker("svc", storage="memory", failure_threshold=1, ignore_exceptions=[Odd])
    with pytest.raises(RuntimeError):
        svc.call(raising(RuntimeError()))
    assert svc.current_state == "open"


def test_only_what_is_to_be_recorded_counts(clock: Hands) -> None:
    svc = breaker("svc", storage="memory", failure_threshold=2, record_exceptions=ConnectionError)
    for error in (ConnectionError(), ValueError(), ConnectionError()):
        with pytest.raises(type(error)):
            svc.call(raising(error))
    assert (svc.current_state, svc.fail_counter) == ("closed", 1)
    assert svc.status.succeeded == 1


def test_a_deploy_is_no_failure_to_a_rule_that_leaves_out_what_it_knows(clock: Hands) -> None:
    svc = breaker("svc", storage="memory", failure_threshold=1, record_exceptions=lambda error: not isinstance(error, ValueError))
    for error in (Shutdown(), KeyboardInterrupt(), Retry("later"), ValueError()):  # type: ignore[no-untyped-call]
        with pytest.raises(type(error)):
            svc.call(raising(error))
    assert (svc.current_state, svc.status.ignored) == ("closed", 3)
    with pytest.raises(KeyError):
        svc.call(raising(KeyError()))
    assert svc.current_state == "open"
    named = breaker("named", storage="memory", failure_threshold=1, record_exceptions=[Shutdown])
    with pytest.raises(Shutdown):
        named.call(raising(Shutdown()))  # type: ignore[no-untyped-call]
    assert named.current_state == "open"


def test_a_rule_that_breaks_hides_nothing(clock: Hands, caplog: pytest.LogCaptureFixture) -> None:
    svc = breaker("svc", storage="memory", failure_threshold=1, ignore_exceptions=lambda error: error.code == 3)
    with pytest.raises(Down):
        svc.call(fail)
    assert svc.current_state == "open"


def test_a_returned_value_may_be_a_failure(clock: Hands) -> None:
    svc = breaker("svc", storage="memory", failure_threshold=2, record_result=lambda status: status >= 500)
    assert svc.call(lambda: 200) == 200
    assert svc.call(lambda: 503) == 503
    assert svc.call(lambda: 503, fallback=0, fallback_on_failure=True) == 0
    assert svc.current_state == "open"
    assert svc.status.last_error == "the returned value"


def test_a_block_returns_nothing_to_be_judged(clock: Hands) -> None:
    asked: list[object] = []
    svc = breaker("svc", storage="memory", record_result=asked.append)
    with svc:
        pass
    assert list(svc.call(lambda: iter("a"))) == ["a"]
    through_async_with(svc, fine)
    through_generator(svc, fine)
    assert len(asked) == 1


def test_every_other_call_failing_opens_nothing_whoever_told_of_the_others() -> None:
    svc = breaker("real", storage="memory", failure_threshold=2)
    for _ in range(9):
        assert svc.call(fine) == "fine"
        svc.tally.take()  # a watcher is told of it, by way of the journal, which comes later than the failure
        with pytest.raises(Down):
            svc.call(fail)
    assert (svc.current_state, svc.fail_counter) == ("closed", 1)


def test_a_nested_guard_takes_no_permit_of_its_own(svc: CircuitBreaker, clock: Hands) -> None:
    svc = breaker("one", storage="memory", failure_threshold=1, success_threshold=1, timeout=60, half_open_attempts=1)
    with pytest.raises(Down):
        svc.call(fail)
    clock.at += 60
    with svc:
        with svc:
            assert svc.call(fine) == "fine"
        assert svc.current_state == "half-open"
    assert svc.current_state == "closed"


def test_what_a_guard_inside_saw_goes_before_the_end_of_the_job(svc: CircuitBreaker, clock: Hands) -> None:
    open_it(svc)
    clock.at += 60
    held = svc.try_acquire()
    assert held is not None
    with permits.holding(held):
        with pytest.raises(Down):
            svc.call(fail)
        assert svc.current_state == "half-open"
    svc.settle(held, None)
    assert svc.current_state == "open"
    clock.at += 60
    held = svc.try_acquire()
    assert held is not None
    svc.settle(held, Down("the job itself, without a guard inside"))
    assert svc.current_state == "open"
    svc.settle(held, None)
    assert svc.current_state == "open", "a permit ends once"


def test_trials_run_side_by_side_up_to_their_number(svc: CircuitBreaker, clock: Hands) -> None:
    open_it(svc)
    clock.at += 60
    inside, go = threading.Barrier(3, timeout=10), threading.Event()

    def slow() -> None:
        inside.wait()
        assert go.wait(10)

    threads = [threading.Thread(target=svc.call, args=(slow,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    inside.wait()
    with pytest.raises(BreakerOpen) as caught:
        svc.call(fine)
    assert caught.value.retry_after > 0
    go.set()
    for thread in threads:
        thread.join()
    assert svc.current_state == "closed"


def test_generators_keep_their_manners(svc: CircuitBreaker, clock: Hands) -> None:
    closed: list[bool] = []

    @svc
    def echo() -> Iterator[Any]:
        try:
            got = yield "ready"
            while True:
                try:
                    got = yield got
                except KeyError:
                    got = "caught"
        finally:
            closed.append(True)

    running: Any = echo()
    assert next(running) == "ready"
    assert running.send("a") == "a"
    assert running.throw(KeyError()) == "caught"
    running.close()
    assert closed == [True]
    assert (svc.status.ignored, svc.status.succeeded, svc.status.failed) == (1, 0, 0)


def test_async_generators_keep_theirs(svc: CircuitBreaker, clock: Hands) -> None:
    closed: list[bool] = []

    @svc
    async def echo() -> AsyncIterator[Any]:
        try:
            got = yield "ready"
            while True:
                try:
                    got = yield got
                except KeyError:
                    got = "caught"
        finally:
            closed.append(True)

    async def run() -> None:
        running: Any = echo()
        assert await anext(running) == "ready"
        assert await running.asend("a") == "a"
        assert await running.athrow(KeyError()) == "caught"
        await running.aclose()

    asyncio.run(run())
    assert closed == [True]
    assert (svc.status.ignored, svc.status.failed) == (1, 0)


def test_by_hand(svc: CircuitBreaker, clock: Hands) -> None:
    assert svc.open() is True
    assert svc.open() is False
    svc.half_open()
    assert svc.current_state == "half-open"
    svc.close()
    assert svc.current_state == "closed"
    svc.force_open()
    clock.at += 1_000_000
    with pytest.raises(BreakerOpen, match="forced open") as caught:
        svc.call(fine)
    assert caught.value.since is None
    svc.disable()
    for _ in range(9):
        with pytest.raises(Down):
            svc.call(fail)
    assert (svc.status.mode, svc.status.failed) == ("disabled", 0)
    svc.metrics_only()
    for _ in range(9):
        with pytest.raises(Down):
            svc.call(fail)
    assert (svc.status.mode, svc.status.failed, svc.status.failure_count) == ("metrics_only", 9, 9)
    svc.auto()
    open_it(svc)
    svc.state = "closed"
    svc.reset()
    assert svc.fail_counter == 0


class Listener(pybreaker.CircuitBreakerListener):
    def __init__(self) -> None:
        self.heard: list[Any] = []

    def before_call(self, cb: Any, func: Any, *args: Any, **kwargs: Any) -> None:
        self.heard.append(("before", args))

    def success(self, cb: Any) -> None:
        self.heard.append("success")

    def failure(self, cb: Any, exc: BaseException) -> None:
        self.heard.append(("failure", type(exc)))

    def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:
        self.heard.append((old_state.name, new_state.name))


def test_pybreakers_listeners_hear_everything(svc: CircuitBreaker, clock: Hands) -> None:
    listener = Listener()
    svc.add_listener(listener)
    svc.call(fine, 1)
    for _ in range(2):
        with pytest.raises(Down):
            svc.call(fail)
    clock.at += 60
    svc.call(fine)
    svc.call(fine)
    failed = [("before", ()), ("failure", Down)]
    trials = [("open", "half-open"), ("before", ()), "success", ("before", ()), "success", ("half-open", "closed")]
    assert listener.heard == [("before", (1,)), "success", *failed, *failed, ("closed", "open"), *trials]
    assert svc.listeners == (listener,)
    svc.remove_listener(listener)
    assert svc._is_plain


@pytest.mark.parametrize("way", WAYS)
def test_listeners_hear_once_of_each_call_whatever_way(svc: CircuitBreaker, way: Callable[..., Any]) -> None:
    listener = Listener()
    svc.add_listener(listener)
    way(svc, fine)
    assert listener.heard == [("before", ()), "success"]
    with pytest.raises(Down):
        way(svc, fail)
    assert listener.heard[2:] == [("before", ()), ("failure", Down)]
    svc.open()
    with pytest.raises(BreakerOpen):
        way(svc, fine)
    assert listener.heard[4:] == [("closed", "open")]


def test_a_listener_that_breaks_breaks_nothing(svc: CircuitBreaker) -> None:
    class Broken(Listener):
        def success(self, cb: Any) -> None:
            raise RuntimeError("mine")

    svc.add_listener(Broken())
    assert svc.call(fine) == "fine"


def test_it_is_one_of_pybreakers(svc: CircuitBreaker) -> None:
    assert isinstance(svc, pybreaker.CircuitBreaker)
    assert issubclass(BreakerOpen, pybreaker.CircuitBreakerError)
    assert (svc.fail_max, svc.reset_timeout, svc.success_threshold, svc.name) == (2, 60, 2, "svc")
    assert (svc.fail_counter, svc.success_counter, svc.state.name) == (0, 0, "closed")
    assert svc.state.call(fine) == "fine"
    svc.add_excluded_exception(KeyError)
    assert svc.excluded_exceptions == (KeyError,)
    assert not svc.is_system_error(KeyError())
    svc.remove_excluded_exception(KeyError)
    assert svc.is_system_error(KeyError())
    with pytest.raises(AttributeError, match="shares"):
        svc.name = "other"


def test_the_error_travels(svc: CircuitBreaker) -> None:
    error = BreakerOpen("svc", datetime(2026, 1, 2, tzinfo=UTC), 3.5)
    again = pickle.loads(pickle.dumps(error))
    assert (again.service, again.since, again.retry_after, str(again)) == ("svc", error.since, 3.5, str(error))
    assert "2026-01-02 00:00:00 UTC; ask again in 3.5 s" in str(error)


def test_all_of_them(svc: CircuitBreaker) -> None:
    open_it(svc)
    breaker("mail", storage="memory").call(fine)
    mail, found = breakers()
    assert (mail.service, mail.state, mail.succeeded, mail.is_refusing) == ("mail", "closed", 1, False)
    assert (found.state, found.failure_count, found.last_error, found.retry_after) == ("open", 2, "Down: no", 60)
    assert found.is_refusing


class TestHowLongCallsTake:
    """Each that was let through, however it is guarded and ends, is in one bucket of the next report."""

    @staticmethod
    def durations(clock: Hands, svc: CircuitBreaker) -> tuple[float, dict[float, int]]:
        seconds, buckets = svc.tally.durations.take()
        return seconds, {bound: number for bound, number in zip((*BUCKETS, inf), buckets, strict=False) if number}

    @pytest.fixture(autouse=True)
    def same_clock(self, clock: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in ("stopwatch", "lazy"):
            monkeypatch.setattr(f"dramatiq_chaperone.breakers.{module}.monotonic", lambda: clock.at)

    def test_by_call_with_and_decorator(self, clock: Hands) -> None:
        svc = breaker("svc", storage="memory")

        def takes(seconds: float, error: Exception | None = None) -> None:
            clock.at += seconds
            if error is not None:
                raise error

        svc.call(takes, 0.2)
        with svc:
            takes(2)
            with svc:
                takes(7)
        svc(takes)(90.0)
        with svc.calling():
            takes(90.0)
        for way in (svc.call, lambda function, *args: svc(function)(*args)):
            with pytest.raises(ValueError, match="no"):
                way(takes, 5000.0, ValueError("no"))
        with pytest.raises(ValueError, match="no"), svc:
            takes(5000.0, ValueError("no"))
        seconds, found = self.durations(clock, svc)
        assert found == {0.25: 1, 10: 2, 300: 2, inf: 3}
        assert seconds == pytest.approx(0.2 + 9 + 7 + 180 + 15_000)
        assert self.durations(clock, svc) == (0.0, {})

    def test_of_what_runs_after_it_was_called(self, clock: Hands) -> None:
        svc = breaker("svc", storage="memory")

        @svc
        async def coroutine() -> None:
            clock.at += 2

        @svc
        def generator() -> Iterator[int]:
            clock.at += 7
            yield 1

        @svc
        async def stream() -> AsyncIterator[int]:
            clock.at += 0.2
            yield 1

        async def block() -> None:
            async with svc:
                clock.at += 90
            async for _ in stream():
                pass

        asyncio.run(coroutine())
        assert list(generator()) == [1]
        asyncio.run(block())
        assert self.durations(clock, svc)[1] == {2.5: 1, 10: 1, 300: 1, 0.25: 1}

    def test_what_is_refused_took_no_time_and_what_could_not_be_told_is_told_later(self, clock: Hands) -> None:
        svc = breaker("svc", storage="memory", failure_threshold=1)
        with pytest.raises(ValueError, match="no"):
            svc.call(raising(ValueError("no")))
        with pytest.raises(BreakerOpen), svc:
            pass
        numbers, successes, took = svc.tally.take()
        assert sum(took[1]) == 1
        svc.tally.give_back(Calls("svc", *numbers, successes, 0.0, 0, *took))
        assert svc.tally.take()[2] == took

    def test_blocks_that_end_in_another_order(self, clock: Hands) -> None:
        first, second = breaker("first", storage="memory"), breaker("second", storage="memory")

        def block() -> Iterator[None]:
            with first:
                yield

        made = block()
        next(made)
        with second:
            clock.at += 2
            next(made, None)
            clock.at += 5
        assert self.durations(clock, first)[1] == {2.5: 1}
        assert self.durations(clock, second)[1] == {10: 1}


@pytest.mark.parametrize("is_refused", [False, True])
def test_who_is_cancelled_while_it_asks_keeps_no_permit(clock: Hands, monkeypatch: pytest.MonkeyPatch, is_refused: bool) -> None:
    svc = breaker("svc", storage="memory", failure_threshold=1, timeout=1, half_open_attempts=1, success_threshold=1)
    with pytest.raises(Down):
        svc.call(fail)
    clock.at += 2
    if is_refused:
        svc.try_acquire()
    asking, go = threading.Event(), threading.Event()
    admit = svc._admit

    def slowly() -> Any:
        asking.set()
        assert go.wait(10)
        return admit()

    async def call() -> None:
        async with svc:
            raise AssertionError("it was cancelled")

    async def main() -> None:
        task = asyncio.create_task(call())
        await asyncio.to_thread(asking.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go.set()
        if not is_refused:
            await asyncio.to_thread(wait_until, lambda: svc._trials == 0 and svc._circuit.state == "half_open" and not svc._circuit.permits)

    monkeypatch.setattr(svc, "_admit", slowly)
    asyncio.run(main())
    monkeypatch.undo()
    assert svc._trials == int(is_refused)


def test_who_gets_no_permit_asks_again_after_as_long_as_the_trials_have_taken(clock: Hands) -> None:
    svc = breaker("svc", storage="memory", failure_threshold=1, timeout=1, half_open_attempts=1, success_threshold=1)
    with pytest.raises(Down):
        svc.call(fail)
    clock.at += 2
    held = svc.try_acquire()
    waits = []
    began = clock.at
    while clock.at < began + 50:
        with pytest.raises(BreakerOpen) as caught:
            svc.try_acquire()
        waits.append(caught.value.retry_after)
        clock.at += waits[-1]
    assert waits == [1, 1, 2, 4, 8, 16, 30], "a message that waits for a minute's trial is put off seven times, not sixty"
    assert held is not None
    svc.settle(held, None)
    assert svc.wait_s() == 0


def test_half_open_by_hand_is_not_forced_open(clock: Hands) -> None:
    svc = breaker("svc", storage="memory", half_open_attempts=1)
    svc.half_open()
    assert svc.try_acquire() is not None
    with pytest.raises(BreakerOpen, match="is open since 2026") as caught:
        svc.call(fine)
    assert caught.value.since is not None


@pytest.mark.parametrize(("wait_s", "spread_s"), [(0.0, 1.0), (5.0, 1.0), (100.0, 10.0)])
def test_a_job_is_retried_at_its_time_or_up_to_a_tenth_later(wait_s: float, spread_s: float) -> None:
    delays = [BreakerOpen("svc", None, wait_s).delay for _ in range(50)]
    assert all(delay is not None and 1000 * wait_s - 1 <= delay <= 1000 * (wait_s + spread_s) for delay in delays)
    assert len(set(delays)) > 10, "not all at once"
