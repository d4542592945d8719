"""What the gate lets through."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import dramatiq
import pytest
from dramatiq.broker import MessageProxy
from dramatiq.middleware import SkipMessage

from dramatiq_chaperone import records
from dramatiq_chaperone.records import Origin
from dramatiq_chaperone.service import internal_errors
from dramatiq_chaperone.settings import Settings
from dramatiq_chaperone.supervision import admission
from dramatiq_chaperone.supervision.admission import Admission, GiveBack, PutOff, Refused, Verdict
from dramatiq_chaperone.supervision.policy import Policy, policy_of_unknown
from dramatiq_chaperone.supervision.slots import RunningJobs


class Door:
    """An admission, and a message in front of it."""

    def __init__(
        self, *checks: Any, is_supervised: bool = True, deferrer: Any = None, claims: Any = None, options: dict[str, Any] | None = None
    ) -> None:
        running = RunningJobs()
        self.message: Any = dramatiq.Message("default", "work", (), {}, options or {})
        self.proxy = MessageProxy(self.message)
        slot = running.slot()
        if is_supervised:
            slot.message, slot.policy = self.message, policy_of_unknown("work", "default", Settings.load(environ={}))
        self.slot = slot
        self.entries: list[Any] = []
        self.events: list[Any] = []
        recorder: Any = SimpleNamespace(
            origin=Origin("w-1", "host", "boot", 1, 0.0, "worker"), append=self.entries.append, emit=self.events.append
        )
        self.admission = Admission(running, recorder, deferrer, claims)
        self.admission.checks = checks

    def knock(self) -> None:
        self.admission.admit(self.proxy)


def passes(message: Any, policy: Policy) -> Verdict:
    return None


def breaks(message: Any, policy: Policy) -> Verdict:
    raise ValueError("no verdict")


def refuses(message: Any, policy: Policy) -> Verdict:
    return Refused("poison", f"{policy.actor_name} has ended 3 workers")


def test_what_nothing_speaks_against_runs() -> None:
    door = Door(passes, passes)
    door.knock()
    assert not door.proxy.failed


def test_what_is_refused_is_dead_lettered_with_its_reason() -> None:
    door = Door(passes, refuses)
    with pytest.raises(SkipMessage, match="work has ended 3 workers"):
        door.knock()
    assert door.proxy.failed
    assert door.slot.last_end == (door.message.message_id, ("", "work has ended 3 workers", "", "{}"), "poison")


def test_a_check_that_fails_lets_the_message_through() -> None:
    internal_errors.clear()
    door = Door(breaks)
    door.knock()
    assert not door.proxy.failed
    assert internal_errors["gate"] == 1


def test_what_is_not_supervised_is_not_asked_about() -> None:
    Door(refuses, is_supervised=False).knock()


UNTIL = 2_000_000_000.0


def waits(message: Any, policy: Policy) -> Verdict:
    return PutOff(UNTIL, "less than 9 MB are free on /", "")


class Deferrer:
    """Notes what it is asked; answers with *answers*, one after the other."""

    leaves_doubt = False

    def __init__(self, *answers: bool | Exception) -> None:
        self.asked: list[tuple[int, int]] = []
        self._answers = list(answers)

    def contender(self, proxy: Any) -> str | None:
        return None

    def put_off(self, proxy: Any, eta_ms: int, number: int) -> bool:
        self.asked.append((eta_ms, number))
        answer = self._answers.pop(0) if self._answers else True
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_what_is_put_off_is_skipped_and_recorded_as_waiting() -> None:
    door = Door(passes, waits, deferrer=Deferrer(), options={"retries": 2})
    with pytest.raises(SkipMessage, match="less than 9 MB"):
        door.knock()
    assert not door.proxy.failed
    assert door.proxy.options["store_results"] is False
    assert door.slot.message is None, "it is no skipped job"
    (entry,) = [records.Deferred(*each) for each in door.entries]
    assert (entry.kind, entry.job_id, entry.retries, entry.queue, entry.eta) == (20, door.message.message_id, 2, "default", UNTIL)
    (event,) = door.events
    assert (event.job_id, event.reason, event.eta.timestamp()) == (door.message.message_id, "less than 9 MB are free on /", UNTIL)


def test_those_that_wait_for_the_same_stand_in_line() -> None:
    deferrer = Deferrer()
    door = Door(waits, deferrer=deferrer)
    for _ in range(3):
        door.slot.message = door.message
        with pytest.raises(SkipMessage):
            door.knock()
    assert [eta for eta, _ in deferrer.asked] == [UNTIL * 1000, UNTIL * 1000 + 20, UNTIL * 1000 + 40]


def test_the_number_of_times_goes_on_and_the_timeline_has_the_first_the_second_the_fourth() -> None:
    kept = []
    for number in range(9):
        deferrer = Deferrer()
        door = Door(waits, deferrer=deferrer, options={"deferrals": number} if number else {})
        with pytest.raises(SkipMessage):
            door.knock()
        assert [each for _, each in deferrer.asked] == [number + 1]
        if door.events:
            kept.append(number + 1)
    assert kept == [1, 2, 4, 8]


def test_a_message_that_is_not_ours_any_more_is_skipped_without_a_word() -> None:
    door = Door(waits, deferrer=Deferrer(False))
    with pytest.raises(SkipMessage):
        door.knock()
    assert door.entries == door.events == []
    assert door.slot.message is None


def test_a_broker_that_is_away_for_a_moment_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "RETRY_AFTER_S", (0.0, 0.0))
    internal_errors.clear()
    door = Door(waits, deferrer=Deferrer(OSError(), OSError(), True))
    with pytest.raises(SkipMessage):
        door.knock()
    assert len(door.entries) == 1
    assert internal_errors.pop("deferral") == 2
    assert door.slot.putting_off is None


def test_a_broker_that_stays_away_lets_the_message_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "RETRY_AFTER_S", (0.0,))
    internal_errors.clear()
    door = Door(waits, deferrer=Deferrer(OSError(), OSError()))
    door.knock()
    assert door.slot.message is door.message
    assert "store_results" not in door.proxy.options
    assert internal_errors.pop("deferral") == 2


def test_a_broker_that_cannot_put_off_lets_it_run() -> None:
    Door(waits).knock()


class Rabbit(Deferrer):
    """A deferrer that may leave two copies."""

    leaves_doubt = True
    name: str | None = "copy-1"

    def contender(self, proxy: Any) -> str | None:
        return self.name


class Claims:
    def __init__(self, *, allows: bool) -> None:
        self.allows, self.asked, self.prepared = allows, [], 0  # type: ignore[var-annotated]

    def prepare(self) -> None:
        self.prepared += 1

    def claim(self, job_id: str, retries: int, holder: str) -> bool:
        self.asked.append((job_id, retries, holder))
        return self.allows


def test_a_copy_that_may_run_runs() -> None:
    claims = Claims(allows=True)
    door = Door(passes, deferrer=Rabbit(), claims=claims, options={"deferrals": 2, "retries": 1})
    door.knock()
    assert claims.asked == [(door.message.message_id, 1, "copy-1")]


def test_a_copy_that_comes_late_is_dropped_without_a_word() -> None:
    door = Door(passes, deferrer=Rabbit(), claims=Claims(allows=False), options={"deferrals": 2})
    with pytest.raises(SkipMessage, match="another copy"):
        door.knock()
    assert not door.proxy.failed
    assert door.proxy.options["store_results"] is False
    assert door.slot.message is None
    assert door.entries == door.events == []


def test_nobody_is_asked_about_the_only_copy() -> None:
    claims, deferrer = Claims(allows=False), Rabbit()
    deferrer.name = None
    Door(passes, deferrer=deferrer, claims=claims).knock()
    assert claims.asked == []


def test_nor_where_nothing_is_ever_put_off() -> None:
    claims = Claims(allows=False)
    door = Door(passes, deferrer=Rabbit(), claims=claims)
    door.admission.is_in_use = lambda: False
    door.knock()
    assert claims.asked == []


def test_what_waits_claims_nothing_but_will() -> None:
    claims = Claims(allows=True)
    with pytest.raises(SkipMessage):
        Door(waits, deferrer=Rabbit(), claims=claims).knock()
    assert (claims.asked, claims.prepared) == ([], 1)


def test_a_message_whose_copy_may_be_there_all_the_same_claims_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "RETRY_AFTER_S", ())
    internal_errors.clear()
    claims, deferrer = Claims(allows=True), Rabbit(OSError())
    deferrer.name = None
    door = Door(waits, deferrer=deferrer, claims=claims)
    door.knock()
    assert claims.asked == [(door.message.message_id, 0, "original")]
    assert internal_errors.pop("deferral") == 1


class TestSuspects:
    """What is told of a suspect's beginning is charged with the death of its worker: it is told last of all."""

    @staticmethod
    def suspects(door: Door) -> list[str]:
        begun: list[str] = []
        door.slot.suspect = door.message.message_id
        door.admission.begin = lambda slot: begun.append(slot.message.message_id)
        return begun

    def test_one_that_runs_begins(self) -> None:
        door = Door(passes, deferrer=Rabbit(), claims=Claims(allows=True))
        begun = self.suspects(door)
        door.knock()
        assert begun == [door.message.message_id]

    @pytest.mark.parametrize(("check", "allows"), [(waits, True), (refuses, True), (passes, False)])
    def test_one_that_does_not_run_does_not(self, check: Any, allows: bool) -> None:
        door = Door(check, deferrer=Rabbit(), claims=Claims(allows=allows), options={"deferrals": 1})
        begun = self.suspects(door)
        with pytest.raises(SkipMessage):
            door.knock()
        assert begun == []

    def test_one_that_nobody_can_be_told_of_runs_all_the_same(self) -> None:
        internal_errors.clear()
        door = Door(passes)
        self.suspects(door)
        door.admission.begin = lambda slot: 1 / 0  # type: ignore[assignment, return-value]
        door.knock()
        assert internal_errors.pop("gate") == 1


def test_dramatiqs_warning_of_a_skipped_message_is_left_out_for_one_that_waits() -> None:
    door = Door(waits, deferrer=Deferrer())
    record = logging.LogRecord("w", logging.WARNING, "", 1, "Message %s was skipped.", (door.proxy,), None)
    assert admission.is_news(record)
    with pytest.raises(SkipMessage):
        door.knock()
    assert not admission.is_news(record)
    assert admission.is_news(logging.LogRecord("w", logging.INFO, "", 1, "plain", (), None))


def goes_back(message: Any, policy: Policy) -> Verdict:
    return GiveBack("everything waits for payments", "payments")


class Pausing:
    def __init__(self, *, is_given: bool = True) -> None:
        self.paused: list[str] = []
        self.is_given = is_given

    def pause(self, *queues: str, by: str) -> None:
        self.paused += [f"{queue} by {by}" for queue in queues]

    def give_back(self, message: Any) -> bool:
        return self.is_given


def test_what_is_given_back_pauses_its_queue_and_leaves_no_trace() -> None:
    door = Door(goes_back, refuses)
    door.admission.pauses = pausing = Pausing()
    with pytest.raises(SkipMessage, match="everything waits for payments"):
        door.knock()
    assert pausing.paused == ["default by payments"]
    assert not door.proxy.failed
    assert door.proxy.options["store_results"] is False
    assert door.entries == door.events == []


@pytest.mark.parametrize("pausing", [None, Pausing(is_given=False)])
def test_where_nothing_can_be_given_back_the_next_check_has_its_say(pausing: Any) -> None:
    door = Door(goes_back, waits, deferrer=Deferrer())
    door.admission.pauses = pausing
    with pytest.raises(SkipMessage, match="less than 9 MB"):
        door.knock()


class Woken:
    """What a process knows that was stopped, and took its messages for taken when it woke up."""

    doubtful: tuple[str, ...] = ("k1",)
    due_at = 0.0

    def __init__(self, *, is_certain: bool) -> None:
        self.is_certain = is_certain

    def has_lost_unbegun(self, message: Any) -> bool:
        return True


@pytest.mark.parametrize(
    ("is_certain", "pausing", "is_to_run"),
    [
        (True, None, False),
        (True, Pausing(is_given=False), False),
        (False, Pausing(), False),
        (False, Pausing(is_given=False), True),
        (False, None, True),
    ],
    ids=["the broker says so", "it does, whatever else", "given back", "cannot be given back", "nobody can give it back"],
)
def test_what_may_be_ours_all_the_same_is_given_back_or_runs(*, is_certain: bool, pausing: Any, is_to_run: bool) -> None:
    door = Door(passes)
    door.admission.pauses = pausing
    door.admission.gaps = Woken(is_certain=is_certain)  # type: ignore[assignment]
    if is_to_run:
        door.knock()
        assert door.slot.message is door.message
    else:
        with pytest.raises(SkipMessage, match="another worker has the message"):
            door.knock()
        assert door.slot.message is None
        assert door.entries == door.events == []
