"""Time limits and shutdown notifications: who is interrupted, when, and who is not."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from dramatiq.middleware import AsyncIO, Middleware, Retries, Shutdown, ShutdownNotifications, TimeLimit, TimeLimitExceeded
from dramatiq.threading import Interrupt

from dramatiq_chaperone import records
from tests.guarantees.conftest import MakeStage, Same, Stage
from tests.waiting import wait_until

NEVER_S = 20.0


def limited(limit: float = 600_000, *, retries: int = 0) -> Callable[[], list[Middleware]]:
    """Middleware as the default, quick to look."""
    return lambda: [
        TimeLimit(time_limit=limit, interval=10),
        ShutdownNotifications(),
        AsyncIO(),
        Retries(max_retries=retries, min_backoff=1, max_backoff=2),
    ]


def spin(seconds: float = NEVER_S) -> str:
    """Run Python for so long; what ended it."""
    until = time.monotonic() + seconds
    try:
        while time.monotonic() < until:
            time.sleep(0.005)
    except Interrupt as interrupt:
        return type(interrupt).__name__
    return "time"


class TestTimeLimit:
    @pytest.mark.parametrize(
        ("default", "actor", "message"),
        [(100, {}, {}), (600_000, {"time_limit": 100}, {}), (600_000, {"time_limit": 600_000}, {"time_limit": 100})],
        ids=["default", "actor", "message"],
    )
    def test_it_comes_from_the_message_the_actor_or_the_middleware(
        self, same: Same, default: float, actor: dict[str, Any], message: dict[str, Any]
    ) -> None:
        def scenario(stage: Stage) -> list[str]:
            ends: list[str] = []
            stage.boot()
            stage.actor(lambda: ends.append(spin()), actor_name="work", **actor).send_with_options(**message)
            stage.run()
            return ends

        assert same(scenario, middleware=limited(default)) == ["TimeLimitExceeded"]

    def test_infinity_is_no_limit(self, same: Same) -> None:
        def scenario(stage: Stage) -> list[str]:
            ends: list[str] = []
            stage.boot()
            work = stage.actor(lambda: ends.append(spin(0.2)), actor_name="work", time_limit=float("inf"))
            work.send()
            work.send_with_options(time_limit=float("inf"))
            stage.run()
            return ends

        assert same(scenario, middleware=limited(50)) == ["time", "time"]

    def test_nothing_is_limited_outside_of_the_command(self, same: Same) -> None:
        def scenario(stage: Stage) -> list[str]:
            ends: list[str] = []
            stage.actor(lambda: ends.append(spin(0.2)), actor_name="work").send()
            stage.run()
            return ends

        assert same(scenario, middleware=limited(50)) == ["time"]

    def test_a_job_that_was_too_slow_has_failed_and_is_retried(self, make_stage: MakeStage) -> None:
        stage, runs = make_stage(middleware=limited(80, retries=1)), []
        stage.boot()

        @stage.actor
        def slow() -> None:
            runs.append(1)
            time.sleep(0)
            until = time.monotonic() + NEVER_S
            while time.monotonic() < until:
                time.sleep(0.005)

        slow.send()
        stage.run()
        assert len(runs) == 2
        assert stage.spy.count("after_nack") == 1
        assert [entry.outcome for entry in stage.entries(records.ENDED)] == ["interrupted"] * 2

    def test_an_actor_may_clean_up_and_its_thread_goes_on(self, make_stage: MakeStage) -> None:
        stage, seen = make_stage(middleware=limited(80)), []
        stage.boot()

        @stage.actor
        def tidy() -> None:
            try:
                until = time.monotonic() + NEVER_S
                while time.monotonic() < until:
                    time.sleep(0.005)
            except TimeLimitExceeded:
                seen.append("tidied")
                raise

        quick = stage.actor(lambda: seen.append("next"), actor_name="quick")
        tidy.send()
        quick.send()
        stage.run(threads=1)
        assert seen == ["tidied", "next"]

    def test_it_waits_for_a_call_that_does_not_return_to_python(self, make_stage: MakeStage) -> None:
        stage, took = make_stage(middleware=limited(50)), []
        stage.boot()

        @stage.actor
        def block() -> None:
            began = time.monotonic()
            try:
                time.sleep(0.3)
            finally:
                took.append(time.monotonic() - began)

        block.send()
        stage.run()
        assert took[0] >= 0.3
        assert stage.entries(records.ENDED)[0].outcome == "interrupted"

    def test_the_next_job_of_the_thread_is_not_hit(self, make_stage: MakeStage) -> None:
        stage, ends = make_stage(middleware=limited(60)), []
        stage.boot()
        work = stage.actor(lambda seconds: ends.append(spin(seconds)), actor_name="work")
        for seconds in (0.05, 0.05, 0.05, 0.05):
            work.send(seconds)
        stage.run(threads=1)
        assert ends == ["time"] * 4

    @pytest.mark.parametrize("option", ["actor", "message"])
    def test_what_is_not_supervised_is_limited_too(self, make_stage: MakeStage, option: str) -> None:
        stage, ends = make_stage(middleware=limited(80)), []
        stage.boot()
        work = stage.actor(lambda: ends.append(spin()), actor_name="work", **({"supervised": False} if option == "actor" else {}))
        work.send_with_options(**({"supervised": False} if option == "message" else {}))
        stage.run()
        assert ends == ["TimeLimitExceeded"]
        assert not stage.entries(records.STARTED)

    def test_an_asyncio_actor_is_cancelled_and_cleans_up(self, same: Same) -> None:
        def scenario(stage: Stage) -> list[str]:
            seen: list[str] = []
            stage.boot()

            @stage.actor
            async def wait() -> None:
                try:
                    await asyncio.sleep(NEVER_S)
                except asyncio.CancelledError:
                    await asyncio.sleep(0.01)
                    seen.append("cancelled")
                    raise

            wait.send()
            stage.run()
            seen.append(f"{stage.spy.count('after_nack')} nack")
            return seen

        assert same(scenario, middleware=limited(80)) == ["cancelled", "1 nack"]


class TestShutdown:
    @pytest.mark.parametrize(
        ("default", "actor", "message", "is_told"),
        [
            (False, {}, {}, False),
            (True, {}, {}, True),
            (False, {"notify_shutdown": True}, {}, True),
            (True, {"notify_shutdown": False}, {}, False),
            (True, {"notify_shutdown": True}, {"notify_shutdown": False}, False),
            (False, {"notify_shutdown": True, "supervised": False}, {}, True),
        ],
        ids=["nobody", "default", "actor", "not this actor", "not this message", "not supervised"],
    )
    def test_who_asked_for_it_is_interrupted(
        self, make_stage: MakeStage, default: bool, actor: dict[str, Any], message: dict[str, Any], is_told: bool
    ) -> None:
        stage = make_stage(middleware=lambda: [ShutdownNotifications(notify_shutdown=default), Retries(max_retries=0)])
        reached, ends = threading.Event(), []

        def work() -> None:
            reached.set()
            ends.append(spin(0.5))

        stage.actor(work, **actor).send_with_options(**message)
        stage.work()
        assert reached.wait(10)
        stage.stop()
        assert ends == ["Shutdown" if is_told else "time"]

    @pytest.mark.parametrize("kind", ["redis", "rabbitmq"])
    def test_an_interrupted_job_is_retried_by_the_next_worker(self, make_stage: MakeStage, kind: str) -> None:
        stage, reached, ran = make_stage(kind), threading.Event(), []

        @stage.actor(notify_shutdown=True, max_retries=3, min_backoff=1, max_backoff=2)
        def work() -> None:
            ran.append(1)
            if len(ran) > 1:
                return
            reached.set()
            until = time.monotonic() + NEVER_S
            while time.monotonic() < until:
                time.sleep(0.005)

        work.send()
        stage.work(threads=1)
        assert reached.wait(10)
        stage.stop()
        assert ran == [1]
        stage.run()
        assert ran == [1, 1]

    def test_who_catches_it_may_finish(self, stage: Stage) -> None:
        reached, seen = threading.Event(), []

        @stage.actor(notify_shutdown=True)
        def work() -> None:
            reached.set()
            try:
                until = time.monotonic() + NEVER_S
                while time.monotonic() < until:
                    time.sleep(0.005)
            except Shutdown:
                seen.append("saved")

        work.send()
        stage.work()
        assert reached.wait(10)
        stage.stop()
        assert seen == ["saved"]
        assert stage.spy.under_way == 0
        wait_until(lambda: [entry.status for entry in stage.entries(records.ENDED)] == ["completed"])
