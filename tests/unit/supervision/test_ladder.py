"""The stop ladder, without threads: time is passed in."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from dramatiq.middleware import Shutdown, TimeLimitExceeded

from dramatiq_chaperone.errors import CommandRefused, JobCancelled, MemoryLimitExceeded
from dramatiq_chaperone.events import JobStopDelivered, JobStopIgnored, JobStopRequested
from dramatiq_chaperone.settings import Settings
from dramatiq_chaperone.supervision import stopping
from dramatiq_chaperone.supervision.jobs import Job, entered, heartbeat, left
from dramatiq_chaperone.supervision.ladder import ASK_S, StopLadder
from dramatiq_chaperone.supervision.policy import policy_of_unknown
from dramatiq_chaperone.supervision.slots import RunningJobs, Slot
from dramatiq_chaperone.supervision.stopping import Stop, interrupt, settle

KILL = Stop("kill", "operator", JobCancelled, by="ann", is_final=True, detail="stuck on an import")
TIMEOUT = Stop("interrupt", "timeout", TimeLimitExceeded)
MEMORY = Stop("kill", "memory", MemoryLimitExceeded)


class Desk:
    """Where a recorder would be: it keeps the events, and has the settings."""

    def __init__(self) -> None:
        self.settings = Settings.load({}, environ={})
        self.origin = type("Origin", (), {"worker_id": "w-1"})
        self.events: list[Any] = []
        self.entries: list[Any] = []

    def emit(self, event: Any) -> None:
        self.events.append(event)

    def append(self, entry: Any) -> None:
        self.entries.append(entry)

    def encode_metadata(self, metadata: dict[str, Any]) -> str:
        return str(metadata)


class Process:
    """The last rung: says what stands in its way, and counts."""

    def __init__(self) -> None:
        self.in_the_way: str | None = None
        self.begun: list[Stop] = []
        self.turns = 0

    def obstacle(self, *, force: bool) -> str | None:
        return None if force else self.in_the_way

    def begin(self, slot: Slot, job: Job, stop: Stop) -> str | None:
        if (obstacle := self.obstacle(force=stop.force)) is None:
            self.begun.append(stop)
        return obstacle

    def go_on(self) -> None:
        self.turns += 1


class Child:
    pid = 4711

    def __init__(self) -> None:
        self.got: list[Any] = []

    def interrupt(self, exception: type[BaseException]) -> None:
        self.got.append(exception)

    def kill(self) -> None:
        self.got.append("kill")


class Stage:
    """One job in one slot, the ladder, and the clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.raised: list[type[BaseException]] = []
        monkeypatch.setattr(stopping, "raise_thread_exception", lambda ident, exception: self.raised.append(exception))
        self.desk, self.process, self.running = Desk(), Process(), RunningJobs()
        self.ladder = StopLadder(self.running, self.desk, self.process, clock=lambda: self.now)  # type: ignore[arg-type]
        self.job = Job(self.desk, "job-1", "run-1", "work", "default", 0, "T-1", 1, False)  # type: ignore[arg-type]
        self.slot = Slot(None)
        self.slot.job, self.slot.policy = self.job, policy_of_unknown("work", "default", self.desk.settings)
        self.running.slots[1] = self.slot

    def stop(self, stop: Stop) -> bool:
        return self.ladder.stop(self.slot, self.job, stop)

    def after(self, seconds: float) -> None:
        self.now += seconds
        self.ladder.check(self.now)

    def told(self) -> list[str]:
        return [type(event).__name__ for event in self.desk.events]


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(monkeypatch)


class TestTheRungs:
    def test_a_job_that_never_reported_is_interrupted_at_once(self, stage: Stage) -> None:
        assert stage.stop(KILL)
        assert stage.raised == [JobCancelled]
        requested, delivered = stage.desk.events
        assert (type(requested), requested.means, requested.requested_by, requested.reason) == (
            JobStopRequested,
            "kill",
            "ann",
            KILL.detail,
        )
        assert (type(delivered), delivered.means, delivered.worker_id) == (JobStopDelivered, "interrupt", "w-1")

    def test_one_that_reports_is_asked_first(self, stage: Stage) -> None:
        token = entered(stage.job)
        try:
            heartbeat()
            stage.stop(KILL)
            stage.after(ASK_S / 2)
            assert stage.raised == []
            assert stage.job.cancelled
            with pytest.raises(JobCancelled):
                heartbeat()
            heartbeat(cleaning="up")  # it may clean up in peace
        finally:
            left(token)
        stage.after(ASK_S)
        assert stage.raised == []
        assert [getattr(event, "means", None) for event in stage.desk.events] == ["kill", "ask"]
        assert stage.job.rung == "ask"

    def test_a_thread_of_its_own_hears_it_too_and_it_is_interrupted_all_the_same(self, stage: Stage) -> None:
        stage.job.heartbeat()
        stage.stop(KILL)
        heard = []

        def helper() -> None:
            for _ in range(2):
                try:
                    stage.job.heartbeat()
                except JobCancelled:
                    heard.append(1)

        thread = threading.Thread(target=helper)
        thread.start()
        thread.join()
        assert heard == [1, 1]
        stage.after(ASK_S)
        assert stage.raised == [JobCancelled]

    def test_and_is_interrupted_when_it_does_not_report_soon(self, stage: Stage) -> None:
        stage.job.heartbeat()
        stage.stop(KILL)
        stage.after(ASK_S)
        assert stage.raised == [JobCancelled]
        stage.job.heartbeat()  # the interrupt is on its way: one is enough
        assert stage.job.rung == "interrupt"

    def test_a_limit_does_not_wait_for_a_heartbeat(self, stage: Stage) -> None:
        stage.job.heartbeat()
        stage.stop(TIMEOUT)
        assert stage.raised == [TimeLimitExceeded]
        stage.job.heartbeat()

    def test_after_the_grace_its_process_ends(self, stage: Stage) -> None:
        stage.stop(KILL)
        stage.after(9.9)
        assert not stage.process.begun
        stage.after(0.2)
        assert stage.process.begun == [KILL]
        ignored = stage.desk.events[-1]
        assert (type(ignored), ignored.waited, ignored.consequence) == (JobStopIgnored, 10.1, "its worker process is ended")
        stage.after(1)
        assert stage.process.turns == 2, "what could not be done in the first turn"

    def test_an_interrupt_never_ends_a_process(self, stage: Stage) -> None:
        stage.stop(TIMEOUT)
        for _ in range(20):
            stage.after(1)
            assert not stage.stop(TIMEOUT)
        assert not stage.process.begun
        assert stage.told() == ["JobStopRequested", "JobStopDelivered", "JobStopIgnored"]
        assert stage.desk.events[-1].consequence == "none: it was to be interrupted, not killed"

    def test_the_ladder_ends_where_something_is_in_the_way_and_says_so(self, stage: Stage) -> None:
        stage.process.in_the_way = "2 other jobs run in this worker process"
        stage.stop(KILL)
        stage.after(11)
        stage.after(11)
        assert stage.told() == ["JobStopRequested", "JobStopDelivered", "JobStopIgnored"]
        assert stage.desk.events[-1].consequence == "none: 2 other jobs run in this worker process"
        assert stage.stop(KILL._replace(force=True, by="bob", detail="")), "another operator insists"
        assert not stage.process.begun, "the command has to be answered first"
        stage.after(0)
        assert stage.process.begun
        assert stage.process.begun[0] == KILL._replace(force=True, by="bob")

    def test_asked_again_it_looks_again(self, stage: Stage) -> None:
        stage.process.in_the_way = "2 other jobs run in this worker process"
        stage.stop(KILL)
        assert not stage.stop(KILL)
        stage.after(11)
        stage.process.in_the_way = None
        stage.after(11)
        assert not stage.process.begun, "nobody has asked again"
        assert stage.stop(KILL)
        stage.after(0)
        assert stage.process.begun == [KILL]

    def test_a_job_that_has_ended_is_left_alone(self, stage: Stage) -> None:
        stage.stop(KILL)
        settle(stage.slot)
        stage.after(11)
        assert stage.told() == ["JobStopRequested", "JobStopDelivered"]
        assert not stage.stop(KILL)

    @pytest.mark.parametrize(("of_message", "of_actor", "grace_s"), [(3, 5, 3), (None, 5, 5), (None, None, 10), (0, 5, 0)])
    def test_the_grace_is_the_messages_the_actors_or_the_setting(
        self, stage: Stage, of_message: float | None, of_actor: float | None, grace_s: float
    ) -> None:
        stage.slot.proxy = type("Proxy", (), {"options": {} if of_message is None else {"kill_grace": of_message}})
        options = {} if of_actor is None else {"kill_grace": of_actor}
        stage.slot.policy = stage.slot.policy._replace(options=options)  # type: ignore[union-attr]
        stage.stop(KILL)
        stage.after(grace_s - 0.1)
        assert not stage.process.begun
        stage.after(0.1)
        assert stage.process.begun


class TestSeveralStops:
    def test_an_operators_goes_before_a_limits(self, stage: Stage) -> None:
        stage.stop(TIMEOUT)
        assert stage.stop(KILL)
        assert stage.raised == [TimeLimitExceeded, JobCancelled]
        assert not stage.stop(TIMEOUT)
        assert not stage.stop(KILL)
        assert stage.job.stop == KILL

    def test_what_is_final_stays_so(self, stage: Stage) -> None:
        stage.stop(KILL._replace(means="interrupt"))
        assert stage.stop(MEMORY)
        assert stage.job.stop == KILL
        assert stage.raised == [JobCancelled]

    def test_a_limit_may_go_further_than_another(self, stage: Stage) -> None:
        stage.stop(TIMEOUT)
        stage.after(11)
        assert not stage.process.begun
        assert stage.stop(TIMEOUT._replace(means="kill"))
        stage.after(0)
        assert stage.process.begun

    def test_after_a_shutdown_notice_too(self, stage: Stage) -> None:
        assert interrupt(stage.slot, stage.job, Shutdown)
        assert not interrupt(stage.slot, stage.job, TimeLimitExceeded)
        stage.stop(KILL)
        assert stage.raised == [Shutdown, JobCancelled]

    def test_an_operator_may_ask_for_less_than_the_end(self, stage: Stage) -> None:
        stage.stop(TIMEOUT)
        assert stage.stop(Stop("interrupt", "operator", Shutdown, by="ann"))
        assert stage.raised == [TimeLimitExceeded, Shutdown]
        assert stage.job.stop is not None
        assert not stage.job.stop.is_final

    def test_there_are_never_three(self, stage: Stage) -> None:
        stage.stop(TIMEOUT)
        stage.stop(Stop("interrupt", "operator", Shutdown, by="ann"))
        assert stage.stop(KILL)
        assert stage.job.stop == KILL, "it is final, with whatever exception it goes"
        assert not interrupt(stage.slot, stage.job, JobCancelled, again=True)
        assert len(stage.raised) == 2


class TestIsolated:
    def test_its_child_is_interrupted_then_killed(self, stage: Stage) -> None:
        child = stage.job.child = Child()
        stage.process.in_the_way = "other jobs run here"
        stage.stop(TIMEOUT._replace(means="kill"))
        stage.after(11)
        assert child.got == [TimeLimitExceeded, "kill"]
        assert stage.raised == []
        assert stage.desk.events[-1].consequence == "its process 4711 is killed"
        assert stage.job.rung == "process"

    def test_its_reports_which_come_through_another_process_raise_nothing_here(self, stage: Stage) -> None:
        stage.job.child = Child()
        stage.job.heartbeat()
        stage.stop(KILL)
        stage.job.heartbeat()
        assert stage.job.child.got == [JobCancelled]

    def test_at_its_memory_limit_it_is_killed_at_once(self, stage: Stage) -> None:
        child = stage.job.child = Child()
        stage.stop(MEMORY)
        assert child.got == ["kill"]
        stage.after(11)
        assert child.got == ["kill"]


class TestTheCommand:
    def test_it_begins_and_tells_what_can_follow(self, stage: Stage) -> None:
        stage.process.in_the_way = "nothing starts another"
        asked = {"job_id": "job-1", "by": "ann@desk", "reason": "why not", "force": False}
        assert stage.ladder.kill(asked) == {"run_id": "run-1", "is_new": True, "grace_s": 10.0, "obstacle": "nothing starts another"}
        assert stage.ladder.kill(asked)["is_new"] is False
        assert stage.ladder.kill({**asked, "force": True})["obstacle"] is None
        assert stage.job.stop == Stop("kill", "operator", JobCancelled, by="ann@desk", is_final=True, force=True, detail="why not")

    def test_a_job_that_does_not_run_here_is_refused(self, stage: Stage) -> None:
        with pytest.raises(CommandRefused, match="does not run here"):
            stage.ladder.kill({"job_id": "other"})


def test_a_job_that_is_being_ended_with_its_process_does_not_get_out(stage: Stage) -> None:
    stage.slot.taken = threading.Event()
    thread = threading.Thread(target=settle, args=(stage.slot,), daemon=True)
    thread.start()
    thread.join(0.05)
    assert stage.slot.job is stage.job
    assert not interrupt(stage.slot, stage.job, JobCancelled)
    taken, stage.slot.taken = stage.slot.taken, None
    taken.set()
    thread.join()
    assert stage.slot.job is None
