"""Pipelines, groups and callbacks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import dramatiq
import pytest
from dramatiq.middleware import Callbacks, GroupCallbacks, Middleware, Pipelines, Retries
from dramatiq.rate_limits.backends import StubBackend as RateLimits
from dramatiq.results import ResultFailure, ResultMissing, Results
from dramatiq.results.backends import StubBackend

from tests.guarantees.conftest import MakeStage, Same, Stage
from tests.waiting import wait_until


def composed() -> Callable[[], list[Middleware]]:
    """Middleware for compositions with results."""
    return lambda: [
        GroupCallbacks(RateLimits()),
        Callbacks(),
        Pipelines(),
        Retries(max_retries=0),
        Results(backend=StubBackend(), store_results=True),
    ]


class TestPipelines:
    def test_each_result_is_the_last_argument_of_the_next(self, same: Same, broker_kind: str) -> None:
        def scenario(stage: Stage) -> list[Any]:
            seen: list[Any] = []
            add = stage.actor(lambda x, y: x + y, actor_name="add")
            keep = stage.actor(lambda *args: seen.append(args), actor_name="keep")
            dramatiq.pipeline([add.message(1, 2), add.message(3), add.message(4) | keep.message("last")], broker=stage.broker).run()
            stage.run()
            return seen

        assert same(scenario, broker_kind) == [("last", 10)]

    @pytest.mark.parametrize("where", ["message", "actor"])
    def test_pipe_ignore_drops_the_result(self, same: Same, where: str) -> None:
        def scenario(stage: Stage) -> list[Any]:
            seen: list[Any] = []
            first = stage.actor(lambda: 1, actor_name="first", **({"pipe_ignore": True} if where == "actor" else {}))
            keep = stage.actor(lambda *args: seen.append(args), actor_name="keep")
            options = {"pipe_ignore": True} if where == "message" else {}
            dramatiq.pipeline([first.message(), keep.message_with_options(**options)], broker=stage.broker).run()
            stage.run()
            return seen

        assert same(scenario) == [()]

    def test_a_failed_step_ends_it(self, same: Same) -> None:
        def scenario(stage: Stage) -> list[Any]:
            seen: list[Any] = []

            @stage.actor(max_retries=0)
            def fail() -> None:
                raise ValueError

            keep = stage.actor(lambda *args: seen.append(args), actor_name="keep")
            dramatiq.pipeline([fail.message(), keep.message()], broker=stage.broker).run()
            stage.run()
            return seen

        assert same(scenario) == []

    def test_a_step_that_is_retried_goes_on_in_the_end(self, same: Same) -> None:
        def scenario(stage: Stage) -> list[Any]:
            seen: list[Any] = []
            ran: list[int] = []

            @stage.actor(min_backoff=1, max_backoff=2)
            def recover() -> int:
                ran.append(1)
                if len(ran) == 1:
                    raise ValueError
                return 5

            keep = stage.actor(seen.append, actor_name="keep")
            dramatiq.pipeline([recover.message(), keep.message()], broker=stage.broker).run()
            stage.run()
            return seen

        assert same(scenario) == [5]

    def test_its_steps_may_be_delayed(self, stage: Stage) -> None:
        at: list[float] = []
        step = stage.actor(lambda *args: at.append(time.monotonic()), actor_name="step")
        pipe = dramatiq.pipeline([step.message(), step.message_with_options(delay=150)], broker=stage.broker)
        began = time.monotonic()
        pipe.run(delay=100)
        stage.run()
        assert at[0] - began >= 0.1
        assert at[1] - at[0] >= 0.15

    def test_its_results(self, make_stage: MakeStage) -> None:
        stage = make_stage(middleware=composed())
        dramatiq.set_broker(stage.broker)
        add = stage.actor(lambda x, y: x + y, actor_name="add")
        pipe = dramatiq.pipeline([add.message(1, 2), add.message(3)], broker=stage.broker)
        assert (pipe.completed, pipe.completed_count, len(pipe)) == (False, 0, 2)
        with pytest.raises(ResultMissing):
            pipe.get_result()
        pipe.run()
        stage.run()
        assert pipe.get_result(block=True, timeout=5000) == 6
        assert list(pipe.get_results(block=True)) == [3, 6]
        assert (pipe.completed, pipe.completed_count) == (True, 2)


class TestGroups:
    def test_its_members_all_run_and_their_results_come_in_order(self, make_stage: MakeStage) -> None:
        stage = make_stage(middleware=composed())
        dramatiq.set_broker(stage.broker)
        double = stage.actor(lambda x: 2 * x, actor_name="double")
        pipe = dramatiq.pipeline([double.message(5), double.message()], broker=stage.broker)
        group = dramatiq.group([double.message(1), double.message(2), pipe], broker=stage.broker)
        assert (group.completed, group.completed_count, len(group)) == (False, 0, 3)
        group.run()
        stage.run()
        assert list(group.get_results(block=True, timeout=5000)) == [2, 4, 20]
        group.wait(timeout=5000)
        assert (group.completed, group.completed_count) == (True, 3)

    def test_its_callbacks_run_once_when_all_are_done(self, same: Same, broker_kind: str) -> None:
        def scenario(stage: Stage) -> list[str]:
            ran: list[str] = []
            member = stage.actor(lambda *args: ran.append("member"), actor_name="member")
            done = stage.actor(ran.append, actor_name="done")
            pipe = dramatiq.pipeline([member.message(), member.message()], broker=stage.broker)
            group = dramatiq.group([member.message(), member.message(), pipe], broker=stage.broker)
            group.add_completion_callback(done.message("done 1"))
            group.add_completion_callback(done.message("done 2"))
            group.run()
            stage.run(threads=4)
            return [*ran[:4], *sorted(ran[4:])]

        assert same(scenario, broker_kind, middleware=composed()) == ["member"] * 4 + ["done 1", "done 2"]

    def test_a_member_that_fails_holds_its_callback_back(self, same: Same) -> None:
        def scenario(stage: Stage) -> list[str]:
            ran: list[str] = []

            @stage.actor
            def member(is_bad: bool) -> None:
                if is_bad:
                    raise ValueError

            done = stage.actor(lambda: ran.append("done"), actor_name="done")
            group = dramatiq.group([member.message(True), member.message(False)], broker=stage.broker)
            group.add_completion_callback(done.message())
            group.run()
            stage.run()
            return ran

        assert same(scenario, middleware=composed()) == []

    def test_callbacks_need_their_middleware(self, stage: Stage) -> None:
        member = stage.actor(lambda: None, actor_name="member")
        group = dramatiq.group([member.message()], broker=stage.broker)
        group.add_completion_callback(member.message())
        with pytest.raises(RuntimeError, match="GroupCallbacks"):
            group.run()

    def test_it_may_be_delayed(self, stage: Stage) -> None:
        at: list[float] = []
        member = stage.actor(lambda: at.append(time.monotonic()), actor_name="member")
        began = time.monotonic()
        dramatiq.group([member.message(), member.message()], broker=stage.broker).run(delay=100)
        stage.run()
        assert [each - began >= 0.1 for each in at] == [True, True]


class TestCallbacks:
    @pytest.mark.parametrize("where", ["message", "actor"])
    def test_success_and_failure_are_reported(self, same: Same, where: str) -> None:
        def scenario(stage: Stage) -> list[Any]:
            told: list[Any] = []
            stage.actor(lambda message, result: told.append((message["args"], result)), actor_name="well")
            stage.actor(lambda message, error: told.append((message["args"], error)), actor_name="badly")
            callbacks = {"on_success": "well", "on_failure": "badly"}
            actor_options, message_options = (callbacks, {}) if where == "actor" else ({}, callbacks)

            @stage.actor(max_retries=0, **actor_options)
            def work(number: int) -> int:
                if number > 1:
                    raise ValueError("mine")
                return 10 * number

            work.send_with_options(args=(1,), **message_options)
            work.send_with_options(args=(2,), **message_options)
            stage.run(threads=1)
            return told

        assert same(scenario) == [([1], 10), ([2], {"type": "ValueError", "message": "mine"})]

    def test_an_actor_may_be_named_by_itself(self, stage: Stage) -> None:
        told: list[Any] = []
        well = stage.actor(lambda message, result: told.append(result), actor_name="well")
        work = stage.actor(lambda: 7, actor_name="work")
        work.send_with_options(on_success=well)
        stage.run()
        assert told == [7]
        with pytest.raises(TypeError, match="on_success"):
            work.send_with_options(on_success=5)

    def test_a_failure_reaches_whoever_waits_for_the_result(self, make_stage: MakeStage) -> None:
        stage = make_stage(middleware=composed())
        dramatiq.set_broker(stage.broker)

        @stage.actor
        def fail() -> None:
            raise ValueError("mine")

        member = stage.actor(lambda: 1, actor_name="member")
        group = dramatiq.group([member.message(), fail.message()], broker=stage.broker).run()
        stage.run()
        wait_until(lambda: stage.spy.count("after_nack") == 1)
        with pytest.raises(ResultFailure, match="mine"):
            list(group.get_results(block=True, timeout=5000))
