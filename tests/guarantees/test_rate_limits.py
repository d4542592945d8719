"""Rate limiters and barriers, inside of supervised jobs."""

from __future__ import annotations

import threading
import time
from typing import Any
from uuid import uuid4

import pytest
from dramatiq.rate_limits import (
    Barrier,
    BucketRateLimiter,
    ConcurrentRateLimiter,
    RateLimiterBackend,
    WindowRateLimiter,
)
from dramatiq.rate_limits.backends import RedisBackend, StubBackend

from tests.guarantees.conftest import Stage


@pytest.fixture(params=["stub", "redis"])
def backend(request: pytest.FixtureRequest) -> RateLimiterBackend:
    """Where limits are kept."""
    if request.param == "stub":
        return StubBackend()
    return RedisBackend(url=request.getfixturevalue("redis_url"))  # type: ignore[no-untyped-call]


class TestLimits:
    def test_so_many_at_once(self, stage: Stage, backend: RateLimiterBackend) -> None:
        limiter = ConcurrentRateLimiter(backend, f"mutex-{uuid4()}", limit=2)  # type: ignore[no-untyped-call]
        lock, now, most, done = threading.Lock(), 0, 0, 0

        @stage.actor(max_retries=1000, min_backoff=5, max_backoff=20)
        def work() -> None:
            nonlocal now, most, done
            with limiter.acquire():
                with lock:
                    now += 1
                    most = max(most, now)
                time.sleep(0.01)
                with lock:
                    now -= 1
                    done += 1

        for _ in range(12):
            work.send()
        stage.run(threads=8)
        assert done == 12
        assert most == 2

    @pytest.mark.parametrize("limiter", [BucketRateLimiter, WindowRateLimiter])
    def test_so_many_in_a_span_of_time(self, stage: Stage, backend: RateLimiterBackend, limiter: Any) -> None:
        options = {"bucket": 60_000} if limiter is BucketRateLimiter else {"window": 60}
        limit = limiter(backend, f"limit-{uuid4()}", limit=3, **options)
        admitted: list[bool] = []

        @stage.actor
        def work() -> None:
            with limit.acquire(raise_on_failure=False) as is_admitted:
                admitted.append(bool(is_admitted))

        for _ in range(10):
            work.send()
        stage.run(threads=4)
        # A bucket may end between two of them.
        assert admitted.count(True) in ({3, 6} if limiter is BucketRateLimiter else {3})

    def test_an_interrupted_job_gives_its_place_back(self, stage: Stage, backend: RateLimiterBackend) -> None:
        limiter = ConcurrentRateLimiter(backend, f"mutex-{uuid4()}", limit=1)  # type: ignore[no-untyped-call]

        @stage.actor(max_retries=0, timeout=0.05)
        def hold() -> None:
            with limiter.acquire():
                until = time.monotonic() + 20
                while time.monotonic() < until:
                    time.sleep(0.005)

        hold.send()
        stage.run()
        with limiter.acquire(raise_on_failure=False) as is_admitted:
            assert is_admitted


class TestBarrier:
    def test_it_opens_for_the_last_of_its_parties(self, stage: Stage, backend: RateLimiterBackend) -> None:
        barrier = Barrier(backend, f"barrier-{uuid4()}", ttl=30_000)  # type: ignore[no-untyped-call]
        assert barrier.create(parties=4)  # type: ignore[no-untyped-call]
        passed: list[Any] = []

        @stage.actor
        def arrive() -> None:
            passed.append(bool(barrier.wait(block=False)))  # type: ignore[no-untyped-call]

        for _ in range(4):
            arrive.send()
        stage.run(threads=4)
        assert sorted(passed) == [False, False, False, True]

    def test_whoever_waits_at_it_goes_on(self, stage: Stage, backend: RateLimiterBackend) -> None:
        barrier = Barrier(backend, f"barrier-{uuid4()}", ttl=30_000)  # type: ignore[no-untyped-call]
        barrier.create(parties=3)  # type: ignore[no-untyped-call]
        passed: list[Any] = []

        @stage.actor
        def arrive(after: float) -> None:
            time.sleep(after)
            passed.append(bool(barrier.wait(timeout=10_000)))  # type: ignore[no-untyped-call]

        for after in (0.0, 0.0, 0.3):
            arrive.send(after)
        stage.run(threads=3)
        assert passed == [True, True, True]
