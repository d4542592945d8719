"""The pytest plugin that users get, used as they use it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import CurrentMessage, Retries, SkipMessage, TimeLimitExceeded

from dramatiq_chaperone import Chaperone, SupervisedActor, breaker, current_job, heartbeat, report_progress, supervision_id
from dramatiq_chaperone.breakers.registry import registry
from dramatiq_chaperone.models import DeadLetterJob, Heartbeat, SupervisedJob, Worker
from dramatiq_chaperone.store import Store
from dramatiq_chaperone.testing import FakeClock, _renew_breakers

pytest_plugins = ["pytester"]

Supervise = Callable[..., SupervisedJob]


@pytest.fixture
def broker() -> Iterator[StubBroker]:
    """The user's own, which no test below may touch."""
    broker = StubBroker(middleware=[Retries()])
    broker.add_middleware(Chaperone())
    yield broker
    assert all(queue.empty() for queue in broker.queues.values())
    broker.close()


@pytest.fixture
def process_large_dataset(broker: StubBroker) -> Any:
    @dramatiq.actor(broker=broker, timeout=60, queue_name="datasets", priority=3)
    def process_large_dataset(rows: list[int]) -> None:
        heartbeat(status="starting", count=len(rows))
        for done, _ in enumerate(rows, 1):
            report_progress(done, len(rows))

    return process_large_dataset


class TestSupervisedJobs:
    """The three tests of the specification's document on supervision."""

    def test_job_is_supervised(self, supervise_inline: Supervise, process_large_dataset: Any) -> None:
        job = supervise_inline(process_large_dataset, list(range(100)))

        assert SupervisedJob.select().where(SupervisedJob.job_id == job.job_id).first() is not None

    def test_job_sends_heartbeats(self, supervise_inline: Supervise, process_large_dataset: Any) -> None:
        job = supervise_inline(process_large_dataset, list(range(100)))

        assert job.heartbeats.exists()

    def test_job_completes_successfully(self, supervise_inline: Supervise, process_large_dataset: Any) -> None:
        job = supervise_inline(process_large_dataset, list(range(100)))

        assert job.progress == 100
        assert job.completed()
        assert job.completed_at is not None


class TestSuperviseInline:
    def test_everything_is_on_record(self, supervise_inline: Supervise, process_large_dataset: Any) -> None:
        job = supervise_inline(process_large_dataset, [1, 2])
        assert (job.actor_name, job.queue, job.priority, job.attempt, job.deliveries) == ("process_large_dataset", "datasets", 3, 1, 1)
        assert job.payload["args"] == [[1, 2]]
        assert job.timeout_at - job.started_at == timedelta(seconds=60)
        assert {beat.kind for beat in job.heartbeats} >= {"manual", "progress"}
        assert job.duration is not None
        assert job.worker is not None
        assert (job.worker.status, job.worker.get_jobs_failed_count()) == ("stopped", 0)

    def test_twice(self, supervise_inline: Supervise, process_large_dataset: Any) -> None:
        ids = {supervise_inline(process_large_dataset, [1]).job_id for _ in range(2)}
        assert {job.job_id for job in SupervisedJob.completed()} == ids
        assert len(ids) == 2

    def test_in_the_thread_of_the_test(self, supervise_inline: Supervise, broker: StubBroker) -> None:
        seen: list[Any] = []

        @dramatiq.actor(broker=broker)
        def look() -> None:
            message = CurrentMessage.get_current_message()
            seen.extend((threading.current_thread(), supervision_id(), message and message.message_id))

        job = supervise_inline(look)
        assert seen == [threading.current_thread(), job.job_id, job.job_id]
        assert current_job() is None

    def test_a_failure_is_raised_and_on_record(self, supervise_inline: Supervise, broker: StubBroker) -> None:
        @dramatiq.actor(broker=broker, max_retries=5)
        def fail() -> None:
            raise ValueError("no")

        with pytest.raises(ValueError, match="no") as caught:
            supervise_inline(fail)
        job = SupervisedJob.failed().get()
        assert job.failed_at is not None
        assert (job.errors.get().exception, job.errors.get().message) == ("ValueError", "no")
        assert "execution.py" not in job.errors.get().trace
        assert caught.traceback[-1].name == "fail"
        assert DeadLetterJob.all().count() == 0

    def test_a_timeout(self, supervise_inline: Supervise, broker: StubBroker) -> None:
        @dramatiq.actor(broker=broker, timeout=0.1)
        def hang() -> None:
            while True:
                threading.Event().wait(0.01)

        with pytest.raises(TimeLimitExceeded):
            supervise_inline(hang)
        assert SupervisedJob.failed().get().errors.get().outcome == "interrupted"

    def test_a_skipped_message(self, supervise_inline: Supervise, broker: StubBroker) -> None:
        @dramatiq.actor(broker=broker)
        def skip() -> None:
            raise SkipMessage

        assert supervise_inline(skip).status == "skipped"

    def test_a_coroutine(self, supervise_inline: Supervise, broker: StubBroker) -> None:
        @dramatiq.actor(broker=broker)
        async def work(number: int) -> None:
            report_progress(number, 10)

        job = supervise_inline(work, number=5)
        assert (job.status, job.progress) == ("completed", 50)

    def test_a_class(self, supervise_inline: Supervise, broker: StubBroker) -> None:
        own = broker

        class Import(SupervisedActor):
            class Meta:
                broker = own

            def perform(self, rows: int) -> None:
                self.report_progress(rows, rows)

        assert supervise_inline(Import, 3).progress == 100

    def test_an_actor_that_is_left_alone_elsewhere(self, supervise_inline: Supervise, broker: StubBroker) -> None:
        @dramatiq.actor(broker=broker, supervised=False)
        def work() -> None: ...

        assert supervise_inline(work).completed()

    def test_arguments_that_no_broker_would_take(self, supervise_inline: Supervise, broker: StubBroker) -> None:
        @dramatiq.actor(broker=broker)
        def work(each: object) -> None: ...

        with pytest.raises(TypeError):
            supervise_inline(work, object())
        assert Worker.get().status == "stopped"


class TestFactories:
    def test_jobs(self, make_job: Callable[..., SupervisedJob]) -> None:
        for status in ("pending", "running", "failed", "cancelled", "skipped"):
            job = make_job(status=status)
            assert ((job.started_at is None), (job.ended_at is None)) == (status == "pending", status in {"pending", "running"})
        job = make_job(queue="mail", progress=50)
        assert SupervisedJob.completed().where(SupervisedJob.queue == "mail").get() == job
        assert (job.duration, job.progress) == (0, 50)

    def test_workers_and_heartbeats(
        self, make_job: Callable[..., SupervisedJob], make_worker: Callable[..., Worker], make_heartbeat: Callable[..., Heartbeat]
    ) -> None:
        worker = make_worker(status="paused")
        job = make_job(status="running", worker_id=worker.worker_id)
        beat = make_heartbeat(job, metadata={"rows": 3})
        assert job.heartbeats.get() == beat
        assert list(worker.jobs) == [job]
        assert make_heartbeat().job.running()

    def test_a_column_that_is_not_there(self, make_job: Callable[..., SupervisedJob]) -> None:
        with pytest.raises(TypeError, match="stauts"):
            make_job(stauts="failed")


def test_the_store_is_empty_and_its_own(chaperone_store: Store, make_job: Any) -> None:
    assert SupervisedJob.select().count() == 0
    make_job()
    assert chaperone_store.rows("SELECT COUNT(*) FROM {supervised_jobs}") == [(1,)]


def test_the_clock() -> None:
    clock = FakeClock(datetime(2026, 1, 1, tzinfo=UTC))
    before = clock()
    clock.advance(90)
    assert clock() - before == 90
    assert clock.now() == datetime(2026, 1, 1, 0, 1, 30, tzinfo=UTC)
    with pytest.raises(ValueError, match="back"):
        clock.advance(-1)


def test_wait_until(wait_until: Callable[..., Any]) -> None:
    answers = iter([0, None, "yes"])
    assert wait_until(lambda: next(answers), timeout_s=5) == "yes"
    with pytest.raises(AssertionError, match="the impossible; last: None"):
        wait_until(lambda: None, timeout_s=0, what="the impossible")


class TestPlugin:
    """In a project of somebody else's."""

    def test_it_is_there_without_a_line(self, pytester: pytest.Pytester) -> None:
        pytester.makepyfile(
            """
            import dramatiq
            from dramatiq.brokers.stub import StubBroker
            from dramatiq_chaperone import track
            from dramatiq_chaperone.models import SupervisedJob

            dramatiq.set_broker(StubBroker())

            @dramatiq.actor
            def work(rows):
                for _ in track(rows):
                    pass

            def test_work(supervise_inline):
                assert supervise_inline(work, [1, 2]).progress == 100
                assert SupervisedJob.select().count() == 1

            def test_each_test_has_its_own(chaperone_store):
                assert SupervisedJob.select().count() == 0
            """
        )
        pytester.runpytest_subprocess("-W", "error").assert_outcomes(passed=2)

    def test_it_is_no_burden_for_others(self, pytester: pytest.Pytester) -> None:
        pytester.makepyfile(
            """
            import os, sys, threading

            def test_nothing_has_happened(tmp_path):
                assert not {"dramatiq", "peewee"} & sys.modules.keys()
                assert threading.active_count() == 1
                assert not [name for name in os.environ if name.startswith("CHAPERONE_")]
                assert not list(tmp_path.iterdir())

            def make_job():
                return 1

            def test_own_names_win(wait_until):
                assert wait_until == "mine"
            """
        )
        pytester.makeconftest(
            """
            import pytest

            @pytest.fixture
            def wait_until():
                return "mine"
            """
        )
        pytester.runpytest_subprocess("-W", "error", "--strict-markers").assert_outcomes(passed=2)

    def test_it_can_be_left_out(self, pytester: pytest.Pytester) -> None:
        pytester.makepyfile("def test_it(chaperone_store): ...")
        pytester.runpytest_subprocess("-p", "no:chaperone").assert_outcomes(errors=1)

    def test_the_environment_of_the_test_run_is_put_back(self, pytester: pytest.Pytester) -> None:
        pytester.makepyfile(
            """
            import os
            import pytest
            from dramatiq_chaperone.models import SupervisedJob
            from dramatiq_chaperone.errors import SchemaError

            def test_inside(chaperone_store, make_job):
                make_job()
                assert "CHAPERONE_DATABASE_URL" in os.environ

            def test_after(monkeypatch, tmp_path):
                assert "CHAPERONE_DATABASE_URL" not in os.environ
                monkeypatch.setenv("CHAPERONE_STATE_DIR", str(tmp_path))
                with pytest.raises(SchemaError):
                    SupervisedJob.select().count()
            """
        )
        pytester.runpytest_subprocess("-W", "error").assert_outcomes(passed=2)


def test_each_test_has_circuit_breakers_of_its_own(chaperone_store: Store) -> None:
    svc = breaker("payments", failure_threshold=1)

    @svc
    def call() -> None:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        call()
    assert svc.status.state == "open"
    _renew_breakers()
    chaperone_store.execute("DELETE FROM {circuit_breakers}")  # another test has another store
    with pytest.raises(OSError, match="no"):
        call()
    assert svc.status.state == "open", "and the decorated function has them too"
    registry().clear()
