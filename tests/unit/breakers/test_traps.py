"""What pybreaker does and ours must not: each of these fails on plain pybreaker.

Those of a storage that processes share are in tests/integration/test_breaker_traps.py.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from abc import ABCMeta
from collections.abc import Callable, Iterable
from typing import Any

import pybreaker
import pytest
from dramatiq.middleware import Shutdown

from dramatiq_chaperone import breaker

Make = Callable[..., pybreaker.CircuitBreaker]
_numbers = itertools.count()


def ours(
    *, failures: int = 3, timeout: float = 60, exclude: Iterable[Any] = (), rate: float | None = None, own_error: bool = True
) -> pybreaker.CircuitBreaker:
    options: dict[str, Any] = {} if rate is None else {"failure_rate_threshold": rate, "minimum_number_of_calls": 10}
    return breaker(
        f"svc{next(_numbers)}", storage="memory", failure_threshold=failures if rate is None else None, timeout=timeout,
        ignore_exceptions=list(exclude) or None, **options,
    )  # fmt: skip


def plain(
    *, failures: int = 3, timeout: float = 60, exclude: Iterable[Any] = (), rate: float | None = None, own_error: bool = True
) -> pybreaker.CircuitBreaker:
    """*own_error*: as nobody has it who does not ask for it, so that no other trap hides behind this one."""
    return pybreaker.CircuitBreaker(fail_max=failures, reset_timeout=timeout, exclude=list(exclude), throw_new_error_on_trip=not own_error)


@pytest.fixture(params=[ours, pytest.param(plain, marks=pytest.mark.xfail(raises=(AssertionError, threading.BrokenBarrierError)))])
def make(request: pytest.FixtureRequest) -> Make:
    found: Make = request.param
    return found


def failing() -> None:
    raise OSError("no")


def test_calls_run_side_by_side(make: Make) -> None:
    svc, inside = make(), threading.Barrier(4, timeout=2)
    broken: list[BaseException] = []

    def guarded() -> None:
        try:
            svc.call(inside.wait)
        except BaseException as error:
            broken.append(error)

    threads = [threading.Thread(target=guarded) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not broken


def test_half_open_lets_only_some_in(make: Make) -> None:
    svc, go, inside = make(failures=1, timeout=0), threading.Event(), []
    with pytest.raises(OSError, match="no"):
        svc.call(failing)
    done = threading.Semaphore(0)

    def trial() -> None:
        try:
            with svc.calling():
                inside.append(1)
                done.release()
                go.wait(10)
        except pybreaker.CircuitBreakerError:
            done.release()

    threads = [threading.Thread(target=trial) for _ in range(10)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert done.acquire(timeout=10)
    go.set()
    for thread in threads:
        thread.join()
    assert len(inside) == 3


def test_half_of_all_calls_failing_opens_it(make: Make) -> None:
    svc = make(rate=50)
    for _ in range(50):
        with pytest.raises((OSError, pybreaker.CircuitBreakerError)):
            svc.call(failing)
        if svc.current_state == "open":
            break
        svc.call(int)
    assert svc.current_state == "open"


def test_an_excluded_exception_is_no_success(make: Make) -> None:
    svc = make(exclude=[KeyError])
    for _ in range(3):
        with pytest.raises(OSError, match="no"):
            svc.call(failing)
        with pytest.raises((KeyError, pybreaker.CircuitBreakerError)):
            svc.call({}.__getitem__, 1)
    assert svc.current_state == "open"


def test_an_excluded_class_with_a_metaclass_excludes_itself_alone(make: Make) -> None:
    class Odd(Exception, metaclass=ABCMeta):
        pass

    svc = make(failures=1, exclude=[Odd])
    with pytest.raises(OSError, match="no"):
        svc.call(failing)
    assert svc.current_state == "open"


def test_a_deploy_is_no_failure(make: Make) -> None:
    def shut_down() -> None:
        raise Shutdown("bye")

    svc = make(failures=1)
    with pytest.raises(Shutdown):
        svc.call(shut_down)
    assert svc.current_state == "closed"


def test_a_coroutine_function_is_guarded(make: Make) -> None:
    svc = make(failures=1)

    @svc
    async def call() -> None:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        asyncio.run(call())
    assert svc.current_state == "open"


def test_whoever_looks_changes_nothing(make: Make) -> None:
    """Two that share a circuit: reading the state of one must not begin the other's count anew."""
    first = make(failures=2, timeout=0)
    if make is plain:
        second = pybreaker.CircuitBreaker(fail_max=2, reset_timeout=0, state_storage=first._state_storage)
    else:
        second = breaker(first.name or "", storage="memory")
    first.open()
    assert second.state.name == "open"
    first.close()
    with pytest.raises(OSError, match="no"):
        first.call(failing)
    assert second.state.name == "closed"
    assert first.fail_counter == 1


def test_the_call_that_trips_it_raises_its_own_exception(make: Make) -> None:
    svc = make(failures=2, own_error=False)
    raised: list[type[BaseException]] = []
    for _ in range(2):
        try:
            svc.call(failing)
        except Exception as error:
            raised.append(type(error))
    assert svc.current_state == "open"
    assert raised == [OSError, OSError]


def test_a_trial_that_fails_raises_its_own_exception(make: Make) -> None:
    svc = make(failures=1, own_error=False)
    svc.half_open()
    try:
        svc.call(failing)
    except Exception as error:
        raised = type(error)
    assert raised is OSError
