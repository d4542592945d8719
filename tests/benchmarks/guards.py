"""What a guarded call costs: ``python -m tests.benchmarks.guards TIMES REDIS_URL`` prints microseconds a call, as JSON."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from time import perf_counter, perf_counter_ns, sleep

import pybreaker
import redis

from dramatiq_chaperone import breaker
from dramatiq_chaperone.breakers.registry import registry

Loop = Callable[[int], None]


def nothing() -> None:
    pass


def calls(function: Callable[[], None]) -> Loop:
    def loop(times: int) -> None:
        for _ in range(times):
            function()

    return loop


def through_call(guard: pybreaker.CircuitBreaker) -> Loop:
    def loop(times: int) -> None:
        call = guard.call
        for _ in range(times):
            call(nothing)

    return loop


def through_with(guard: pybreaker.CircuitBreaker) -> Loop:
    def loop(times: int) -> None:
        for _ in range(times):
            with guard:  # type: ignore[attr-defined]  # ours is one
                nothing()

    return loop


def through_its_name(times: int) -> None:
    for _ in range(times):
        with breaker("payments"):
            nothing()


def through_calling(guard: pybreaker.CircuitBreaker) -> Loop:
    def loop(times: int) -> None:
        for _ in range(times):
            with guard.calling():
                nothing()

    return loop


def microseconds(loop: Loop, times: int) -> float:
    """The best of five: the others were disturbed."""
    best = float("inf")
    for _ in range(5):
        began = perf_counter_ns()
        loop(times)
        best = min(best, (perf_counter_ns() - began) / times / 1000)
    return best


def eight_at_once(guard: pybreaker.CircuitBreaker) -> float:
    """Seconds that eight threads take that each sleep for 0.25 s under the guard."""
    threads = [threading.Thread(target=guard.call, args=(sleep, 0.25)) for _ in range(8)]
    began = perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return perf_counter() - began


def main(times: int, url: str) -> None:
    ours = breaker("payments")
    plain = pybreaker.CircuitBreaker()
    shared = pybreaker.CircuitBreaker(
        state_storage=pybreaker.CircuitRedisStorage("closed", redis.Redis.from_url(url), namespace="payments")
    )
    ours.call(nothing)
    loops = {
        "bare": (calls(nothing), times),
        "ours, call": (through_call(ours), times),
        "ours, with": (through_with(ours), times),
        "ours, by name": (through_its_name, times),
        "ours, decorated": (calls(ours(nothing)), times),
        "pybreaker, call": (through_call(plain), times // 4),
        "pybreaker, calling()": (through_calling(plain), times // 4),
        "pybreaker, decorated": (calls(plain(nothing)), times // 4),
        "pybreaker with Redis, call": (through_call(shared), max(50, times // 400)),
    }
    found = {name: microseconds(loop, number) for name, (loop, number) in loops.items()}
    found["ours, eight"], found["pybreaker, eight"] = eight_at_once(ours), eight_at_once(plain)
    registry().close()
    print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
