"""The life of a group, in any order of events: told once, its end once, and never silent for longer than its route says."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dramatiq_chaperone.alerts.kinds import Alert
from dramatiq_chaperone.alerts.lifecycle import FIRING, RESOLVED, Group, settled, turn
from dramatiq_chaperone.alerts.routing import Route

ROUTE = Route(
    name="all", match={}, channels=("post",), group_by=("type",), group_wait=30, group_limit=0, group_interval=300, repeat=(3600.0,),
    escalate_after=0, escalate_to=(), goes_on=False,
)  # fmt: skip


def alert(key: str, **changed: Any) -> Alert:
    facts: dict[str, Any] = {
        "id": key,
        "type": "circuit_breaker",
        "subject": key,
        "severity": "error",
        "priority": "normal",
        "status": "firing",
        "fingerprint": key,
        "is_point": False,
        "labels": {},
        "evidence": {"key": key},
        "number": 1,
        "first_seen_at": 0.0,
        "last_seen_at": 0.0,
    }
    return Alert(**{**facts, **changed})


@dataclass
class World:
    """A group, its alerts, and what people were told."""

    route: Route = ROUTE
    now: float = 1000.0
    group: Group = field(default_factory=Group)
    alerts: dict[str, Alert] = field(default_factory=dict)
    muted: dict[str, str] = field(default_factory=dict)
    #: (when, notice, fires, is over).
    messages: list[tuple[float, str, tuple[str, ...], tuple[str, ...]]] = field(default_factory=list)
    quiet: dict[str, str] = field(default_factory=dict)
    due_at: float | None = None

    def turn(self) -> None:
        found = turn(self.route, self.group, list(self.alerts.values()), self.muted, self.now)
        if found.firing or found.resolved:
            self.messages.append((self.now, found.notice, tuple(it.id for it in found.firing), tuple(it.id for it in found.resolved)))
        self.quiet.update(found.over)
        told = found.group.told if found.group else {}
        for key, each in list(self.alerts.items()):
            if key in found.over or settled(each, [told]):
                del self.alerts[key]
        self.group, self.due_at = found.group or Group(), found.due_at

    def passes(self, seconds: float) -> None:
        """Time passes; the group has its turn whenever it is due."""
        until = self.now + seconds
        while self.due_at is not None and self.due_at <= until:
            self.now = max(self.now, self.due_at)
            self.turn()
        self.now = until
        self.turn()


def test_nobody_is_told_before_the_wait_is_over_and_what_came_meanwhile_goes_with_it() -> None:
    it = World()
    it.alerts["a"] = alert("a")
    it.turn()
    it.passes(20)
    it.alerts["b"] = alert("b")
    it.passes(9)
    assert it.messages == []
    it.passes(1)
    assert it.messages == [(1030.0, "new", ("a", "b"), ())]


def test_a_critical_one_takes_the_others_along_at_once() -> None:
    it = World()
    it.alerts["a"] = alert("a")
    it.turn()
    it.alerts["b"] = alert("b", severity="critical")
    it.turn()
    assert it.messages == [(1000.0, "new", ("a", "b"), ())]


def test_a_full_group_does_not_wait() -> None:
    it = World(ROUTE._replace(group_limit=3))
    for key in "ab":
        it.alerts[key] = alert(key)
    it.turn()
    assert it.messages == []
    it.alerts["c"] = alert("c")
    it.turn()
    assert it.messages == [(1000.0, "new", ("a", "b", "c"), ())]


def test_news_of_a_group_keep_their_distance() -> None:
    it = World()
    it.alerts["a"] = alert("a")
    it.turn()
    it.passes(30)
    it.alerts["b"] = alert("b")
    it.passes(200)
    assert len(it.messages) == 1
    it.passes(100)
    assert it.messages[1] == (1330.0, "new", ("b",), ())


def test_repeats_have_their_distance_and_end_with_the_alert() -> None:
    it = World()
    it.alerts["a"] = alert("a")
    it.turn()
    it.passes(30 + 3 * 3600)
    assert [at for at, *_ in it.messages] == [1030.0, 4630.0, 8230.0, 11830.0]
    it.alerts["a"] = alert("a", status="resolved")
    it.passes(400)
    assert it.messages[-1][1:] == ("new", (), ("a",))
    it.passes(100_000)
    assert len(it.messages) == 5


def test_an_escalation_and_news_are_two_messages() -> None:
    it = World(ROUTE._replace(group_wait=0, escalate_after=120, escalate_to=("boss",)))
    it.alerts["a"] = alert("a")
    it.turn()
    it.passes(6)
    it.alerts["b"] = alert("b")
    it.passes(400)
    assert it.messages == [
        (1000.0, "new", ("a",), ()),
        (1120.0, "escalation", ("a",), ()),
        (1300.0, "new", ("b",), ()),
    ]


def test_news_do_not_put_off_the_repeats_of_the_others() -> None:
    it = World(ROUTE._replace(group_wait=0))
    it.alerts["old"] = alert("old")
    it.turn()
    for number in range(14):
        it.passes(300)
        it.alerts[f"{number}"] = alert(f"{number}")
    repeats = [at for at, notice, firing, _ in it.messages if notice == "repeat" and "old" in firing]
    assert repeats
    assert repeats[0] - 1000.0 <= 3600 + 600


def test_what_is_over_while_it_waits_does_not_take_the_next_along() -> None:
    it = World()
    it.alerts["a"] = alert("a")
    it.turn()
    it.passes(20)
    it.alerts["a"] = alert("a", status="resolved")
    it.passes(5)
    it.alerts["b"] = alert("b")
    it.turn()
    it.passes(29)
    assert it.messages == []
    it.passes(2)
    assert len(it.messages) == 1


STEPS = st.lists(
    st.tuples(st.sampled_from(["raise", "point", "resolve", "mute", "unmute", "ack", "wait"]), st.integers(0, 4), st.floats(0.0, 2000.0)),
    max_size=40,
)


@given(STEPS, st.sampled_from([0.0, 30.0]), st.sampled_from([0, 2]), st.sampled_from([0.0, 300.0]))
def test_each_is_told_once_and_its_end_once(steps: list[tuple[str, int, float]], wait: float, limit: int, interval: float) -> None:
    it = World(ROUTE._replace(group_wait=wait, group_limit=limit, group_interval=interval))
    every: dict[str, str] = {}
    number = 0
    for step, which, seconds in steps:
        known = sorted(it.alerts)
        chosen = known[which % len(known)] if known else None
        if step in {"raise", "point"}:
            number += 1
            key = f"{number:03}"
            is_point = step == "point"
            it.alerts[key] = alert(key, is_point=is_point, status="happened" if is_point else "firing")
            every[key] = step
        elif step == "resolve" and chosen and it.alerts[chosen].is_firing:
            it.alerts[chosen] = it.alerts[chosen]._replace(status="resolved")
        elif step == "mute" and chosen:
            it.muted[chosen] = "silenced"
        elif step == "unmute":
            it.muted.clear()
        elif step == "ack" and chosen:
            it.alerts[chosen] = it.alerts[chosen]._replace(acknowledged_at=it.now)
        it.turn() if step != "wait" else it.passes(seconds)
    it.muted.clear()
    for key, each in it.alerts.items():
        if each.is_firing:
            it.alerts[key] = each._replace(status="resolved")
    it.passes(10_000)
    assert it.alerts == {}, "nothing waits for ever"
    firsts = [key for _, notice, firing, _ in it.messages if notice == "new" for key in firing]
    ends = [key for _, _, _, over in it.messages for key in over]
    assert len(firsts) == len(set(firsts))
    assert len(ends) == len(set(ends))
    assert set(firsts) | set(it.quiet) == set(every), "told, or on record why not"
    assert not set(firsts) & set(it.quiet)
    assert set(ends) == {key for key in firsts if every[key] == "raise"}, "the end is told of what was told, and of nothing else"
    if interval:
        times = [at for at, notice, _, _ in it.messages]
        assert all(later - earlier > interval - 0.001 or limit for earlier, later in pairwise(times))


def test_settled_is_what_all_groups_know() -> None:
    over = alert("a", status="resolved")
    assert settled(over, [{"a": RESOLVED}, {"a": RESOLVED}])
    assert not settled(over, [{"a": RESOLVED}, {"a": FIRING}])
    assert not settled(alert("a"), [{"a": FIRING}])
    assert settled(alert("a", is_point=True, status="happened"), [{"a": FIRING}])
    assert not settled(alert("a", is_point=True, status="happened"), [{}])
