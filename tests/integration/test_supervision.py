"""What a worker writes down about each message, with a real Worker and its real middleware."""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dramatiq
import pytest
from dramatiq import Worker
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import (
    AgeLimit,
    AsyncIO,
    CurrentMessage,
    Middleware,
    MiddlewareError,
    Retries,
    Shutdown,
    ShutdownNotifications,
    SkipMessage,
    TimeLimit,
    TimeLimitExceeded,
)
from dramatiq.middleware.callbacks import Callbacks
from dramatiq.middleware.pipelines import Pipelines
from dramatiq.threading import Interrupt

import dramatiq_chaperone as chaperone
from dramatiq_chaperone import Chaperone, SupervisedActor, current_job, initiated_by, records
from dramatiq_chaperone.errors import SettingsError
from dramatiq_chaperone.service import internal_errors
from dramatiq_chaperone.supervision.jobs import FREE_REPORTS, Job, JobLogFilter
from tests.integration.conftest import Bench
from tests.waiting import wait_until

RETRIES = {"max_retries": 2, "min_backoff": 1, "max_backoff": 5}


class TestLife:
    def test_a_job_that_succeeds(self, bench: Bench) -> None:
        @bench.actor(priority=3)
        def add(x: int, y: int) -> None: ...

        with initiated_by("user", 42):
            message = add.send(1, y=2)
        bench.work()
        bench.join()

        sent, started, ended = (bench.tape.one(kind, message.message_id) for kind in (records.ENQUEUED, records.STARTED, records.ENDED))
        assert json.loads(sent.payload) == {"args": [1], "kwargs": {"y": 2}, "options": {}}
        assert (sent.actor, sent.queue, sent.retries, sent.priority, sent.payload_complete) == ("add", "default", 0, 3, True)
        assert (sent.initiator_type, sent.initiator_id, sent.parent_job_id, sent.eta, sent.retry_at) == ("user", "42", None, None, None)
        assert started.run_id == ended.run_id
        assert started.enqueued_at <= sent.at <= started.at <= ended.at
        assert 0 <= started.waited_s < 10
        assert (ended.outcome, ended.status, ended.error) == ("succeeded", "completed", None)
        assert 0 <= ended.duration_s < 5
        assert ended.cpu_seconds >= 0

    def test_a_job_that_fails_for_good(self, bench: Bench) -> None:
        @bench.actor(**RETRIES)
        def fail(password: str) -> None:
            raise ValueError(f"wrong: {password}")

        message = fail.send("hunter22")
        bench.work()
        wait_until(lambda: bench.tape.entries(records.DEAD) and len(bench.tape.entries(records.ENDED)) == 3)

        # A retry may be over before the end of the run before it is written down.
        starts = bench.tape.entries(records.STARTED)
        ends = sorted(bench.tape.entries(records.ENDED), key=lambda entry: entry.retries)
        assert [entry.retries for entry in starts] == [entry.retries for entry in ends] == [0, 1, 2]
        assert len({entry.run_id for entry in starts}) == 3
        assert [entry.status for entry in ends] == [None, None, "failed"]
        assert {entry.outcome for entry in ends} == {"failed"}
        retried = [entry for entry in bench.tape.entries(records.ENQUEUED) if entry.retries]
        assert {entry.retries for entry in retried} == {1, 2}
        assert all(entry.payload is None for entry in retried)
        assert any(entry.retry_at is not None for entry in retried)
        kind, text, trace, context = ends[-1].error
        assert kind == "ValueError"
        assert "hunter22" not in text + trace
        assert json.loads(context)["code"].startswith("raise ValueError")
        assert json.loads(context)["file"] == __file__
        dead = bench.tape.one(records.DEAD, message.message_id)
        assert (dead.reason, dead.exception, dead.payload_complete) == ("retries exhausted", "ValueError", False)
        assert "hunter22" not in dead.payload

    def test_an_expected_exception_is_rejected_at_once(self, bench: Bench) -> None:
        @bench.actor(throws=(KeyError,))
        def refuse() -> None:
            raise KeyError("no")

        refuse.send()
        bench.work()
        assert bench.tape.one(records.DEAD).reason == "rejected"
        assert bench.tape.one(records.ENDED).status == "failed"

    def test_without_retries_a_failure_is_final(self, make_bench: Callable[..., Bench]) -> None:
        bench = make_bench(middleware=[])

        @bench.actor
        def fail() -> None:
            raise RuntimeError

        fail.send()
        bench.work()
        assert bench.tape.one(records.ENDED).status == "failed"

    def test_a_retry_that_the_broker_refuses_is_final(self, bench: Bench) -> None:
        class Refuse(Middleware):
            def before_enqueue(self, broker: Any, message: Any, delay: int | None) -> None:
                if message.options.get("retries"):
                    raise MiddlewareError("full")

        bench.broker.add_middleware(Refuse())

        @bench.actor(**RETRIES)
        def fail() -> None:
            raise RuntimeError

        fail.send()
        bench.work()
        assert bench.tape.one(records.ENDED).status == "failed"

    def test_a_delayed_message(self, bench: Bench) -> None:
        @bench.actor
        def later() -> None: ...

        message = later.send_with_options(delay=150)
        bench.work()
        bench.tape.one(records.ENDED, message.message_id)
        first = bench.tape.entries(records.ENQUEUED, message.message_id)[0]
        assert (first.queue, first.retry_at) == ("default", None)
        assert 0 < first.eta - first.enqueued_at < 1

    def test_a_job_sent_by_a_job_knows_its_parent(self, bench: Bench) -> None:
        @bench.actor
        def child() -> None: ...

        @bench.actor
        def parent() -> None:
            child.send()

        message = parent.send()
        bench.work()
        bench.join()
        parents = {entry.actor: entry.parent_job_id for entry in bench.tape.entries(records.ENQUEUED)}
        assert parents == {"parent": None, "child": message.message_id}


class TestWithoutARun:
    def test_an_unknown_actor(self, bench: Bench) -> None:
        bench.work()
        bench.broker.enqueue(dramatiq.Message("default", "nobody", (), {}, {}))
        dead = bench.tape.one(records.DEAD)
        assert (dead.actor, dead.reason) == ("nobody", "unknown actor")
        assert not bench.tape.entries(records.STARTED)

    def test_a_message_that_is_too_old(self, make_bench: Callable[..., Bench]) -> None:
        bench = make_bench(middleware=[AgeLimit(max_age=1), Retries()])

        @bench.actor
        def old() -> None: ...

        message = old.message()
        bench.broker.enqueue(message.copy(message_timestamp=message.message_timestamp - 1000))
        bench.work()
        assert bench.tape.one(records.DEAD).reason == "age"
        assert not bench.tape.entries(records.SKIPPED)

    def test_a_message_that_is_skipped(self, bench: Bench) -> None:
        class Skip(Middleware):
            def before_process_message(self, broker: Any, message: Any) -> None:
                raise SkipMessage("not today")

        bench.broker.add_middleware(Skip())

        @bench.actor
        def never() -> None: ...

        never.send()
        bench.work()
        assert bench.tape.one(records.SKIPPED).actor == "never"
        assert not bench.tape.entries(records.STARTED)

    def test_a_message_that_a_middleware_refuses_is_a_failed_run(self, bench: Bench) -> None:
        class Refuse(Middleware):
            def before_process_message(self, broker: Any, message: Any) -> None:
                raise MiddlewareError("closed")

        bench.broker.add_middleware(Refuse())

        @bench.actor(max_retries=0)
        def never() -> None: ...

        never.send()
        bench.work()
        ended = bench.tape.one(records.ENDED)
        assert (ended.outcome, ended.status) == ("failed", "failed")
        assert ended.error[0].endswith("MiddlewareError")
        assert not bench.tape.entries(records.STARTED)


class TestHandle:
    def test_it_is_known_in_the_actor_its_helpers_and_threads_with_its_context(self, bench: Bench) -> None:
        seen: list[Job | None] = []

        def helper() -> None:
            seen.append(current_job())

        @bench.actor
        def look() -> None:
            helper()
            copied = contextvars.copy_context()
            for target in (lambda: copied.run(helper), helper):
                thread = threading.Thread(target=target)
                thread.start()
                thread.join()

        message = look.send()
        bench.work()
        bench.join()
        assert [None if job is None else job.job_id for job in seen] == [message.message_id, message.message_id, None]
        assert current_job() is None

    def test_it_is_known_in_a_coroutine(self, make_bench: Callable[..., Bench]) -> None:
        bench = make_bench(middleware=[AsyncIO(), Retries()])
        seen = []

        @bench.actor
        async def look() -> None:
            await asyncio.sleep(0)
            seen.append(chaperone.supervision_id())
            chaperone.heartbeat(step=1)

        message = look.send()
        bench.work()
        bench.join()
        assert seen == [message.message_id]
        assert bench.tape.one(records.ENDED).cpu_seconds is None
        assert bench.tape.one(records.HEARTBEAT).job_id == message.message_id

    def test_outside_of_a_job_nothing_happens(self) -> None:
        chaperone.heartbeat({"status": "ok"}, more=1)
        chaperone.report_progress(1, 2, {"phase": "x"}, phase="y")
        assert chaperone.supervision_id() is None
        assert list(chaperone.track(["a", "b"], total=2, phase="x")) == ["a", "b"]

    def test_heartbeats(self, bench: Bench) -> None:
        @bench.actor
        def beat() -> None:
            chaperone.heartbeat({"batch": 1}, token="s3cret-value")
            chaperone.heartbeat()

        beat.send()
        bench.work()
        bench.join()
        first, second = bench.tape.entries(records.HEARTBEAT)
        assert (first.source, first.keep, second.metadata) == ("manual", True, None)
        assert json.loads(first.metadata)["batch"] == 1
        assert "s3cret-value" not in first.metadata
        assert first.heartbeat_id != second.heartbeat_id

    def test_progress_of_a_tight_loop_is_thinned_and_its_end_is_kept(self, bench: Bench) -> None:
        @bench.actor
        def count() -> None:
            for done in range(10_000):
                chaperone.report_progress(done + 1, 10_000, phase="all")

        count.send()
        bench.work()
        bench.join()
        found = bench.tape.entries(records.HEARTBEAT)
        assert 2 <= len(found) <= FREE_REPORTS
        assert (found[-1].source, found[-1].progress_current, found[-1].progress_total, found[-1].phase) == (
            "progress",
            10_000,
            10_000,
            "all",
        )

    def test_tracking_rows(self, bench: Bench) -> None:
        seen = []

        @bench.actor
        def rows() -> None:
            job = current_job()
            assert job is not None
            seen.extend(job.track(["a", "b", "c"]))
            seen.append(job.progress)

        rows.send()
        bench.work()
        bench.join()
        assert seen == ["a", "b", "c", 100]
        assert bench.tape.entries(records.HEARTBEAT)[-1].progress_total == 3

    def test_a_class_based_actor(self, bench: Bench) -> None:
        class Import(SupervisedActor):
            class Meta:
                broker = bench.broker

            def perform(self, total: int) -> None:
                assert self.supervision_id() is not None
                self.heartbeat(phase="start")
                self.report_progress(total, total)

        Import.send(5)
        bench.work()
        bench.join()
        assert bench.tape.one(records.ENDED).status == "completed"
        assert {entry.source for entry in bench.tape.entries(records.HEARTBEAT)} == {"manual", "progress"}

    def test_after_the_run_the_handle_is_silent(self, bench: Bench) -> None:
        kept: list[Job] = []

        @bench.actor
        def keep() -> None:
            job = current_job()
            assert job is not None
            kept.append(job)

        keep.send()
        bench.work()
        bench.join()
        kept[0].heartbeat(late=True)
        kept[0].report_progress(1, 1)
        assert not bench.tape.entries(records.HEARTBEAT)

    def test_log_records_carry_the_job(self, bench: Bench) -> None:
        lines: list[str] = []

        class Lines(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                lines.append(self.format(record))

        handler = Lines()
        handler.setFormatter(logging.Formatter("%(job_id)s %(actor)s %(queue)s %(message)s"))
        handler.addFilter(JobLogFilter())
        log = logging.getLogger("app")
        log.addHandler(handler)

        @bench.actor
        def speak() -> None:
            log.warning("inside")

        try:
            message = speak.send()
            bench.work()
            bench.join()
            log.warning("outside")
        finally:
            log.removeHandler(handler)
        assert lines == [f"{message.message_id} speak default inside", "- - - outside"]


class TestWhatIsLeftAlone:
    def test_an_actor_or_a_message_that_does_not_want_it(self, bench: Bench) -> None:
        seen = []

        @bench.actor(supervised=False)
        def private() -> None:
            seen.append(current_job())

        @bench.actor
        def public() -> None:
            seen.append(current_job())

        private.send()
        public.send_with_options(supervised=False)
        bench.work()
        bench.join()
        assert seen == [None, None]
        assert not bench.tape.entries(records.STARTED)
        assert not bench.tape.entries(records.ENQUEUED)

    def test_an_excluded_queue(self, make_bench: Callable[..., Bench]) -> None:
        bench = make_bench(excluded_queues=["def*"])

        @bench.actor
        def skipped() -> None: ...

        skipped.send()
        bench.work()
        bench.join()
        assert not bench.tape.entries(records.STARTED)

    def test_an_actor_that_is_called_from_another_runs_straight_through(self, bench: Bench) -> None:
        @bench.actor
        def inner() -> str | None:
            return chaperone.supervision_id()

        seen = []

        @bench.actor
        def outer() -> None:
            seen.append(inner())

        message = outer.send()
        bench.work()
        bench.join()
        assert seen == [message.message_id]
        assert len(bench.tape.entries(records.STARTED)) == 1

    def test_a_disabled_chaperone_does_nothing(self, make_bench: Callable[..., Bench]) -> None:
        bench = make_bench(enabled=False)
        ran = []

        @bench.actor(timeout=5)
        def work() -> None:
            ran.append(1)

        work.send()
        bench.work()
        bench.join()
        assert ran == [1]
        assert not bench.tape.entries()


class TestInterrupts:
    def test_a_timeout_of_ours_limits_an_in_process_worker_too(self, bench: Bench) -> None:
        @bench.actor(timeout=0.2, max_retries=0)
        def spin() -> None:
            while True:
                time.sleep(0.01)

        spin.send()
        bench.work()
        started, ended = bench.tape.one(records.STARTED), bench.tape.one(records.ENDED)
        assert started.timeout_at == pytest.approx(started.at + 0.2)
        assert json.loads(started.limits) == {"timeout": 0.2}
        assert (ended.outcome, ended.status) == ("interrupted", "failed")
        assert ended.error[0].endswith("TimeoutExceeded")

    def test_the_time_limit_of_dramatiq_is_kept_where_dramatiq_keeps_it(self, make_bench: Callable[..., Bench]) -> None:
        limit = TimeLimit(time_limit=200, interval=50)
        limit.after_process_boot(None)
        bench = make_bench(middleware=[limit, Retries(max_retries=0)])

        @bench.actor
        def spin() -> None:
            while True:
                time.sleep(0.01)

        spin.send()
        bench.work()
        assert bench.tape.one(records.ENDED).error[0].endswith("TimeLimitExceeded")

    def test_an_actor_may_catch_it(self, bench: Bench) -> None:
        caught = []

        @bench.actor(timeout=0.1)
        def tidy() -> None:
            try:
                while True:
                    time.sleep(0.01)
            except TimeLimitExceeded:
                caught.append(True)

        tidy.send()
        bench.work()
        assert bench.tape.one(records.ENDED).outcome == "succeeded"
        assert caught == [True]

    def test_shutdown_notifications(self, make_bench: Callable[..., Bench]) -> None:
        bench = make_bench(middleware=[ShutdownNotifications(), Retries(max_retries=0)])
        reached, caught = threading.Event(), []

        @bench.actor(notify_shutdown=True)
        def wait() -> None:
            reached.set()
            try:
                while True:
                    time.sleep(0.01)
            except Shutdown:
                caught.append("asked")
                raise

        wait.send()
        worker = bench.work()
        assert reached.wait(5)
        worker.stop()
        assert caught == ["asked"]
        assert bench.tape.one(records.ENDED).outcome == "interrupted"

    def test_a_job_that_returns_at_its_deadline_is_never_called_failed(self, bench: Bench) -> None:
        """Many jobs end within the interrupter's reach: each either finished or was interrupted, none both."""
        finished: list[int] = []

        @bench.actor(timeout=0.05, max_retries=0)
        def race(number: int) -> None:
            time.sleep(0.05 + number % 10 / 5000)
            finished.append(number)

        chaperone_ = bench.chaperone
        worker = bench.work(threads=8)
        working = chaperone_._runtime._working  # type: ignore[union-attr]
        working.sampler.interval_s = 0.001  # type: ignore[union-attr]
        working.sampler.wake()  # type: ignore[union-attr]
        for number in range(200):
            race.send(number)
        bench.join()
        worker.stop()
        ends = bench.tape.entries(records.ENDED)
        assert len(ends) == 200
        succeeded = sum(entry.outcome == "succeeded" for entry in ends)
        # An interrupt may come between the last statement and the return; no job succeeds that did not get there.
        assert len(finished) - 20 <= succeeded <= len(finished)


class TestRequeue:
    """The command ``requeue``, on the sampler's thread as in a worker."""

    def requeue(self, bench: Bench, job_id: str) -> tuple[str, str]:
        working = bench.chaperone._runtime._working
        assert working is not None
        return working.commands.run(records.Command("c1", "w", "requeue", {"job_id": job_id}))

    @pytest.mark.parametrize("max_retries", [0, 5])
    def test_it_is_stopped_and_runs_exactly_once_more(self, bench: Bench, max_retries: int) -> None:
        runs: list[int] = []

        @bench.actor(max_retries=max_retries)
        def work() -> str:
            job = current_job()
            assert job is not None
            runs.append(job.retries)
            while job.retries == 0:
                time.sleep(0.01)
            return "done"

        message = work.send()
        bench.work()
        wait_until(lambda: runs)
        assert self.requeue(bench, message.message_id)[0] == "done"
        bench.join()
        assert runs == [0, 1]
        # the second run may be over before the first one's end is written
        first, second = sorted(bench.tape.entries(records.ENDED, message.message_id), key=lambda entry: entry.retries)
        assert (first.outcome, first.status, first.error[0]) == ("interrupted", None, "dramatiq_chaperone.errors.JobRequeued")
        assert (second.outcome, second.status) == ("succeeded", "completed")
        assert [each.retries for each in bench.tape.entries(records.ENQUEUED, message.message_id)] == [0, 1]
        assert not bench.broker.dead_letters
        assert self.requeue(bench, message.message_id)[0] == "refused"

    def test_the_result_is_that_of_the_second_run(self, bench: Bench) -> None:
        from dramatiq.results import Results
        from dramatiq.results.backends import StubBackend

        backend = StubBackend()
        bench.broker.add_middleware(Results(backend=backend))
        started = threading.Event()

        @bench.actor(max_retries=0, store_results=True)
        def work() -> int:
            job = current_job()
            assert job is not None
            started.set()
            while job.retries == 0:
                time.sleep(0.01)
            return 42

        message = work.send()
        bench.work()
        assert started.wait(10)
        self.requeue(bench, message.message_id)
        assert message.get_result(backend=backend, block=True, timeout=10_000) == 42

    def test_one_that_returns_all_the_same_is_done(self, bench: Bench) -> None:
        started = threading.Event()
        runs: list[int] = []

        @bench.actor(max_retries=0)
        def work() -> None:
            runs.append(1)
            started.set()
            try:
                while True:
                    time.sleep(0.01)
            except Interrupt:
                return

        message = work.send()
        bench.work()
        assert started.wait(10)
        self.requeue(bench, message.message_id)
        bench.join()
        assert runs == [1]
        assert bench.tape.one(records.ENDED, message.message_id).status == "completed"

    def test_without_a_broker_it_ends_as_any_other_that_fails(self, bench: Bench) -> None:
        class Refuse(Middleware):
            is_on = False

            def before_enqueue(self, broker: Any, message: Any, delay: int | None) -> None:
                if self.is_on:
                    raise MiddlewareError("no broker")

        refuse = Refuse()
        bench.broker.add_middleware(refuse)
        started = threading.Event()

        @bench.actor(max_retries=0)
        def work() -> None:
            started.set()
            while True:
                time.sleep(0.01)

        message = work.send()
        bench.work()
        assert started.wait(10)
        refuse.is_on = True
        self.requeue(bench, message.message_id)
        bench.join()
        ended = bench.tape.one(records.ENDED, message.message_id)
        assert (ended.outcome, ended.status) == ("interrupted", "failed")
        assert internal_errors.pop("requeue") == 1


class TestFiles:
    def test_only_their_user_can_read_them(self, make_bench: Callable[..., Bench], state_dir: Path) -> None:
        """Whatever the umask says."""
        before = os.umask(0)
        try:
            state_dir.rmdir()
            bench = make_bench()
            bench.actor(lambda: None, actor_name="one").send()
            bench.work()
        finally:
            os.umask(before)
        assert state_dir.stat().st_mode & 0o777 == 0o700
        files = [path for path in state_dir.rglob("*") if path.is_file()]
        assert files
        assert all(path.stat().st_mode & 0o077 == 0 for path in files)


class TestPlacement:
    def names(self, broker: StubBroker) -> list[str]:
        return [type(entry).__name__ for entry in broker.middleware if type(entry).__name__ in {"Chaperone", "Gate", "Retries", "Late"}]

    class Late(Middleware):
        pass

    def test_added(self, chaperone_env: Any) -> None:
        broker = StubBroker()
        broker.add_middleware(Chaperone())
        broker.add_middleware(self.Late())
        dramatiq.actor(lambda: None, actor_name="one", broker=broker)
        assert self.names(broker) == ["Chaperone", "Retries", "Late"]

    def test_in_a_worker_the_gate_is_the_last(self, bench: Bench) -> None:
        bench.broker.add_middleware(self.Late())
        bench.work()
        assert self.names(bench.broker) == ["Chaperone", "Retries", "Late", "Gate"]

    def test_in_the_list(self, chaperone_env: Any) -> None:
        broker = StubBroker(middleware=[Retries(), Chaperone(), self.Late()])
        broker.declare_queue("default")
        assert self.names(broker) == ["Chaperone", "Retries", "Late"]

    def test_after_the_actors(self, chaperone_env: Any) -> None:
        broker = StubBroker()
        dramatiq.actor(lambda: None, actor_name="one", broker=broker)
        broker.add_middleware(Chaperone())
        assert self.names(broker) == ["Chaperone", "Retries"]

    def test_every_other_middleware_sees_each_hook_once(self, chaperone_env: Any) -> None:
        seen: list[str] = []

        class Spy(Middleware):
            def __init__(self, name: str) -> None:
                self.name = name

            def before_declare_actor(self, broker: Any, actor: Any) -> None:
                seen.append(f"before {self.name}")

            def after_declare_actor(self, broker: Any, actor: Any) -> None:
                seen.append(f"after {self.name}")

        broker = StubBroker(middleware=[Spy("a"), Chaperone(), Spy("b")])
        dramatiq.actor(lambda: None, actor_name="one", broker=broker)
        assert seen == ["before a", "before b", "after b", "after a"]

    def test_twice_is_an_error(self, chaperone_env: Any) -> None:
        broker = StubBroker(middleware=[Chaperone(), Chaperone()])
        with pytest.raises(SettingsError, match="already has a Chaperone"):
            broker.declare_queue("default")

    def test_contradicting_options_are_an_error_where_they_are_set(self, bench: Bench) -> None:
        with pytest.raises(SettingsError, match="actor both"):
            bench.actor(lambda: None, actor_name="both", timeout=1, time_limit=1000)
        fine = bench.actor(lambda: None, actor_name="fine")
        with pytest.raises(SettingsError, match="time_limit"):
            fine.send_with_options(timeout=1, time_limit=1000)

    def test_retries_takes_our_numbers_only_if_they_are_set(self, make_bench: Callable[..., Bench]) -> None:
        def retries(bench: Bench) -> Retries:
            return next(entry for entry in bench.broker.middleware if isinstance(entry, Retries))

        assert retries(make_bench()).max_retries == 20
        changed = retries(make_bench(max_retries=3, retry_delay=60))
        assert (changed.max_retries, changed.min_backoff) == (3, 60_000)


class TestNothingGoesWrong:
    def test_a_hook_that_raises_at_every_call_stops_no_job(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        ran = []

        @bench.actor
        def work(number: int) -> None:
            ran.append(number)

        bench.work()
        runtime = bench.chaperone._runtime
        assert runtime is not None
        execution = runtime.execution

        def broken(*args: Any) -> None:
            raise OSError("the disk is on fire")

        for name in ("received", "ended", "skipped", "nacked"):
            monkeypatch.setattr(execution, name, broken)
        monkeypatch.setattr(runtime, "enqueued", broken)
        before = internal_errors["observer"]
        for number in range(20):
            work.send(number)
        bench.join()
        assert sorted(ran) == list(range(20))
        assert internal_errors["observer"] - before == 60
        assert caplog.text.count("Internal error in observer") == 1

    @pytest.mark.parametrize(
        "argument",
        [b"\x00\xff", "\x00", "😀" * 1000, "x" * 10_000_000, float("nan"), 2**70, {"a": {1, 2}}],
        ids=lambda each: type(each).__name__,
    )
    def test_strange_arguments(self, make_bench: Callable[..., Bench], argument: Any) -> None:
        """Through the sender only: what Dramatiq's own encoder refuses never reaches a broker."""
        bench = make_bench(middleware=[])
        work = bench.actor(lambda each: None, actor_name="a" * 500)
        bench.chaperone.after_enqueue(bench.broker, work.message(argument), None)
        (sent,) = bench.tape.entries(records.ENQUEUED)
        assert len(sent.payload) < 20_000
        json.loads(sent.payload)

    def test_an_exception_that_cannot_be_shown(self, bench: Bench) -> None:
        class Mute(Exception):
            def __str__(self) -> str:
                raise RuntimeError("no words")

        @bench.actor(max_retries=0)
        def fail() -> None:
            raise Mute

        fail.send()
        bench.work()
        assert bench.tape.one(records.ENDED).error[0] == "Mute"

    def test_200_threads(self, bench: Bench) -> None:
        @bench.actor
        def work() -> None:
            time.sleep(0.01)

        bench.work(threads=200)
        for _ in range(1000):
            work.send()
        bench.join()
        assert len(bench.tape.entries(records.ENDED)) == 1000


class TestCompany:
    """Dramatiq's other middleware goes on as before."""

    def test_pipelines_callbacks_and_the_current_message(self, make_bench: Callable[..., Bench]) -> None:
        bench = make_bench(middleware=[CurrentMessage(), Callbacks(), Pipelines(), Retries()])
        seen: list[Any] = []

        @bench.actor
        def first(x: int) -> int:
            message = CurrentMessage.get_current_message()
            assert message is not None
            seen.append(message.message_id == chaperone.supervision_id())
            return x + 1

        @bench.actor
        def second(x: int) -> None:
            seen.append(x)

        @bench.actor
        def done(message: Any, result: Any) -> None:
            seen.append(result)

        dramatiq.pipeline([first.message_with_options(args=(1,), on_success="done"), second.message()], broker=bench.broker).run()
        bench.work()
        wait_until(lambda: len(seen) == 3)
        assert seen[0] is True
        assert sorted(seen[1:]) == [2, 2]

    def test_a_worker_that_was_stopped_leaves_no_wrapper(self, bench: Bench) -> None:
        def work() -> None: ...

        actor = bench.actor(work)
        worker: Worker = bench.work()
        assert actor.fn is not work
        worker.stop()
        assert actor.fn is work


class TestEnds:
    """What the end of a worker, and of a process, promises."""

    def test_a_worker_that_ends_with_a_job_in_its_hands_does_not_say_that_it_stopped(self, bench: Bench) -> None:
        go = threading.Event()

        @bench.actor
        def hang() -> None:
            go.wait(20)

        hang.send()
        worker = bench.work()
        bench.tape.one(records.STARTED)
        worker.stop(timeout=50)
        try:
            assert not bench.tape.entries(records.WORKER_STOPPED)
        finally:
            go.set()

    def test_a_worker_that_ends_in_order_says_so(self, bench: Bench) -> None:
        bench.work().stop()
        assert bench.tape.one(records.WORKER_STOPPED)

    def test_a_signal_handler_may_send_in_the_middle_of_the_first_message(self, bench: Bench) -> None:
        @bench.actor
        def work() -> None: ...

        runtime = bench.chaperone._runtime
        assert runtime is not None
        with runtime._lock:  # where a handler may interrupt
            work.send()
        assert len(bench.tape.entries(records.ENQUEUED)) == 1


def test_a_worker_that_boots_without_room_for_a_journal_is_supervised_once_there_is(
    make_bench: Callable[..., Bench], state_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("dramatiq_chaperone.runtime.JOURNAL_RETRY_S", 0.05)
    obstacle = state_dir / "journal"
    state_dir.mkdir(parents=True, exist_ok=True)
    obstacle.write_text("in the way")
    bench = make_bench()
    limits = [entry for entry in bench.broker.middleware if isinstance(entry, TimeLimit)]
    managers = [entry.manager for entry in limits]
    ran: list[int] = []

    @bench.actor
    def note(number: int) -> None:
        ran.append(number)

    bench.work()
    note.send(1)
    wait_until(lambda: ran == [1], what="the job to run without supervision")
    assert not bench.tape.entries()

    obstacle.unlink()
    wait_until(lambda: "are supervised from here on" in caplog.text, what="the worker to say so")
    bench.tape.one(records.WORKER)
    message = note.send(2)
    assert bench.tape.one(records.ENDED, message.message_id).outcome == "succeeded"
    assert [entry.manager for entry in limits] == managers


@pytest.mark.parametrize("had_come", [True, False])
def test_a_worker_says_that_it_writes_where_no_watcher_does(bench: Bench, caplog: pytest.LogCaptureFixture, had_come: bool) -> None:
    worker = Worker(bench.broker, worker_timeout=50, worker_threads=1)
    worker.start()
    try:
        working = bench.chaperone._runtime._working
        if had_come:
            wait_until(lambda: bench.tape.entries(records.WORKER) and working._had_writer, what="the worker to see the watcher")
            bench.tape.close()
        else:
            working.grace_s = 0.0
        wait_until(lambda: f"The watcher {'is gone' if had_come else 'has not come'}: the worker" in caplog.text, what="the log line")
        wait_until(working.journal.has_writer, what="the journal to be written")
    finally:
        worker.stop()


def test_secrets_that_are_no_arguments_are_not_in_the_record_of_an_error(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()

    @bench.actor(max_retries=0)
    def call() -> None:
        password = "".join(("open", "sesame"))
        try:
            raise ConnectionError(f"https://app:{password}@api.example.org answers 401")
        except ConnectionError as error:
            raise ValueError(f"failed with token={password}") from error

    bench.work()
    message = call.send()
    error = bench.tape.one(records.ENDED, message.message_id).error
    assert "opensesame" not in repr(error)
    assert 'password = "".join' not in error[1]
    assert 'raise ValueError(f"failed with token={password}")' in error[2], "code is left as it is"
