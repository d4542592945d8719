"""Retries: how often, when, and what becomes of what is not retried."""

from __future__ import annotations

import json
import logging
import random
from typing import Any

import pytest
from dramatiq import Middleware
from dramatiq.errors import RateLimitExceeded, Retry
from dramatiq.middleware import Retries

from dramatiq_chaperone import records
from tests.guarantees.conftest import MakeStage, Same, Stage

QUICK = {"min_backoff": 1, "max_backoff": 5}


def delays(stage: Stage) -> list[int]:
    """By how much each retry was put off."""
    return [each for each in stage.spy.delays if each is not None]


def statuses(stage: Stage) -> list[str | None]:
    """Of the runs in their order; the next one may be over before the verdict about the last is written down."""
    return [entry.status for entry in sorted(stage.entries(records.ENDED), key=lambda entry: entry.retries)]


class TestHowOften:
    def test_a_failed_job_is_retried_until_its_retries_are_used_up(self, each_stage: Stage) -> None:
        stage, ran = each_stage, []

        @stage.actor(max_retries=3, **QUICK)
        def fail() -> None:
            ran.append(1)
            raise ValueError

        fail.send()
        stage.run()
        assert len(ran) == 4
        assert stage.spy.count("after_nack") == 1
        assert statuses(stage) == [None, None, None, "failed"]
        stage.stop()
        assert len(stage.dead()) == 1

    def test_a_job_that_recovers_is_done(self, each_stage: Stage) -> None:
        stage, ran = each_stage, []

        @stage.actor(max_retries=3, **QUICK)
        def recover() -> None:
            ran.append(1)
            if len(ran) < 3:
                raise ValueError

        recover.send()
        stage.run()
        assert len(ran) == 3
        assert stage.spy.count("after_nack") == 0
        assert statuses(stage) == [None, None, "completed"]

    def test_message_goes_before_actor_goes_before_middleware(self, make_stage: MakeStage) -> None:
        stage = make_stage(middleware=lambda: [Retries(max_retries=1, **QUICK)])
        ran: list[str] = []

        def fail(name: str) -> None:
            ran.append(name)
            raise ValueError

        stage.actor(fail, actor_name="plain").send("middleware")
        own = stage.actor(fail, actor_name="own", max_retries=2)
        own.send("actor")
        own.send_with_options(args=("message",), max_retries=0)
        stage.run()
        assert {name: ran.count(name) for name in ran} == {"middleware": 2, "actor": 3, "message": 1}

    def test_without_a_limit_it_goes_on(self, stage: Stage) -> None:
        ran: list[int] = []

        @stage.actor(max_retries=None, **QUICK)
        def fail() -> None:
            ran.append(1)
            if len(ran) <= 30:
                raise ValueError

        fail.send()
        stage.run()
        assert len(ran) == 31

    def test_without_the_middleware_a_failed_message_is_done(self, same: Same) -> None:
        def scenario(stage: Stage) -> tuple[int, int]:
            @stage.actor
            def fail() -> None:
                raise ValueError

            fail.send()
            stage.run()
            return stage.spy.count("after_ack"), stage.spy.count("after_nack")

        assert same(scenario, middleware=list) == (1, 0)


class TestWhen:
    def test_the_backoff_grows_exponentially_and_is_the_same(self, same: Same) -> None:
        def scenario(stage: Stage) -> list[int]:
            @stage.actor(max_retries=4, min_backoff=10, max_backoff=100)
            def fail() -> None:
                raise ValueError

            random.seed(7)
            fail.send()
            stage.run(threads=1)
            return delays(stage)

        found = same(scenario)
        assert [10 * 2**number <= delay <= 20 * 2**number for number, delay in enumerate(found[:3])] == [True] * 3
        assert max(found) <= 100

    def test_a_message_may_have_a_backoff_of_its_own(self, stage: Stage) -> None:
        @stage.actor(max_retries=1, min_backoff=600_000, max_backoff=600_000)
        def fail() -> None:
            raise ValueError

        fail.send_with_options(min_backoff=5, max_backoff=10)
        stage.run()
        assert 5 <= delays(stage)[0] <= 10

    def test_retry_names_the_delay_and_is_not_logged_as_an_error(self, each_stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
        stage, ran = each_stage, []

        @stage.actor(max_retries=3)
        def again() -> None:
            ran.append(1)
            if len(ran) == 1:
                raise Retry("later", delay=12)

        again.send()
        stage.run()
        assert len(ran) == 2
        assert delays(stage) == [12]
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]

    def test_a_rate_limit_is_retried_and_not_logged_as_an_error(self, stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
        ran: list[int] = []

        @stage.actor(max_retries=3, **QUICK)
        def limited() -> None:
            ran.append(1)
            if len(ran) == 1:
                raise RateLimitExceeded("slow down")

        limited.send()
        stage.run()
        assert len(ran) == 2
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


class TestWhether:
    @pytest.mark.parametrize("throws", [KeyError, (ValueError, KeyError)])
    def test_an_expected_exception_is_not_retried(self, stage: Stage, throws: Any, caplog: pytest.LogCaptureFixture) -> None:
        ran: list[int] = []

        @stage.actor(throws=throws, **QUICK)
        def refuse() -> None:
            ran.append(1)
            raise KeyError

        refuse.send()
        stage.run()
        assert ran == [1]
        assert stage.spy.count("after_nack") == 1
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]

    def test_retry_when_decides_with_the_number_and_the_exception(self, same: Same) -> None:
        def scenario(stage: Stage) -> list[tuple[int, str]]:
            asked: list[tuple[int, str]] = []

            def retry_when(retries: int, exception: BaseException) -> bool:
                asked.append((retries, repr(exception)))
                return retries < 2

            @stage.actor(retry_when=retry_when, max_retries=0, **QUICK)
            def fail() -> None:
                raise ValueError("mine")

            fail.send()
            stage.run()
            assert stage.spy.count("after_nack") == 1
            return asked

        assert same(scenario) == [(number, "ValueError('mine')") for number in range(3)]

    def test_when_retries_are_used_up_an_actor_is_told(self, same: Same, broker_kind: str) -> None:
        def scenario(stage: Stage) -> list[Any]:
            told: list[Any] = []

            @stage.actor
            def tell(message: dict[str, Any], counts: dict[str, int]) -> None:
                told.append((message["actor_name"], message["args"], message["options"]["retries"], counts))

            @stage.actor(max_retries=1, on_retry_exhausted="tell", **QUICK)
            def fail(number: int) -> None:
                raise ValueError

            fail.send(5)
            stage.run()
            return told

        assert same(scenario, broker_kind) == [("fail", [5], 2, {"retries": 1, "max_retries": 1})]


class TestWhatIsSentOn:
    def test_the_message_carries_its_count_its_time_and_the_traceback(self, same: Same) -> None:
        """The traceback too is that of the actor alone."""

        def scenario(stage: Stage) -> str:
            @stage.actor(max_retries=1, **QUICK)
            def fail() -> None:
                try:
                    raise KeyError("first")
                except KeyError as error:
                    raise ValueError("then") from error

            fail.send()
            stage.run()
            options = json.loads(stage.spy.wire[1])["options"]
            assert options["retries"] == 1
            assert options["requeue_timestamp"] > 0
            return str(options["traceback"])

        trace = same(scenario)
        assert "direct cause" in trace
        assert "dramatiq_chaperone" not in trace

    def test_a_deep_traceback_is_cut_in_the_same_place(self, same: Same) -> None:
        def dive(depth: int) -> None:
            if depth:
                dive(depth - 1)
            raise ValueError("deep")

        def scenario(stage: Stage) -> str:
            stage.actor(dive, max_retries=1, **QUICK).send(60)
            stage.run()
            return str(json.loads(stage.spy.wire[1])["options"]["traceback"])

        same(scenario)

    def test_other_middleware_sees_the_exception_as_it_was_raised(self, same: Same) -> None:
        def scenario(stage: Stage) -> list[Any]:
            seen: list[Any] = []

            class Look(Middleware):
                def after_process_message(
                    self, broker: Any, message: Any, *, result: Any = None, exception: BaseException | None = None
                ) -> None:
                    entry, names = exception.__traceback__ if exception is not None else None, []
                    while entry is not None:
                        names.append(entry.tb_frame.f_code.co_name)
                        entry = entry.tb_next
                    seen.append((type(exception).__name__, names))

            stage.broker.add_middleware(Look())

            @stage.actor(max_retries=0)
            def fail() -> None:
                raise ValueError

            fail.send()
            stage.run()
            return seen

        assert same(scenario) == [("ValueError", ["process_message", "__call__", "fail"])]
