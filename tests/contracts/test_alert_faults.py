"""What goes wrong on an alert's way, on every database: nothing is lost, or holds up the rest, or is called well that is not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dramatiq_chaperone import alert_rule, events
from dramatiq_chaperone.alerts import Finding, alert_channel, channels, messages, rules, sender
from dramatiq_chaperone.alerts.dispatcher import BACKOFF_S
from dramatiq_chaperone.errors import StoreUnavailable
from dramatiq_chaperone.store import Store, deliveries
from dramatiq_chaperone.store import alerts as rows
from dramatiq_chaperone.store.database import DataRefused
from tests.contracts.alerting import AT, Post, Stage, closed, dead, opened, post, queue_read, stage, stuck  # noqa: F401 - fixtures
from tests.contracts.conftest import NOW, Process, booted


def interrupt(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, error: BaseException) -> None:
    """The next call of it fails."""
    real = getattr(where, name)
    errors = iter([error])

    def fails(*arguments: Any, **more: Any) -> Any:
        found = next(errors, None)
        if found is not None:
            raise found
        return real(*arguments, **more)

    monkeypatch.setattr(where, name, fails)


@pytest.mark.parametrize("where", ["flush", "deliveries"])
def test_an_error_of_the_store_on_the_way_loses_nothing(
    stage: Callable[..., Stage], post: Post, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    it = stage(alert_group_wait=0)
    it.passes()
    if where == "flush":
        interrupt(monkeypatch, rows, "groups", StoreUnavailable("gone"))
    else:
        interrupt(monkeypatch, deliveries, "finish", StoreUnavailable("gone"))
    it.happens(dead())
    with pytest.raises(StoreUnavailable):
        it.passes()
    it.passes()
    it.passes(1)
    assert len(post.sent) == 1
    assert [each.result for each in deliveries.of_alert(it.store, it.alerts()[0]["id"])] == ["sent"]


def test_what_was_claimed_and_not_sent_is_sent(stage: Callable[..., Stage], post: Post) -> None:
    """The commit of the claim arrived, and its answer did not."""
    it = stage(alert_group_wait=0)
    it.passes()
    it.happens(dead())
    assert it.alerting._begun is not None
    send = it.alerting._begun.senders.send
    it.alerting._begun.senders.send = lambda *arguments: None  # type: ignore[method-assign]
    it.alerting.turn(it.store, it.lease)
    it.alerting._begun.senders.send = send  # type: ignore[method-assign]
    it.passes(1)
    assert len(post.sent) == 1
    assert "may be a repeat" in post.last


def test_a_message_that_cannot_be_written_is_tried_again(stage: Callable[..., Stage], post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    it = stage(alert_group_wait=0)
    interrupt(monkeypatch, messages, "make", ZeroDivisionError())
    it.happens(dead("j1"))
    it.passes()
    assert post.sent == []
    it.passes(BACKOFF_S[0] + 1)
    assert len(post.sent) == 1


def odd_rules() -> None:
    @alert_rule(events.CircuitBreakerOpened)
    def generator(event: events.CircuitBreakerOpened) -> Iterator[Finding]:
        yield Finding("odd", "1", event.service, labels={"queue": 5}, details=[("a", 1, 2), ("b", 2)])  # type: ignore[dict-item, list-item]
        raise ZeroDivisionError

    @alert_rule(events.CircuitBreakerOpened)
    def number(event: events.Event) -> int:
        return 7

    @alert_rule(events.CircuitBreakerOpened)
    def long(event: events.CircuitBreakerOpened) -> Finding:
        return Finding("x" * 100, "key\0", "sub\0ject" * 100, evidence="\ud800\0", severity="terrible")


def test_whatever_a_rule_gives_the_others_are_told(stage: Callable[..., Stage], post: Post) -> None:
    odd_rules()
    try:
        it = stage(alert_group_wait=0)
        it.happens(opened())
        it.passes()
        it.passes(1)
        said = " ".join(post.titles)
        assert "Circuit Breaker Opened" in said
        assert "Xxxx" in said
        it.happens(dead())
        it.passes(300)
        assert "Job Failed" in post.titles[-1]
    finally:
        rules._own.clear()


def test_an_event_whose_alert_the_database_refuses_stops_no_other(
    stage: Callable[..., Stage], post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = stage(alert_group_wait=0)
    it.passes()
    real = rows.raise_new

    def refuses(store: Store, facts: Any, at: float) -> str:
        if facts["subject"] == "bad":
            raise DataRefused("too odd")
        return real(store, facts, at)

    monkeypatch.setattr(rows, "raise_new", refuses)
    it.happens(dead("j1", actor="bad"), dead("j2", actor="good"))
    it.passes()
    assert post.titles == ["[Chaperone Alert] Job Failed: good"]
    assert rows.to_judge(it.store, limit=10) == []


def test_a_message_that_is_refused_holds_up_no_other(stage: Callable[..., Stage], post: Post) -> None:
    it = stage(alert_group_wait=0, alerts={"routes": [{"group_by": ["actor"]}]})
    post.answer = lambda message: False if "refused" in message.title else None
    it.happens(dead("j1", actor="refused"))
    it.passes()
    it.happens(dead("j2", actor="good"))
    it.passes(1)
    assert post.titles == ["[Chaperone Alert] Job Failed: good"]


def test_a_channel_that_hangs_leaves_what_comes_to_its_fallback(
    stage: Callable[..., Stage], post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    spare, ends = Post(), threading.Event()
    alert_channel("spare")(spare)
    try:
        alerts = {"channels": {"post": {"fallback": "spare"}}, "routes": [{"channels": ["post"], "group_by": ["actor"]}]}
        it = stage(alert_group_wait=0, alert_channels=[], alerts=alerts)
        it.passes()
        monkeypatch.setattr(sender, "GIVE_UP_S", 0.05)
        post.answer = lambda message: ends.wait(20)
        it.happens(dead("j1", actor="first"))
        it.given_up()
        for wait_s in (*BACKOFF_S, 1):
            it.passes(wait_s + 1)
        it.happens(dead("j2", actor="second"))
        for _ in range(3):
            it.passes(1)
        assert [title.rpartition(" ")[2] for title in spare.titles] == ["first", "second"]
        assert "may be a repeat" in spare.sent[0].text("text")
    finally:
        ends.set()
        channels._registered.pop("spare")


def test_a_thousand_messages_that_one_channel_does_not_take_keep_no_other_from_its_own(stage: Callable[..., Stage], post: Post) -> None:
    it = stage(alert_group_wait=0, alert_channels=["post", "log"], alerts={"routes": [{"channels": ["post"]}]})
    it.happens(dead())
    it.passes()
    key = it.alerts()[0]["id"]

    def fill() -> None:
        for _ in range(1000):
            deliveries.add(it.store, "log", [(key, "firing")], NOW - 100, route="r", notice="new", next_at=it.now + 6000)

    it.store.transact(fill)
    it.happens(dead("j2"))
    it.passes(400)
    assert len(post.sent) == 2


def test_the_end_of_an_incident_is_no_flood_and_does_not_close_another(stage: Callable[..., Stage], post: Post) -> None:
    it = stage(alert_group_wait=0, alert_group_interval=600, alerts={"limits": {"default": 0}, "channels": {"post": {"limit": 1}}})
    it.passes()
    assert it.alerting._begun is not None
    it.alerting._begun._channels.by_name["post"].is_on_call = True
    it.happens(*(opened(f"s{number}") for number in range(5)))
    for _ in range(6):
        it.passes(1)
    assert len(post.sent) == 5
    it.happens(*(closed(f"s{number}") for number in range(5)))
    it.passes(1)
    it.happens(opened("s0"))
    it.passes(600)
    for _ in range(6):
        it.passes(1)
    later = post.titles[5:]
    assert sum("Resolved" in title for title in later) == 4, "the fifth is open again"
    assert sum("Resolved" not in title for title in later) == 1


def test_a_job_that_stays_stuck_for_days_is_not_called_well(stage: Callable[..., Stage], post: Post) -> None:
    it = stage(alert_group_wait=0, alert_repeat_interval=0)
    it.open()
    it.happens(stuck(), events.WorkerLost(worker_id="w", host="far", lost_at=AT, silent_for=30.0))
    it.passes()
    it.passes(3 * 86_400)
    it.passes(600)
    assert [title for title in post.titles if "Resolved" in title] == []
    assert {each["type"]: (each["status"], each["suppressed"]) for each in it.alerts()} == {
        "job_stuck": ("firing", None),
        "worker_lost": ("resolved", "forgotten"),
    }


def test_a_lost_worker_is_over_once_another_has_started_on_its_host(stage: Callable[..., Stage], post: Post) -> None:
    it = stage(alert_group_wait=0, alert_group_interval=0)
    Process(it.store, "host-1-new").writes(booted(at=NOW - 5))
    it.happens(events.WorkerLost(worker_id="host-1-old", host="host", lost_at=AT, silent_for=30.0))
    for _ in range(3):
        it.passes(5)
    assert it.alerts()[0]["status"] == "resolved"


def test_what_is_not_known_is_not_over(stage: Callable[..., Stage], post: Post) -> None:
    """The broker is away: nobody has read how long its queues are."""
    it = stage(alert_queue_length=10, alert_group_wait=0, alert_group_interval=0, alerts={"thresholds": {"no_worker": 0}})
    worker = Process(it.store, "host-1-q")
    for _ in range(6):
        worker.writes(queue_read(11, it.now))
        it.passes(15)
    assert len(post.sent) == 1
    for _ in range(20):
        it.passes(15)
    assert len(post.sent) == 1


def test_all_failing_is_unhealthy_however_long_it_lasts(stage: Callable[..., Stage], post: Post) -> None:
    it = stage(alert_group_wait=0)
    post.answer = lambda message: False
    it.happens(dead())
    it.passes()
    for _ in range(20):
        it.passes(600)
        found = deliveries.statistics(it.store, since=it.now - 3600, now=it.now)
        assert deliveries.health(found)["healthy"] is False
        assert deliveries.fail(found)
