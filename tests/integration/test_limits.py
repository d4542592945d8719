"""Jobs that pass their limits in a real worker, with real memory and real CPU."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from dramatiq.middleware import Retries, TimeLimit, TimeLimitExceeded

from dramatiq_chaperone import health, health_check, on, records
from dramatiq_chaperone.errors import CpuLimitExceeded, LimitExceeded, MemoryLimitExceeded, SettingsError, TimeoutExceeded
from dramatiq_chaperone.events import JobMemoryExceeded, JobTimeout, finish_events, off
from dramatiq_chaperone.health import JobFacts
from dramatiq_chaperone.limits import MB
from dramatiq_chaperone.service import internal_errors
from tests.integration.conftest import Bench
from tests.waiting import wait_until

#: What the jobs allocate, and what they may: the test's own process is far above that before they begin.
BLOCK, LIMIT_MB = 200 * MB, 100


@pytest.fixture(autouse=True)
def no_internal_errors() -> Iterator[None]:
    before = internal_errors.copy()
    yield
    assert internal_errors == before


@pytest.fixture
def released(bench: Bench) -> Iterator[threading.Event]:
    """Lets the jobs go; at the latest at the end of the test, before the worker is stopped."""
    event = threading.Event()
    yield event
    event.set()


def working(bench: Bench) -> Any:
    return bench.chaperone._runtime._working  # type: ignore[union-attr]


def work_closely(bench: Bench) -> None:
    """Start a worker that looks at its deadlines twenty times a second."""
    bench.work()
    working(bench).sampler.interval_s = 0.05
    working(bench).sampler.wake()


def wait_for_ever(released: threading.Event) -> None:
    while not released.wait(0.01):
        pass


class TestMemory:
    @pytest.mark.parametrize("threads", [1, 4])
    def test_a_job_that_is_alone_is_interrupted_and_retries_decides(self, bench: Bench, released: threading.Event, threads: int) -> None:
        caught: list[str] = []

        @bench.actor(memory_limit=LIMIT_MB, on_memory="interrupt", max_retries=1, min_backoff=1, max_backoff=1)
        def hoard() -> None:
            block = b"x" * BLOCK
            try:
                wait_for_ever(released)
            except MemoryLimitExceeded as error:
                caught.append(type(error).__name__)
                raise
            finally:
                del block

        message = hoard.send()
        bench.work(threads=threads)
        wait_until(lambda: bench.tape.entries(records.DEAD), timeout_s=30)

        runs = bench.tape.entries(records.ENDED, message.message_id)
        assert [(each.outcome, each.status) for each in runs] == [("interrupted", None), ("interrupted", "failed")]
        assert [each.error[0] for each in runs] == ["dramatiq_chaperone.errors.MemoryLimitExceeded"] * 2
        assert caught == ["MemoryLimitExceeded"] * 2
        violations = bench.tape.entries(records.VIOLATED, message.message_id)
        assert [(each.run_id, each.type, each.attribution) for each in violations] == [(each.run_id, "memory", "exact") for each in runs]
        for each in violations:
            evidence = json.loads(each.metadata)
            assert each.limit == LIMIT_MB * MB
            assert each.actual - evidence["before"] == pytest.approx(BLOCK, rel=0.2)
            assert not evidence["is_default"]
        names = [each.name for each in bench.tape.entries(records.EVENT, message.message_id)]
        assert names.count("ResourceViolationDetected") == names.count("JobMemoryExceeded") == 2

    def test_of_two_jobs_at_once_the_worker_is_told_once_and_nobody_is_stopped(self, bench: Bench, released: threading.Event) -> None:
        begun = threading.Barrier(3)

        @bench.actor(memory_limit=LIMIT_MB, on_memory="interrupt")
        def hoard(size: int) -> None:
            begun.wait(30)
            block = b"x" * size
            wait_for_ever(released)
            del block

        hoard.send(BLOCK)
        hoard.send(BLOCK)
        bench.work(threads=2)
        begun.wait(30)
        violation = bench.tape.one(records.VIOLATED)
        samples = len(bench.tape.entries(records.SAMPLED))
        wait_until(lambda: len(bench.tape.entries(records.SAMPLED)) >= samples + 4)
        released.set()
        bench.join()

        assert bench.tape.one(records.VIOLATED) == violation
        assert (violation.job_id, violation.type, violation.attribution) == (None, "memory", "shared")
        assert {each.outcome for each in bench.tape.entries(records.ENDED)} == {"succeeded"}

    def test_a_handler_may_end_what_is_far_beyond_its_limit(self, bench: Bench, released: threading.Event) -> None:
        """The event has all that it takes: whose it is, the limit, the usage, and whether it is the job's alone."""
        seen: list[str] = []

        def kill_severe(event: JobMemoryExceeded) -> None:
            if not event.is_default and event.attribution == "exact" and event.actual > 2 * event.limit:
                seen.append(event.job_id)

        on(JobMemoryExceeded, kill_severe)
        try:

            @bench.actor(memory_limit=LIMIT_MB)
            def hoard() -> None:
                block = b"x" * 2 * BLOCK
                wait_for_ever(released)
                del block

            message = hoard.send()
            bench.work()
            wait_until(lambda: seen)
            released.set()
            bench.join()
            assert seen == [message.message_id]
            assert bench.tape.one(records.ENDED).outcome == "succeeded", "record is the default"
        finally:
            off(JobMemoryExceeded, kill_severe)
            finish_events()


class TestCpu:
    def test_a_job_that_spins(self, bench: Bench, released: threading.Event) -> None:
        @bench.actor(cpu_limit=20, on_cpu="interrupt", max_retries=0)
        def spin() -> None:
            while True:
                pass

        @bench.actor(cpu_limit=20, on_cpu="interrupt")
        def sleep() -> None:
            wait_for_ever(released)

        message, other = spin.send(), sleep.send()
        bench.work()
        working(bench).limits.cpu_window_s = 2.0
        ended = bench.tape.one(records.ENDED, message.message_id)
        released.set()
        bench.join()

        assert ended.error[0].endswith(CpuLimitExceeded.__name__)
        violation = bench.tape.one(records.VIOLATED, message.message_id)
        assert (violation.type, violation.limit, violation.attribution) == ("cpu", 20, "exact")
        assert violation.actual > 20
        assert json.loads(violation.metadata)["window_s"] == 2.0
        assert "JobCpuExceeded" in {each.name for each in bench.tape.entries(records.EVENT, message.message_id)}
        assert bench.tape.one(records.ENDED, other.message_id).outcome == "succeeded"


def stubborn(caught: list[str], seconds: float) -> None:
    """Runs its time, whatever interrupts it."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            time.sleep(0.01)
        except LimitExceeded as error:
            caught.append(type(error).__name__)
        except TimeLimitExceeded as error:
            caught.append(type(error).__name__)


class TestTimeouts:
    """Message timeout, message time_limit, actor timeout, actor time_limit, setting, TimeLimit's own: each in a real worker."""

    @pytest.mark.parametrize(
        ("setting", "own", "actor", "message", "raised", "due"),
        [
            (None, None, {}, {"timeout": 0.2}, "TimeoutExceeded", 0.2),
            (60, 60_000, {"timeout": 50}, {"timeout": 0.2}, "TimeoutExceeded", 0.2),
            (60, 60_000, {"timeout": 50}, {"time_limit": 200}, "TimeLimitExceeded", 0.2),
            (60, 60_000, {"time_limit": 50_000}, {"timeout": 0.2}, "TimeoutExceeded", 0.2),
            (60, 60_000, {"timeout": 0.2}, {}, "TimeoutExceeded", 0.2),
            (60, 60_000, {"time_limit": 200}, {}, "TimeLimitExceeded", 0.2),
            (0.2, 60_000, {}, {}, "TimeoutExceeded", 0.2),
            (None, 200, {}, {}, "TimeLimitExceeded", 0.2),
            (0.2, 200, {"timeout": 0}, {}, None, None),
            (0.2, 200, {}, {"timeout": 0}, None, None),
            (0, 200, {}, {}, None, None),
            (None, None, {}, {}, None, None),
        ],
    )
    def test_precedence(
        self,
        make_bench: Callable[..., Bench],
        setting: float | None,
        own: int | None,
        actor: dict[str, Any],
        message: dict[str, Any],
        raised: str | None,
        due: float | None,
    ) -> None:
        middleware: list[Any] = [Retries(max_retries=0)]
        if own is not None:
            middleware.append(TimeLimit(time_limit=own, interval=50))
            middleware[-1].after_process_boot(None)
        bench = make_bench(middleware=middleware, timeout=setting)
        caught: list[str] = []

        @bench.actor(**actor)
        def work() -> None:
            stubborn(caught, 0.6)

        work.send_with_options(**message)
        work_closely(bench)
        started, ended = bench.tape.one(records.STARTED), bench.tape.one(records.ENDED)
        assert ended.outcome == "succeeded"
        assert caught == ([] if raised is None else [raised])
        assert (started.timeout_at is None) == (due is None)
        if due is not None:
            assert started.timeout_at == pytest.approx(started.at + due)
            violation = bench.tape.one(records.VIOLATED)
            assert (violation.type, violation.limit) == ("timeout", due)
            assert due <= violation.actual <= 0.6
            assert violation.is_default is (own == 200 and setting is None and not actor and not message)
        else:
            assert bench.tape.entries(records.VIOLATED) == []

    @pytest.mark.parametrize("level", ["setting", "actor", "message"])
    def test_record_only_records(self, make_bench: Callable[..., Bench], level: str) -> None:
        bench = make_bench(**({"on_timeout": "record"} if level == "setting" else {"on_timeout": "kill"}))
        caught: list[str] = []

        @bench.actor(timeout=0.1, **({"on_timeout": "record"} if level == "actor" else {}))
        def work() -> None:
            stubborn(caught, 0.5)

        work.send_with_options(**({"on_timeout": "record"} if level == "message" else {}))
        work_closely(bench)
        bench.tape.one(records.ENDED)
        assert caught == []
        assert bench.tape.one(records.VIOLATED).type == "timeout"
        assert {each.name for each in bench.tape.entries(records.EVENT) if each.job_id} >= {"ResourceViolationDetected", "JobTimeout"}

    def test_record_leaves_dramatiqs_own_limit_in_force(self, make_bench: Callable[..., Bench]) -> None:
        limit = TimeLimit(time_limit=300, interval=50)
        limit.after_process_boot(None)
        bench = make_bench(middleware=[limit, Retries(max_retries=0)])
        caught: list[str] = []

        @bench.actor(timeout=0.1, on_timeout="record")
        def work() -> None:
            stubborn(caught, 0.8)

        work.send()
        work_closely(bench)
        bench.tape.one(records.ENDED)
        assert caught == ["TimeLimitExceeded"]
        assert bench.tape.one(records.VIOLATED).limit == 0.1

    def test_a_job_that_outlives_its_interrupt_is_told_once(self, bench: Bench) -> None:
        """It sits in C code: the exception reaches it when that returns."""

        @bench.actor(timeout=0.1, max_retries=0)
        def sit() -> None:
            time.sleep(2.5)

        sit.send()
        bench.work()
        ended = bench.tape.one(records.ENDED)
        assert ended.error[0].endswith(TimeoutExceeded.__name__)
        assert ended.duration_s > 2.4
        assert bench.tape.one(records.VIOLATED).actual < 2
        assert bench.tape.one(records.HEALTH_CHECKED).status == "unhealthy"

    def test_the_event_is_published_too(self, bench: Bench, released: threading.Event) -> None:
        seen: list[JobTimeout] = []
        on(JobTimeout, seen.append)
        try:

            @bench.actor(timeout=0.1, max_retries=0)
            def work() -> None:
                wait_for_ever(released)

            message = work.send()
            bench.work()
            event = wait_until(lambda: seen)[0]
            assert (event.job_id, event.timeout_seconds, event.is_default) == (message.message_id, 0.1, False)
            assert event.duration >= 0.1
        finally:
            off(JobTimeout, seen.append)
            finish_events()


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"memory_limit": "lots"}, "memory_limit='lots' of actor work must be a number, 0 or more"),
            ({"cpu_limit": 200_000}, "cpu_limit=200000 of actor work must be a number, 0 or more, at most 100,000"),
            ({"timeout": float("inf")}, "timeout=inf of actor work must be a number, 0 or more, at most 31,536,000"),
            ({"on_memory": "explode"}, "on_memory='explode' of actor work must be one of record, interrupt, kill"),
            ({"on_timeout": None}, "on_timeout=None of actor work must be one of record, interrupt, kill"),
        ],
    )
    def test_what_is_out_of_bounds_is_refused_where_the_actor_is_declared(self, bench: Bench, options: dict[str, Any], said: str) -> None:
        with pytest.raises(SettingsError, match=said) as caught:

            @bench.actor(**options)
            def work() -> None: ...

        assert {caught.value.field: caught.value.value} == options

    def test_and_where_the_message_is_sent(self, bench: Bench) -> None:
        @bench.actor
        def work() -> None: ...

        with pytest.raises(SettingsError, match="on_cpu='maybe'"):
            work.send_with_options(on_cpu="maybe")


class TestHealth:
    def test_a_healthy_job_leaves_nothing(self, bench: Bench, released: threading.Event) -> None:
        @bench.actor(memory_limit=100_000, cpu_limit=100, timeout=100)
        def work() -> None:
            wait_for_ever(released)

        work.send()
        bench.work()
        wait_until(lambda: len(bench.tape.entries(records.SAMPLED)) >= 3)
        released.set()
        bench.join()
        assert bench.tape.entries(records.VIOLATED) == bench.tape.entries(records.HEALTH_CHECKED) == []

    def test_a_users_check_sees_what_the_job_reports(
        self, bench: Bench, released: threading.Event, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(health, "_checks", ())
        monkeypatch.setattr("dramatiq_chaperone.supervision.checkups.CHECK_S", 0.5)

        @health_check
        def refused_rows(job: JobFacts) -> tuple[str, str] | None:
            share = job.metadata.get("refused", 0) / max(1, job.metadata.get("rows", 1))
            return ("degraded", f"{share:.0%} of the rows are refused") if share > 0.05 else None

        @bench.actor
        def work() -> None:
            from dramatiq_chaperone import heartbeat

            heartbeat(rows=100, refused=20)
            wait_for_ever(released)

        message = work.send()
        bench.work()
        checked = bench.tape.one(records.HEALTH_CHECKED, message.message_id)
        released.set()
        bench.join()
        assert (checked.status, checked.reason, checked.is_change) == ("degraded", "20% of the rows are refused", True)
        assert json.loads(checked.metadata)["findings"][0]["code"] == "refused_rows"
