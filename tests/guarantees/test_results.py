"""Results: stored where asked for, for as long as asked for, failures too."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq.middleware import AgeLimit, Middleware, Retries, SkipMessage
from dramatiq.results import ResultBackend, ResultFailure, ResultMissing, Results, ResultTimeout
from dramatiq.results.backends import RedisBackend, StubBackend

from tests.guarantees.conftest import MakeStage, Same, Stage
from tests.waiting import wait_until


@pytest.fixture(params=["stub", "redis"])
def backend(request: pytest.FixtureRequest) -> ResultBackend:
    """Where results are kept."""
    if request.param == "stub":
        return StubBackend()
    return RedisBackend(url=request.getfixturevalue("redis_url"))  # type: ignore[no-untyped-call]


def storing(backend: ResultBackend, **options: Any) -> Callable[[], list[Middleware]]:
    return lambda: [AgeLimit(), Retries(min_backoff=1, max_backoff=2), Results(backend=backend, **options)]  # type: ignore[no-untyped-call]


class TestStoring:
    def test_a_result_is_there_for_whoever_waits(self, make_stage: MakeStage, backend: ResultBackend) -> None:
        stage = make_stage(middleware=storing(backend))
        add = stage.actor(lambda x, y: {"sum": x + y}, actor_name="add", store_results=True)
        message = add.send(1, 2)
        with pytest.raises(ResultMissing):
            message.get_result(backend=backend)
        stage.work()
        assert message.get_result(backend=backend, block=True, timeout=5000) == {"sum": 3}
        dramatiq.set_broker(stage.broker)
        assert message.get_result() == {"sum": 3}
        stage.join()

    def test_it_is_the_same_under_the_same_key(self, same: Same, redis_url: str) -> None:
        def scenario(stage: Stage) -> list[bytes]:
            add = stage.actor(lambda x, y: x + y, actor_name="add", store_results=True)
            stage.broker.enqueue(add.message(1, 2).copy(message_id="fixed"))
            stage.run()
            with redis.Redis.from_url(redis_url) as client:
                (key,) = client.keys("dramatiq-results:*")  # type: ignore[misc]
                found = [key, *client.lrange(key, 0, -1)]  # type: ignore[misc]
                client.delete(key)
            return found

        backend = RedisBackend(url=redis_url, use_namespace_prefix_keys=True)  # type: ignore[no-untyped-call]
        assert same(scenario, middleware=storing(backend)) == [b"dramatiq-results:default:add:fixed", b"3"]

    def test_only_what_is_asked_for_is_stored(
        self, make_stage: MakeStage, backend: ResultBackend, caplog: pytest.LogCaptureFixture
    ) -> None:
        stage = make_stage(middleware=storing(backend))
        quiet = stage.actor(lambda: 1, actor_name="quiet")
        loud = stage.actor(lambda: 2, actor_name="loud", store_results=True)
        messages = [
            quiet.send(),
            quiet.send_with_options(store_results=True),
            loud.send(),
            loud.send_with_options(store_results=False),
        ]
        stage.run()

        def found(message: Any) -> Any:
            try:
                return message.get_result(backend=backend)
            except ResultMissing:
                return "missing"

        assert [found(each) for each in messages] == ["missing", 1, 2, "missing"]
        assert caplog.text.count("discarded") == 2

    def test_it_is_kept_for_as_long_as_was_asked(self, make_stage: MakeStage, redis_url: str) -> None:
        backend = RedisBackend(url=redis_url)  # type: ignore[no-untyped-call]
        stage = make_stage(middleware=storing(backend, store_results=True))
        work = stage.actor(lambda: 1, actor_name="work", result_ttl=50_000)
        default = stage.actor(lambda: 1, actor_name="default")
        messages = [work.send(), work.send_with_options(result_ttl=20_000), default.send()]
        stage.run()
        with redis.Redis.from_url(redis_url) as client:
            left: list[Any] = [client.pttl(backend.build_message_key(each)) for each in messages]
        assert [wanted - 10_000 < ms <= wanted for ms, wanted in zip(left, (50_000, 20_000, 600_000), strict=True)] == [True] * 3

    def test_waiting_for_it_ends_in_time(self, make_stage: MakeStage, backend: ResultBackend) -> None:
        stage = make_stage(middleware=storing(backend))
        message = stage.actor(lambda: 1, actor_name="work", store_results=True).send()
        began = time.monotonic()
        with pytest.raises(ResultTimeout):
            message.get_result(backend=backend, block=True, timeout=300)
        assert time.monotonic() - began < 3


class TestFailures:
    def test_a_failure_is_raised_when_the_retries_are_used_up(self, make_stage: MakeStage, backend: ResultBackend) -> None:
        stage = make_stage(middleware=storing(backend))

        @stage.actor(store_results=True, max_retries=2)
        def fail() -> None:
            raise KeyError("mine")

        message = fail.send()
        stage.run()

        def failure() -> ResultFailure | None:
            try:
                message.get_result(backend=backend)
            except ResultMissing:
                return None
            except ResultFailure as error:
                return error
            return None

        error = wait_until(failure)
        assert error is not None
        assert (error.orig_exc_type, error.orig_exc_msg) == ("KeyError", "'mine'")
        assert stage.spy.count("before_process_message") == 3

    def test_a_retry_that_succeeds_leaves_its_result(self, make_stage: MakeStage, backend: ResultBackend) -> None:
        stage, ran = make_stage(middleware=storing(backend)), []

        @stage.actor(store_results=True)
        def recover() -> str:
            ran.append(1)
            if len(ran) == 1:
                raise ValueError
            return "well"

        message = recover.send()
        stage.work()
        assert message.get_result(backend=backend, block=True, timeout=5000) == "well"
        stage.join()

    def test_a_skipped_message_has_none(self, make_stage: MakeStage, backend: ResultBackend) -> None:
        class Skip(Middleware):
            def before_process_message(self, broker: Any, message: Any) -> None:
                raise SkipMessage("not today")

        stage = make_stage(middleware=lambda: [*storing(backend)(), Skip()])
        message = stage.actor(lambda: 1, actor_name="work", store_results=True).send()
        stage.run()
        assert message.get_result(backend=backend, block=True, timeout=5000) is None

    def test_a_message_that_is_too_old_has_failed(self, make_stage: MakeStage, backend: ResultBackend) -> None:
        stage = make_stage(middleware=storing(backend))
        old = stage.actor(lambda: 1, actor_name="old", store_results=True, max_age=1)
        message = stage.broker.enqueue(old.message().copy(message_timestamp=1_000_000_000_000))
        stage.run()
        with pytest.raises(ResultFailure, match="age limit"):
            message.get_result(backend=backend, block=True, timeout=5000)
