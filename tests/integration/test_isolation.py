"""Isolated actors with a worker in the test's own process: everything in the child is as in a thread."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import dramatiq
import psutil
import pytest
from dramatiq.middleware import Shutdown, TimeLimitExceeded
from dramatiq.results.errors import ResultFailure

from dramatiq_chaperone import Chaperone, breaker, records
from dramatiq_chaperone.breakers.registry import registry
from dramatiq_chaperone.errors import SettingsError, TimeoutExceeded
from dramatiq_chaperone.events import HeartbeatReceived, off, on
from dramatiq_chaperone.limits import MB
from dramatiq_chaperone.service import internal_errors
from dramatiq_chaperone.supervision.jobs import JobLogFilter
from dramatiq_chaperone.supervision.stopping import interrupt
from tests.integration.conftest import Bench
from tests.waiting import wait_until

APP = "tests.integration.isolated_app"
GEVENT = "gevent cannot be forked; give it a worker without gevent"


class Isolated(Bench):
    """The app, imported anew, with its broker."""

    def __init__(self, module: ModuleType, notes: Path) -> None:
        super().__init__(module.broker, module.chaperone)
        self.module: Any = module
        self.notes_path = notes

    def send(self, name: str, *args: Any, **options: Any) -> Any:
        """Send one; the message."""
        return self.module.actors[name].send_with_options(args=args, **options)

    def result(self, message: Any) -> Any:
        """What it returned."""
        return message.get_result(backend=self.module.backend, block=True, timeout=20_000)

    def run(self, name: str, *args: Any, **options: Any) -> Any:
        """Send one, and wait for what it returns."""
        return self.result(self.send(name, *args, **options))

    def failure(self, name: str, *args: Any, **options: Any) -> Any:
        """Send one that fails; how it ended."""
        message = self.send(name, *args, **options)
        return self.end(message)

    def end(self, message: Any) -> Any:
        """How its run ended."""
        return self.tape.one(records.ENDED, message.message_id)

    def notes(self, what: str) -> list[str]:
        """What the actors wrote down."""
        if not self.notes_path.exists():
            return []
        return [rest for line in self.notes_path.read_text().splitlines() for first, _, rest in [line.partition(" ")] if first == what]

    def pid(self) -> int:
        """Of the child that has begun."""
        return int(wait_until(lambda: self.notes("start"))[-1])

    @property
    def zygote(self) -> psutil.Process:
        runtime = self.chaperone._runtime
        assert runtime is not None
        assert runtime.execution is not None
        pid = runtime.execution.zygote_pid
        assert pid is not None
        return psutil.Process(pid)

    def slots(self) -> list[tuple[Any, Any]]:
        """What runs."""
        runtime = self.chaperone._runtime
        assert runtime is not None
        assert runtime._working is not None
        return runtime._working.running.running()


@pytest.fixture
def make_app(chaperone_env: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Isolated]]:
    """``make_app(KILL_GRACE=1)``: the app with these settings, and with a worker."""
    made: list[Isolated] = []
    notes = tmp_path / "notes"
    monkeypatch.setenv("NOTES", str(notes))

    def make(*, threads: int = 2, **settings: object) -> Isolated:
        chaperone_env(**settings)
        monkeypatch.delitem(sys.modules, APP, raising=False)
        app = Isolated(importlib.import_module(APP), notes)
        made.append(app)
        app.chaperone.after_process_boot(app.broker)
        app.work(threads=threads)
        return app

    before = internal_errors.copy()
    yield make
    for app in made:
        app.close()
    assert internal_errors == before


@pytest.fixture
def app(make_app: Callable[..., Isolated]) -> Isolated:
    return make_app()


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def rss_without(zygote: psutil.Process) -> int:
    """Memory of this process and its children, such as servers of other tests, without a zygote and its own."""
    own, left_out = psutil.Process(), {zygote, *zygote.children(recursive=True)}
    found = 0
    for each in (own, *own.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            found += 0 if each in left_out else each.memory_info().rss
    return found


class TestAsInAThread:
    def test_it_runs_in_a_process_of_its_own(self, app: Isolated) -> None:
        first, second = app.run("add", 1, 2), app.run("add", 3, 4)

        assert [first[0], second[0]] == [3, 7]
        assert len({first[1], second[1], os.getpid(), app.zygote.pid}) == 4
        assert {first[2], second[2]} == {app.zygote.pid}
        assert app.zygote.ppid() == os.getpid()

    def test_it_knows_its_job(self, app: Isolated) -> None:
        message = app.send("who", tag=1)
        found = app.result(message)
        started = app.tape.one(records.STARTED, message.message_id)

        assert found["options"] == ["tag"]  # what cannot leave the process, put there by a middleware, stays in it
        assert found["job"] == found["id"] == found["message"] == message.message_id
        assert (found["run"], found["thread"]) == (started.run_id, started.thread)
        assert (found["actor"], found["queue"], found["retries"]) == ("who", "default", 0)

    def test_its_numbers_are_its_own(self, app: Isolated) -> None:
        message = app.send("grow", 150)
        app.result(message)
        ended = app.end(message)
        assert ended.memory_attribution == "exact"
        assert 150 * MB < ended.memory_peak < 400 * MB

        message = app.send("burn", 0.3)
        app.result(message)
        assert 0.3 <= app.end(message).cpu_seconds < 0.9

    def test_so_are_its_files(self, app: Isolated) -> None:
        few = app.send("hold_files", 10, 1.0, file_descriptor_limit=100)
        many = app.send("hold_files", 150, 30.0, file_descriptor_limit=100)
        app.result(few)
        violation = app.tape.one(records.VIOLATED)
        assert (violation.job_id, violation.type, violation.limit) == (many.message_id, "file_descriptors", 100)
        assert (violation.attribution, 150 <= violation.actual < 250) == ("exact", True)
        for slot, job in app.chaperone._runtime._working.running.running():  # type: ignore[union-attr]
            assert job.child is not None, slot
            job.child.kill()

    def test_it_is_sampled(self, app: Isolated) -> None:
        messages = [app.send("grow", 100, 2.5), app.send("grow", 200, 2.5)]
        for message, size in zip(messages, (100, 200), strict=True):
            assert app.result(message) == 1  # nothing is shared
            samples = app.tape.entries(records.SAMPLED, message.message_id)
            assert {sample.memory_attribution for sample in samples} == {"exact"}
            assert size << 20 < samples[-1].memory_usage < (size + 150) << 20

    def test_jobs_in_threads_are_not_charged_for_it(self, app: Isolated) -> None:
        held = app.send("grow", 300, 3.0)
        wait_until(lambda: app.tape.entries(records.SAMPLED, held.message_id))
        slow = dramatiq.actor(broker=app.broker, actor_name="slow", store_results=True)(lambda: time.sleep(1.5))
        message = slow.send()
        app.result(message)
        sample = app.tape.entries(records.SAMPLED, message.message_id)[-1]
        assert sample.memory_attribution == "exact"
        assert sample.memory_usage < rss_without(app.zygote) + (150 << 20)
        app.result(held)

    def test_reports(self, app: Isolated) -> None:
        seen: list[Any] = []
        on(HeartbeatReceived)(seen.append)
        try:
            message = app.send("report", 10)
            app.result(message)
            wait_until(lambda: any(event.metadata.get("last") for event in seen))
        finally:
            off(HeartbeatReceived, seen.append)
        beats = app.tape.entries(records.HEARTBEAT, message.message_id)

        assert json.loads(beats[0].metadata) == {"hello": "there", "password": beats[0].metadata.split('"')[7]}
        assert "hunter22" not in beats[0].metadata
        assert beats[0].source == "manual"
        assert (beats[-1].progress_current, beats[-1].progress_total, beats[-1].phase) == (10, 20, "counting")
        assert {event.job_id for event in seen} == {message.message_id}

    def test_a_tight_loop_of_reports_is_thinned_and_its_end_is_told(self, app: Isolated) -> None:
        message = app.send("report", 20_000)
        app.result(message)
        beats = app.tape.entries(records.HEARTBEAT, message.message_id)
        assert len(beats) < 100
        assert (beats[-1].progress_current, beats[-1].progress_total) == (20_000, 40_000)

    def test_its_log_goes_through_the_workers_handlers(self, app: Isolated, caplog: pytest.LogCaptureFixture) -> None:
        caplog.handler.addFilter(JobLogFilter())
        with caplog.at_level(logging.INFO):
            message = app.send("log")
            app.result(message)
        records_ = [record for record in caplog.records if record.name == "isolated_app"]

        assert [record.getMessage() for record in records_] == ["hello worker", "it went wrong"]
        assert {record.job_id for record in records_} == {message.message_id}  # type: ignore[attr-defined]
        assert records_[0].shoe == 43  # type: ignore[attr-defined]
        assert "ValueError: inner" in str(records_[1].exc_text)
        assert all(record.process != os.getpid() for record in records_)

    def test_an_exception_comes_with_its_traceback(self, app: Isolated) -> None:
        ended = app.failure("fail", "what")
        kind, text, trace, context = ended.error

        assert (ended.outcome, ended.status, kind, text) == ("failed", "failed", "KeyError", "'what'")
        assert 'raise KeyError(text)\nKeyError: \'what\'\n"""' in trace
        assert "The above exception was the direct cause" in trace
        assert "supervision/isolation" not in trace.partition("direct cause")[0].replace("isolation.errors.RemoteTraceback", "")
        assert json.loads(context)["code"] == "raise KeyError(text)"

    def test_one_that_cannot_be_pickled_is_told_by_its_name(self, app: Isolated) -> None:
        kind, text, trace, _ = app.failure("fail_strangely").error
        assert (kind, text) == ("RuntimeError", f"{APP}.Unpicklable: code 7")
        assert "raise Unpicklable(7" in trace

    def test_a_result_that_cannot_be_pickled_is_the_jobs_error(self, app: Isolated) -> None:
        kind, text, *_ = app.failure("return_strangely").error
        assert kind == "TypeError"
        assert text.startswith("What return_strangely returned cannot be sent from its process:")

    def test_expected_exceptions_retries_and_skips(self, app: Isolated) -> None:
        assert app.failure("skip").status == "skipped"
        message = app.send("fail", "again", max_retries=1, min_backoff=1, max_backoff=5)
        wait_until(lambda: len(app.tape.entries(records.ENDED, message.message_id)) == 2)
        assert [ended.status for ended in app.tape.entries(records.ENDED, message.message_id)] == [None, "failed"]

    def test_a_message_that_it_sends(self, app: Isolated) -> None:
        parent = app.send("send")
        child = app.result(parent)
        app.join()
        sent = app.tape.one(records.ENQUEUED, child)
        assert (sent.parent_job_id, sent.initiator_type, sent.initiator_id) == (parent.message_id, "user", "42")
        assert "hunter22" not in sent.payload
        assert app.tape.one(records.ENDED, child).status == "completed"

    def test_asyncio(self, app: Isolated) -> None:
        assert int(app.run("nap", 0.01)) not in {os.getpid(), app.zygote.pid}

    def test_a_class(self, app: Isolated) -> None:
        message = app.module.Classy.send(5)
        assert app.result(message) == [5, message.message_id]
        assert app.tape.one(records.HEARTBEAT, message.message_id).metadata == '{"n":5}'

    def test_a_pipeline(self, app: Isolated) -> None:
        actors = app.module.actors
        steps = [actors["count_first"].message(1), actors["count_first"].message(), app.module.plain.message()]
        pipe = dramatiq.pipeline(steps, broker=app.broker).run()
        assert app.result(pipe.messages[-1])[0] == 3

    def test_a_group(self, app: Isolated) -> None:
        group = dramatiq.group([app.module.actors["count_first"].message(number) for number in range(5)], broker=app.broker).run()
        assert [app.result(child) for child in group.children] == [1, 2, 3, 4, 5]

    def test_large_arguments_and_results(self, app: Isolated) -> None:
        text = "x" * 3_000_000
        message = app.module.plain.send_with_options(args=(text,), isolate=True)
        assert app.result(message)[0] == text


class TestWhatItInherits:
    def test_nothing_of_other_jobs(self, app: Isolated) -> None:
        held = app.send("sleep", 30)
        app.pid()
        found = app.run("look_around")
        assert len([each for each in found["fds"] if each.startswith("socket:")]) == 1
        assert found["threads"] == ["MainThread"]
        assert found["argv"] == sys.argv
        assert found["oom"] == "1000"
        ((slot, job),) = app.slots()
        assert job.job_id == held.message_id
        assert interrupt(slot, job, Shutdown)

    def test_random_numbers_of_its_own(self, app: Isolated) -> None:
        assert app.run("draw") != app.run("draw")

    def test_programs_that_it_starts_listen_to_signals(self, app: Isolated) -> None:
        assert app.run("terminate_a_child") == -signal.SIGTERM


class TestMessagesDecide:
    def test_one_isolates_an_actor_that_is_not(self, app: Isolated) -> None:
        here = app.module.plain.send("a")
        there = app.module.plain.send_with_options(args=("b",), isolate=True)
        assert app.result(here) == ["a", os.getpid()]
        assert app.result(there)[1] != os.getpid()

    def test_one_runs_an_isolated_actor_in_a_thread(self, app: Isolated) -> None:
        assert app.run("add", 1, 2, isolate=False)[1] == os.getpid()

    def test_an_actor_that_is_called_runs_at_once(self, app: Isolated) -> None:
        assert app.module.actors["add"](1, 2)[1] == os.getpid()


class TestItsEnd:
    @pytest.mark.parametrize(
        ("how", "cause", "code"), [("segfault", "SIGSEGV", -11), ("exit", "exit code 3", 3), ("SIGKILL", "SIGKILL", -9)]
    )
    def test_it_dies(self, app: Isolated, how: str, cause: str, code: int) -> None:
        ended = app.failure("crash", how)
        assert ended.error[:2] == (
            "dramatiq_chaperone.errors.JobProcessDied",
            f"The process of the job ended before it could report: {cause}.",
        )
        assert ended.outcome == "failed"
        assert app.run("add", 1, 2)[0] == 3

    def test_the_system_takes_it_where_memory_runs_out(
        self, make_app: Callable[..., Isolated], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Simulated: the count of the cgroup goes up and the child is gone."""
        events = tmp_path / "events"
        events.write_text("oom_kill 0\n")
        monkeypatch.setenv("MEMORY_EVENTS", str(events))
        app = make_app()
        assert app.failure("run_out_of_memory").error[1].endswith(": SIGKILL (out of memory).")
        assert app.failure("crash", "SIGKILL").error[1].endswith(": SIGKILL.")

    def test_a_timeout_interrupts_it(self, app: Isolated) -> None:
        app.run("add", 1, 2)  # the zygote has imported the app
        ended = app.failure("sleep", 60, timeout=1)
        assert (ended.outcome, ended.error[0]) == ("interrupted", "dramatiq_chaperone.errors.TimeoutExceeded")
        assert ended.duration_s < 5
        assert len(app.notes("end")) == 1
        assert "time.sleep(seconds)" in ended.error[2]

    def test_an_async_one_is_cancelled_and_cleans_up(self, app: Isolated) -> None:
        app.run("add", 1, 2)  # the zygote has imported the app
        ended = app.failure("nap", 60, timeout=1)
        assert (ended.outcome, ended.error[0]) == ("interrupted", "dramatiq_chaperone.errors.TimeoutExceeded")
        assert app.notes("cleaned") == ["up"]

    def test_a_timeout_kills_it_in_c_code(self, make_app: Callable[..., Isolated]) -> None:
        app = make_app(KILL_GRACE=1)
        app.run("add", 1, 2)
        message = app.send("grind", timeout=1)
        pid = app.pid()
        ended = app.end(message)
        assert (ended.outcome, ended.error[0]) == ("killed", "dramatiq_chaperone.errors.TimeoutExceeded")
        assert "process was killed" in ended.error[1]
        assert is_gone(pid)
        assert ended.cpu_seconds > 0.1

    def test_dramatiqs_own_time_limit_does_too(self, make_app: Callable[..., Isolated]) -> None:
        app = make_app()
        time_limit = next(entry for entry in app.broker.middleware if isinstance(entry, dramatiq.middleware.TimeLimit))
        time_limit.after_process_boot(app.broker)
        app.run("add", 1, 2)
        ended = app.failure("grind", time_limit=1000, kill_grace=0.5)
        assert (ended.outcome, ended.error[0]) == ("killed", "dramatiq_chaperone.errors.TimeoutExceeded")
        assert issubclass(TimeoutExceeded, TimeLimitExceeded)

    def test_on_timeout_interrupt_leaves_it_at_that(self, app: Isolated) -> None:
        app.run("add", 1, 2)
        message = app.send("grind", timeout=1, kill_grace=0.1, on_timeout="interrupt")
        pid = app.pid()
        ((slot, job),) = app.slots()
        wait_until(lambda: slot.sent is not None)
        time.sleep(1.5)  # more than the grace and a look
        assert not is_gone(pid)
        job.child.kill()
        assert app.end(message).outcome == "killed"

    def test_memory_limit_kills_it_at_once(self, app: Isolated) -> None:
        ended = app.failure("grow", 300, 30.0, memory_limit=200)
        assert (ended.outcome, ended.error[0]) == ("killed", "dramatiq_chaperone.errors.MemoryLimitExceeded")
        assert "more than its memory_limit of 200 MB; its process was killed." in ended.error[1]
        assert ended.memory_peak > 200 * MB
        assert ended.duration_s < 10

    def test_it_is_on_record_before_it_is_ended(self, app: Isolated) -> None:
        message = app.send("grow", 300, 30.0, memory_limit=200)
        app.end(message)
        (violation,) = app.tape.entries(records.VIOLATED, message.message_id)
        assert (violation.type, violation.limit, violation.attribution) == ("memory", 200 * MB, "exact")
        assert violation.actual > violation.limit

    def test_a_timeout_before_it_has_begun(self, app: Isolated) -> None:
        app.run("add", 1, 2)
        app.zygote.suspend()
        try:
            ended = app.failure("sleep", "x" * 3_000_000, timeout=0.3, kill_grace=0.3)
            assert (ended.outcome, ended.error[0]) == ("killed", "dramatiq_chaperone.errors.TimeoutExceeded")
        finally:
            app.zygote.resume()

    def test_on_memory_interrupt_and_record(self, app: Isolated) -> None:
        ended = app.failure("grow", 300, 30.0, memory_limit=200, on_memory="interrupt")
        assert (ended.outcome, ended.error[0]) == ("interrupted", "dramatiq_chaperone.errors.MemoryLimitExceeded")
        assert app.run("grow", 300, 1.0, memory_limit=200, on_memory="record") == 1

    def test_an_address_space_limit_is_a_memory_error(self, app: Isolated) -> None:
        ended = app.failure("grow", 2000, address_space_limit=1000)
        assert ended.error[0] == "MemoryError"

    def test_cancelled_it_may_end_by_itself(self, app: Isolated) -> None:
        message = app.send("cooperate")
        app.pid()
        ((_, job),) = app.slots()
        job.is_cancelled = True
        assert app.result(message) == "cancelled"

    def test_an_interrupt_before_it_has_begun(self, app: Isolated) -> None:
        """The zygote does not answer; what was said meanwhile is heard when it does."""
        app.run("add", 1, 2)
        app.zygote.suspend()
        message = app.send("sleep", 60)
        try:
            ((slot, job),) = wait_until(app.slots)
            wait_until(lambda: job.child)
            assert interrupt(slot, job, Shutdown)
        finally:
            app.zygote.resume()
        assert app.end(message).error[0] == "dramatiq.middleware.shutdown.Shutdown"

    @pytest.mark.parametrize("size", [1, 3_000_000], ids=["small", "large"])
    def test_a_kill_before_it_has_begun(self, app: Isolated, size: int) -> None:
        """Also while an argument that is too large for the socket waits for somebody to read it."""
        app.run("add", 1, 2)
        app.zygote.suspend()
        message = app.send("sleep", "x" * size)
        try:
            ((_, job),) = wait_until(app.slots)
            wait_until(lambda: job.child).kill()
            assert app.end(message).error[0] == "dramatiq_chaperone.errors.JobProcessDied"
        finally:
            app.zygote.resume()
        assert app.run("add", 1, 2)[0] == 3
        assert not app.notes("start")


class TestWhenItIsStuck:
    @pytest.mark.parametrize(
        ("actor", "args", "cause", "text"),
        [
            ("sleep", (60,), "blocked", "blocked in sleep ("),
            ("grind", (), "spinning", "in C code for "),
        ],
    )
    def test_it_says_itself_why(self, app: Isolated, actor: str, args: tuple[Any, ...], cause: str, text: str) -> None:
        message = app.send(actor, *args, heartbeat_interval=1, missed_heartbeats=3, on_stuck="kill", kill_grace=0, max_retries=0)

        def told() -> list[Any]:
            return [json.loads(entry.data) for entry in app.tape.entries(records.EVENT, message.message_id) if entry.name == "JobStuck"]

        wait_until(told, timeout_s=20)
        (stuck,) = told()
        assert stuck["cause"] == cause
        assert text in stuck["diagnosis"]
        ended = app.end(message)
        assert ended.outcome in {"interrupted", "killed"}
        assert ended.error[0] == "dramatiq_chaperone.errors.HeartbeatsMissed"


class TestItsStack:
    def stack(self, app: Isolated, message: Any) -> str:
        runtime = app.chaperone._runtime
        assert runtime is not None
        assert runtime._working is not None
        outcome, detail = runtime._working.commands.run(records.Command("c", "w", "stack", {"job_id": message.message_id}))
        assert outcome == "done"
        return "\n".join(json.loads(detail)["stacks"][message.message_id])

    def test_it_is_that_of_its_own_process(self, app: Isolated) -> None:
        message = app.send("sleep", 5)
        app.pid()
        wait_until(lambda: "in sleep\n    time.sleep(seconds)" in self.stack(app, message))
        stack = self.stack(app, message)
        assert stack.startswith('  File "')
        assert "supervision" not in stack
        ((slot, job),) = app.slots()
        interrupt(slot, job, Shutdown)

    def test_of_a_coroutine(self, app: Isolated) -> None:
        message = app.send("nap", 5)
        wait_until(lambda: [job for _, job in app.slots() if job.child is not None and job.child.pid])
        wait_until(lambda: "await asyncio.sleep(seconds)" in self.stack(app, message))

    def test_in_c_code_it_is_said(self, app: Isolated) -> None:
        message = app.send("grind")
        pid = app.pid()
        assert self.stack(app, message) == f"The process of the job (pid {pid}) does not answer: it is in C code, or has just ended."
        ((_, job),) = app.slots()
        job.child.kill()


class TestStorms:
    """Interrupts and deaths at any moment: each job ends once, and no thread of the worker is lost."""

    JOBS = 200

    def ends(self, app: Isolated, messages: list[Any]) -> list[Any]:
        wait_until(lambda: len(app.tape.entries(records.ENDED)) >= len(messages), timeout_s=100, interval_s=0.1)
        app.join()
        ends = app.tape.entries(records.ENDED)
        assert sorted(end.job_id for end in ends) == sorted(message.message_id for message in messages)
        assert app.run("add", 1, 2)[0] == 3
        wait_until(lambda: not app.zygote.children())
        return list(ends)

    def test_interrupts(self, make_app: Callable[..., Isolated]) -> None:
        app = make_app(threads=4)
        app.run("add", 1, 2)
        messages = [*app.tape.entries(records.ENDED)]
        sent = [app.send("blink", random.random() / 50) for _ in range(self.JOBS)]
        while len(app.tape.entries(records.ENDED)) < self.JOBS:
            for slot, job in app.slots():
                if random.random() < 0.3:
                    interrupt(slot, job, Shutdown)
            time.sleep(random.random() / 50)
        ends = self.ends(app, [SimpleNamespace(message_id=end.job_id) for end in messages] + sent)
        outcomes = Counter(end.outcome for end in ends)
        assert outcomes.keys() == {"succeeded", "interrupted"}
        assert {end.error[0] for end in ends if end.error} == {"dramatiq.middleware.shutdown.Shutdown"}
        assert {end.job_id for end in ends if end.outcome == "succeeded" and end.actor == "blink"} <= set(app.notes("returned"))

    def test_the_death_of_the_zygote(self, make_app: Callable[..., Isolated]) -> None:
        app = make_app(threads=4)
        app.run("add", 1, 2)
        before = [*app.tape.entries(records.ENDED)]
        fds = psutil.Process().num_fds()
        sent = [app.send("blink", random.random() / 50) for _ in range(self.JOBS)]
        for _ in range(6):
            time.sleep(random.random() / 5)
            with contextlib.suppress(psutil.NoSuchProcess, AssertionError):  # there may be none just now
                app.zygote.kill()
        ends = self.ends(app, [SimpleNamespace(message_id=end.job_id) for end in before] + sent)
        assert {end.outcome for end in ends} <= {"succeeded", "failed"}
        assert {end.error[0] for end in ends if end.error} <= {"dramatiq_chaperone.errors.JobProcessDied"}
        assert psutil.Process().num_fds() <= fds + 3


class TestTheZygote:
    def test_it_ends_with_the_worker(self, app: Isolated) -> None:
        app.run("add", 1, 2)
        zygote = app.zygote
        app.close()
        assert is_gone(zygote.pid)

    def test_killed_it_takes_its_jobs_along_and_is_replaced(self, app: Isolated) -> None:
        messages = [app.send("grind"), app.send("sleep", 60)]
        wait_until(lambda: len(app.notes("start")) == 2)
        pids = [int(pid) for pid in app.notes("start")]
        zygote = app.zygote
        zygote.kill()
        for message in messages:
            kind, text, *_ = app.end(message).error
            assert kind == "dramatiq_chaperone.errors.JobProcessDied"
            assert "the process that forked it is gone" in text
        wait_until(lambda: all(map(is_gone, pids)), timeout_s=2.0)
        assert app.run("add", 1, 2)[2] != zygote.pid

    def test_signals_of_the_process_group_are_the_workers_affair(self, app: Isolated) -> None:
        message = app.send("sleep", 1.0)
        pid = app.pid()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(pid, number)
            app.zygote.send_signal(number)
        assert app.result(message) is None
        assert app.run("add", 1, 2)[0] == 3

    def test_jobs_that_run_at_the_end_of_the_worker_finish(self, app: Isolated) -> None:
        message = app.send("sleep", 1.5)
        app.pid()
        app.close()
        assert len(app.notes("end")) == 1
        assert app.end(message).status == "completed"

    def test_shutdown_is_for_those_who_asked_for_it(self, make_app: Callable[..., Isolated]) -> None:
        app = make_app()
        asked, other = app.send("sleep", 60, notify_shutdown=True), app.send("sleep", 1.5)
        wait_until(lambda: len(app.notes("start")) == 2)
        runtime = app.chaperone._runtime
        assert runtime is not None
        for slot, job in app.slots():
            if job.job_id == asked.message_id:
                assert interrupt(slot, job, Shutdown)
        assert app.end(asked).error[0] == "dramatiq.middleware.shutdown.Shutdown"
        assert app.end(other).status == "completed"

    def test_many_jobs(self, make_app: Callable[..., Isolated]) -> None:
        """None is lost, and nothing is left behind: no process, no file descriptor."""
        app = make_app(threads=4)
        app.run("add", 1, 2)
        app.join()
        here, there = psutil.Process(), app.zygote
        before = [here.num_fds(), there.num_fds()]
        messages = [app.send("count_first", number) for number in range(1000)]
        app.join()
        assert [app.result(message) for message in messages] == list(range(1, 1001))
        assert app.zygote.pid == there.pid
        assert not there.children()
        assert [here.num_fds(), there.num_fds()] <= [before[0] + 2, before[1]]  # the journal may have begun a segment


class TestRefusals:
    def test_an_actor_that_no_import_declares(self, app: Isolated) -> None:
        @dramatiq.actor(broker=app.broker, isolate=True, max_retries=0)
        def local() -> None: ...

        kind, text, *_ = app.end(local.send()).error
        assert kind == "dramatiq_chaperone.errors.SettingsError"
        assert text.startswith(f"The actor local cannot be isolated: importing {__name__} does not declare it.")

    def test_an_actor_of_a_script(self, app: Isolated) -> None:
        def script() -> None: ...

        script.__module__ = "__main__"
        actor = dramatiq.actor(broker=app.broker, isolate=True, max_retries=0)(script)
        kind, text, *_ = app.end(actor.send()).error
        assert kind == "dramatiq_chaperone.errors.SettingsError"
        assert text.startswith("The actor script cannot be isolated: it is declared in a script")

    def test_what_cannot_be_imported(self, app: Isolated) -> None:
        def lost() -> None: ...

        lost.__module__ = "no_such_module_of_mine"
        actor = dramatiq.actor(broker=app.broker, isolate=True, max_retries=0)(lost)
        text = app.end(actor.send()).error[1]
        assert "the app cannot be imported in a process of its own" in text
        assert "ModuleNotFoundError" in text

    def test_where_it_cannot_work(self, make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
        """At the boot of the worker, and for an actor that is declared later in its first run."""
        with monkeypatch.context() as patch:
            patch.setattr("dramatiq_chaperone.supervision.isolation.is_gevent_active", lambda: True)
            bench = make_bench()
            early = bench.actor(isolate=True, actor_name="early")(lambda: None)
            with pytest.raises(SettingsError, match=f"The actor {early.actor_name} cannot be isolated: {GEVENT}"):
                bench.work()
            bench = make_bench()
            bench.work()
            late = bench.actor(isolate=True, actor_name="late", max_retries=0)(lambda: None)
            error = bench.tape.one(records.ENDED, late.send().message_id).error
            assert error[:2] == ("dramatiq_chaperone.errors.SettingsError", f"The actor late cannot be isolated: {GEVENT}.")

    def test_on_another_system(self, app: Isolated, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patch:
            patch.setattr("sys.platform", "darwin")
            assert "forked on Linux only, and this is darwin" in app.failure("add", 1, 2).error[1]

    def test_what_is_not_supervised_cannot_be_isolated(self, app: Isolated) -> None:
        with pytest.raises(SettingsError, match="isolate=True of actor loose needs its jobs to be supervised"):
            dramatiq.actor(broker=app.broker, isolate=True, supervised=False, actor_name="loose")(lambda: None)


def test_a_worker_without_isolated_actors_has_no_zygote(bench: Bench) -> None:
    assert isinstance(bench.chaperone, Chaperone)
    bench.work()
    runtime = bench.chaperone._runtime
    assert runtime is not None
    assert runtime.execution is not None
    assert runtime.execution.zygote_pid is None


def test_a_failure_reaches_who_waits_for_the_result(app: Isolated) -> None:
    with pytest.raises(ResultFailure, match="KeyError: 'gone'"):
        app.run("fail", "gone")


def test_a_guard_inside_does_not_take_another_permit(app: Isolated) -> None:
    svc = breaker("payments", half_open_attempts=1, success_threshold=1)
    try:
        svc.half_open()
        assert app.failure("guarded").outcome == "failed"
        assert app.notes("guarded") == ["True"]
        assert svc.status.state == "closed", "what the guard saw counts, and not the end of the job"
        assert app.failure("guarded").outcome == "failed"
        assert svc.status.failed == 0
    finally:
        registry().clear()
