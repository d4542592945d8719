"""Which jobs wait for a service, and which queues are paused instead."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import dramatiq
import pytest
from dramatiq.broker import MessageProxy
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import SkipMessage

from dramatiq_chaperone.errors import SettingsError
from dramatiq_chaperone.service import internal_errors
from dramatiq_chaperone.settings import Settings
from dramatiq_chaperone.supervision.admission import Admission, GiveBack, PutOff, Refused
from dramatiq_chaperone.supervision.needs import BY, Needs
from dramatiq_chaperone.supervision.policy import OPTIONS, Policy, policy_of, services_of
from dramatiq_chaperone.supervision.sending import check_options
from dramatiq_chaperone.supervision.slots import RunningJobs


class Breakers:
    """Waits as the test wants; *refusals* are found out only by asking."""

    def __init__(self) -> None:
        self.waits: dict[str, float] = {}
        self.refusals: dict[str, float] = {}
        self.log: list[Any] = []

    def prepare(self, services: Sequence[str]) -> None:
        self.log.append(("prepare", *services))

    def wait_s(self, service: str) -> float:
        return self.waits.get(service, 0.0)

    def is_open(self, service: str) -> bool:
        return service in self.waits

    def admit(self, service: str) -> Any:
        return self.refusals.get(service, service)

    def dismiss(self, held: Sequence[Any]) -> None:
        self.log.append(("dismiss", *held))

    def hold(self, held: Sequence[Any]) -> None:
        self.log.append(("hold", *held))

    def settle(self, held: Sequence[Any], error: BaseException | None) -> None:
        self.log.append(("settle", error, *held))


class Pausing:
    def __init__(self) -> None:
        self.paused: dict[str, frozenset[str]] = {}
        self.is_given = True

    def pause(self, *queues: str, by: str) -> None:
        self.paused |= {queue: frozenset({by}) for queue in queues}

    def resume(self, *queues: str, by: str) -> None:
        for queue in queues:
            del self.paused[queue]

    def give_back(self, message: Any) -> bool:
        return self.is_given


class Desk:
    """Actors by name with the services that they need, in one queue."""

    def __init__(self, *, has_pausing: bool = False, **actors: Any) -> None:
        self.broker = StubBroker(middleware=[])
        self.broker.actor_options |= OPTIONS
        for name, needed in actors.items():
            options = {} if needed is None else {"breaker": needed}
            dramatiq.actor(lambda: None, broker=self.broker, actor_name=name, **options)
        self.breakers, self.running, self.pausing = Breakers(), RunningJobs(), Pausing() if has_pausing else None
        self.loads = 0
        settings = Settings.load(environ={})
        self._policies = {name: policy_of(actor, settings) for name, actor in self.broker.actors.items()}
        self.needs = Needs(self.running, self._load, lambda name, queue: self._policies[name], self.broker.actors.values, self.pausing)
        self.slot = self.running.slot()

    def _load(self) -> Breakers:
        self.loads += 1
        return self.breakers

    def policy(self, name: str) -> Policy:
        return self._policies[name]

    def message(self, name: str, **options: Any) -> Any:
        return dramatiq.Message("default", name, (), {}, options)

    def asks(self, name: str, **options: Any) -> Any:
        return self.needs(self.message(name, **options), self.policy(name))


@pytest.mark.parametrize(
    ("value", "services"),
    [(None, ()), ("", ()), ([], ()), ("a", ("a",)), (["a", "b", "a"], ("a", "b")), (("a",), ("a",))],
)
def test_what_the_option_names(value: Any, services: tuple[str, ...]) -> None:
    assert services_of(value) == services


@pytest.mark.parametrize("value", ["", " \n", "x" * 192, 5, True, {"a": 1}, [""], ["a", 3], [["a"]]])
def test_what_names_no_service_is_refused(value: Any) -> None:
    with pytest.raises(SettingsError, match="name of a service") as caught:
        check_options("actor pay", {"breaker": value})
    assert (caught.value.field, caught.value.value) == ("breaker", value)


@pytest.mark.parametrize("value", [None, [], "payments", ["a", "b"], ("a",)])
def test_what_names_services_is_taken(value: Any) -> None:
    check_options("actor pay", {"breaker": value})


def test_without_the_option_no_breaker_is_made() -> None:
    desk = Desk(work=None)
    assert desk.asks("work") is None
    desk.needs.turn()
    assert desk.needs.open_for(SimpleNamespace(message=desk.message("work"))) == ()  # type: ignore[arg-type]
    assert (desk.loads, desk.needs.is_in_use, desk.slot.held) == (0, False, None)


def test_a_job_that_is_let_through_holds_something_of_each() -> None:
    desk = Desk(pay=["payments", "mail"])
    assert desk.needs.is_in_use
    assert desk.asks("pay") is None
    assert desk.slot.held == ("payments", "mail")


def test_it_is_put_off_for_the_first_that_is_open() -> None:
    desk = Desk(pay=["payments", "mail"], other=None)
    desk.breakers.waits = {"mail": 30.0}
    verdict = desk.asks("pay")
    assert isinstance(verdict, PutOff)
    assert (verdict.reason, verdict.service) == ("waiting for mail", "mail")
    assert desk.slot.held is None
    assert desk.breakers.log == []


def test_a_permit_is_given_back_where_another_is_not_to_be_had() -> None:
    desk = Desk(pay=["payments", "mail"], other=None)
    desk.breakers.refusals = {"mail": 1.0}
    assert isinstance(desk.asks("pay"), PutOff)
    assert desk.breakers.log == [("dismiss", "payments")]


def test_a_message_goes_before_its_actor() -> None:
    desk = Desk(pay="payments", other=None)
    desk.breakers.waits = {"payments": 9.0}
    assert desk.asks("pay", breaker=None) is None
    assert desk.asks("pay", breaker=["mail"]) is None
    assert isinstance(desk.asks("other", breaker="payments"), PutOff)


class TestQueues:
    def test_one_in_which_everything_waits_is_paused_until_something_does_not(self) -> None:
        desk = Desk(has_pausing=True, pay="payments", mail=["mail", "payments"])
        assert desk.pausing is not None
        desk.breakers.waits = {"payments": 9.0}
        verdict = desk.asks("pay")
        assert isinstance(verdict, GiveBack)
        assert verdict.by == BY
        desk.pausing.pause("default", by=BY)
        desk.needs.turn()
        assert desk.pausing.paused
        desk.breakers.waits = {}
        desk.needs.turn()
        assert desk.pausing.paused == {}

    @pytest.mark.parametrize("other", [None, "mail"])
    def test_one_with_something_to_do_is_not(self, other: str | None) -> None:
        desk = Desk(has_pausing=True, pay="payments", other=other)
        desk.breakers.waits = {"payments": 9.0}
        assert isinstance(desk.asks("pay"), PutOff)

    def test_one_whose_trials_are_taken_is(self) -> None:
        desk = Desk(has_pausing=True, pay="payments")
        desk.breakers.refusals = {"payments": 1.0}
        assert isinstance(desk.asks("pay"), GiveBack)

    def test_what_others_have_paused_stays_so(self) -> None:
        desk = Desk(has_pausing=True, pay="payments")
        assert desk.pausing is not None
        desk.pausing.pause("default", by="operator")
        desk.needs.turn()
        assert desk.pausing.paused == {"default": frozenset({"operator"})}

    def test_none_stays_paused_because_nobody_can_tell(self, monkeypatch: pytest.MonkeyPatch) -> None:
        desk = Desk(has_pausing=True, pay="payments")
        assert desk.pausing is not None
        desk.pausing.pause("default", by=BY)
        monkeypatch.setattr(desk.breakers, "wait_s", lambda service: 1 / 0)
        before = internal_errors["breakers"]
        desk.needs.turn()
        assert desk.pausing.paused == {}
        assert internal_errors["breakers"] == before + 1
        internal_errors["breakers"] = before


class TestAtTheGate:
    def admission(self, desk: Desk, *more: Any) -> tuple[Admission, Any]:
        message = desk.message("pay")
        desk.slot.message, desk.slot.policy = message, desk.policy("pay")
        made = Admission(desk.running)
        made.checks, made.dismiss, made.pauses = (desk.needs, *more), desk.needs.dismiss, desk.pausing
        return made, MessageProxy(message)

    def test_what_is_refused_after_all_gives_its_permit_back(self) -> None:
        desk = Desk(pay="payments")
        made, proxy = self.admission(desk, lambda message, policy: Refused("poison", "no"))
        with pytest.raises(SkipMessage):
            made.admit(proxy)
        assert (desk.slot.held, desk.breakers.log) == (None, [("dismiss", "payments")])

    def test_what_was_left_over_is_given_back_with_the_next_message(self) -> None:
        desk = Desk(pay="payments")
        made, proxy = self.admission(desk)
        desk.slot.held = ("mail",)
        made.admit(proxy)
        assert (desk.slot.held, desk.breakers.log) == (("payments",), [("dismiss", "mail")])

    def test_what_cannot_be_given_back_is_put_off(self) -> None:
        desk = Desk(has_pausing=True, pay="payments")
        assert desk.pausing is not None
        desk.pausing.is_given = False
        desk.breakers.waits = {"payments": 9.0}
        made, proxy = self.admission(desk)
        put: list[Any] = []
        made._deferrer = SimpleNamespace(put_off=lambda *asked: put.append(asked) or True)  # type: ignore[assignment]
        with pytest.raises(SkipMessage, match="waiting for payments"):
            made.admit(proxy)
        assert len(put) == 1


def test_a_running_job_knows_what_is_open() -> None:
    desk = Desk(pay=["payments", "mail"])
    desk.breakers.waits = {"mail": 1.0}
    job: Any = SimpleNamespace(message=desk.message("pay"), actor_name="pay", queue="default")
    assert desk.needs.open_for(job) == ("mail",)
    job.message.options["breaker"] = "payments"
    assert desk.needs.open_for(job) == ()


def test_the_services_of_all_actors_are_prepared_for_once() -> None:
    desk = Desk(pay=["payments", "mail"], send="mail")
    desk.needs.prepare()
    assert desk.breakers.log == [("prepare", "payments", "mail")], "at the boot"
    desk.needs.turn()
    assert desk.breakers.log == [("prepare", "payments", "mail")]
    late = Desk(pay="payments")
    late.needs.turn()
    late.needs.turn()
    assert late.breakers.log == [("prepare", "payments")], "at the first turn of a worker that could not begin at its boot"


def test_a_worker_that_needs_nothing_prepares_for_nothing() -> None:
    desk = Desk(work=None)
    desk.needs.prepare()
    assert (desk.loads, desk.breakers.log) == (0, [])
