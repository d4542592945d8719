"""Alerting on every database: an event becomes an alert, an alert one message, its end another; and nothing is lost or told twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from dramatiq_chaperone import alert_rule, events, records
from dramatiq_chaperone.alerts import Finding, alert_channel, channels, rules
from dramatiq_chaperone.alerts.dispatcher import BACKOFF_S
from dramatiq_chaperone.circuits import waiting_for
from dramatiq_chaperone.store import alerts as rows
from dramatiq_chaperone.store import deliveries, retention
from dramatiq_chaperone.store.leases import LeaseLost
from tests.contracts.alerting import AT, Post, Stage, closed, dead, opened, post, queue_read, stage, stuck  # noqa: F401 - fixtures
from tests.contracts.conftest import NOW, Process, enqueued, origin, started


def test_an_alert_is_told_once_after_its_wait_and_again_when_it_is_over(stage: Callable[..., Stage], post: Post) -> None:
    it = stage()
    it.open()
    it.happens(stuck(diagnosis="blocked in fetch (app.py:7)", evidence={"stack": ["File app.py, line 7"]}))
    it.passes(1)
    it.passes(28)
    assert post.sent == []
    it.passes(2)
    assert post.titles == ["[Chaperone Alert] Job Stuck: import_feed"]
    assert post.last.splitlines()[0] == "Job Stuck: import_feed"
    for part in ("Job: j1", "Stuck for: 30 min", "Diagnosis: blocked in fetch (app.py:7)", "File app.py, line 7", "infinite loop"):
        assert part in post.last
    it.passes(3600)
    assert len(post.sent) == 1
    it.end()
    it.passes(5)
    it.passes(5)
    assert post.titles[1:] == ["[Chaperone Alert] Resolved: Job Stuck: import_feed"]
    (alert,) = it.alerts()
    assert (alert["status"], alert["is_settled"], alert["number"]) == ("resolved", True, 1)
    it.passes(100_000)
    assert len(post.sent) == 2


def test_what_is_over_before_anybody_was_told_is_on_record_and_not_sent(stage: Callable[..., Stage], post: Post) -> None:
    it = stage()
    it.happens(opened())
    it.passes(5)
    it.happens(closed())
    it.passes(5)
    it.passes(3600)
    (alert,) = it.alerts()
    assert (post.sent, alert["status"], alert["suppressed"], alert["is_settled"]) == ([], "resolved", "resolved", True)


def test_a_timeout_is_told_though_the_job_was_interrupted_at_once(stage: Callable[..., Stage], post: Post) -> None:
    it = stage()
    it.happens(events.JobTimeout(job_id="j1", actor_name="report", timeout_seconds=10.0, actual_duration=10.1))
    it.passes(5)
    it.passes(40)
    assert post.titles == ["[Chaperone Alert] Resolved: Job Timeout: report"]


def test_defaults_alert_of_nothing(stage: Callable[..., Stage], post: Post) -> None:
    it = stage()
    it.happens(
        events.JobTimeout(job_id="j1", actor_name="report", timeout_seconds=3600.0, actual_duration=3601.0, is_default=True),
        events.ResourceViolationDetected(job_id="j1", actor_name="report", violation_type="memory", limit=512, actual=600, is_default=True),
    )
    it.passes(60)
    assert it.alerts() == []


def test_fifty_stuck_jobs_are_one_message_that_names_ten(stage: Callable[..., Stage], post: Post) -> None:
    it = stage()
    for number in range(50):
        it.open(f"j{number}")
    it.happens(*(stuck(f"j{number}") for number in range(50)))
    it.passes(1)
    it.passes(30)
    assert post.titles == ["[Chaperone Alert] Job Stuck (50)"]
    assert "50 fire, the first 10:" in post.last
    assert post.last.count("import_feed") == 10


def test_a_critical_one_does_not_wait(stage: Callable[..., Stage], post: Post) -> None:
    it = stage(critical_jobs=["charge*"])
    it.happens(dead(actor="charge_card"))
    it.passes()
    assert post.titles == ["[Chaperone Alert] Job Failed: charge_card"]
    assert "Severity: critical" in post.last


def test_an_actor_that_says_so_is_critical_and_has_its_runbook(stage: Callable[..., Stage], post: Post) -> None:
    it = stage()
    marks = json.dumps({"critical": True, "runbook_url": "https://runbooks.example/charge"})
    it.store.apply(origin(), [enqueued("j1"), started("j1", limits=marks)], start=0, end=1)
    it.happens(dead())
    it.passes()
    assert "Severity: critical" in post.last
    assert "https://runbooks.example/charge" in post.last


def test_a_point_has_no_end_and_no_repeat(stage: Callable[..., Stage], post: Post) -> None:
    it = stage()
    it.happens(dead())
    it.passes(1)
    it.passes(30)
    it.passes(100_000)
    assert len(post.sent) == 1
    assert it.alerts()[0]["is_settled"]


def test_what_still_fires_is_told_again_ever_more_rarely_until_somebody_knows(stage: Callable[..., Stage], post: Post) -> None:
    it = stage(alerts={"routes": [{"preset": "escalating", "group_wait": 0}]})
    it.happens(opened())
    it.passes()
    told = []
    for _ in range(600):  # minutes
        before = len(post.sent)
        it.passes(60)
        if len(post.sent) > before:
            told.append((it.now - NOW) / 60)
    assert told == [5, 20, 50, 110, 170, 230, 290, 350, 410, 470, 530, 590]
    assert "Still so; it was told before." in post.last
    (alert,) = it.alerts()
    assert rows.acknowledge(it.store, [alert["id"]], "ann@desk", it.now) == [alert["id"]]
    it.passes(100_000)
    assert len(post.sent) == 13
    it.happens(closed())
    it.passes(5)
    it.passes(300)
    assert post.titles[-1] == "[Chaperone Alert] Resolved: Circuit Breaker Opened: payments"


def test_the_next_channel_hears_of_what_nobody_looks_after(
    stage: Callable[..., Stage], post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    it = stage(
        alert_channels=["post", "log"],
        alerts={"routes": [{"channels": ["log"], "group_wait": 0, "escalate_after": 900, "escalate_to": ["post"]}]},
    )
    it.happens(opened())
    it.passes()
    it.passes(890)
    assert post.sent == []
    it.passes(11)
    assert "Nobody has said that they look after it" in post.last
    it.passes(3000)
    assert len(post.sent) == 1


def test_one_that_flaps_is_told_once_in_its_window(stage: Callable[..., Stage], post: Post) -> None:
    it = stage(alert_group_wait=0, alert_group_interval=0)
    for _ in range(5):
        it.happens(opened())
        it.passes(10)
        it.happens(closed())
        it.passes(10)
    assert [title for title in post.titles if "Resolved" not in title] == ["[Chaperone Alert] Circuit Breaker Opened: payments"]
    it.happens(opened())
    it.passes(1)
    assert it.alerts()[-1]["suppressed"] == "limited"
    it.passes(300)
    assert len([title for title in post.titles if "Resolved" not in title]) == 2, "it is still true when its window is over"


def test_a_limit_can_be_cleared_and_one_that_reached_nobody_does_not_count(stage: Callable[..., Stage], post: Post) -> None:
    it = stage(alert_group_wait=0, alert_group_interval=0)
    it.happens(dead("j1"))
    it.passes()
    it.happens(dead("j1"))
    it.passes()
    assert [each["suppressed"] for each in it.alerts()] == [None, "limited"]
    assert rows.clear_limits(it.store, "job_failed") == 1
    it.happens(dead("j1"))
    it.passes()
    assert len(post.sent) == 2
    post.answer = lambda message: False
    it.happens(dead("j2"))
    it.passes()
    it.happens(dead("j2"))
    it.passes()
    assert [each["suppressed"] for each in it.alerts()[-2:]] == [None, None]


def test_a_silence_holds_and_tells_what_is_still_true_when_it_ends(stage: Callable[..., Stage], post: Post) -> None:
    it = stage(alert_group_wait=0)
    rows.silence(it.store, {"service": ["pay*"]}, starts_at=it.now, until=it.now + 600, reason="migration", owner="ann")
    it.happens(opened("payments"), opened("mail"), closed("never"))
    it.passes(1)
    assert ["mail" in title for title in post.titles] == [True]
    assert {each["subject"]: each["suppressed"] for each in it.alerts()} == {"payments": "silenced", "mail": None}
    it.passes(590)
    assert len(post.sent) == 1
    it.passes(20)
    it.passes(10)
    assert "payments" in post.titles[-1]


def test_a_maintenance_window_of_the_settings_holds(stage: Callable[..., Stage], post: Post) -> None:
    window = {"start": AT.isoformat(), "end": datetime.fromtimestamp(NOW + 60, UTC).isoformat(), "reason": "update"}
    it = stage(alert_group_wait=0, alerts={"maintenance": [window]})
    it.happens(dead(), opened())
    it.passes(1)
    it.passes(100)
    it.passes(10)
    assert post.titles == ["[Chaperone Alert] Circuit Breaker Opened: payments"]
    assert [each["suppressed"] for each in it.alerts() if each["type"] == "job_failed"] == ["silenced"], (
        "it happened, and is not true any more"
    )


def test_a_lost_worker_mutes_what_its_own_jobs_have_to_say(stage: Callable[..., Stage], post: Post) -> None:
    it = stage(alert_group_wait=10)
    it.open()
    it.happens(stuck(), events.WorkerLost(worker_id="host-1-a", host="far", lost_at=AT, silent_for=30.0))
    it.passes(1)
    it.passes(11)
    assert post.titles == ["[Chaperone Alert] Worker Lost: far"]
    it.happens(events.WorkerReturned(worker_id="host-1-a", host="far", returned_at=AT))
    it.passes(301)
    it.passes(301)
    assert post.titles[1:] == ["[Chaperone Alert] Resolved: Worker Lost: far", "[Chaperone Alert] Job Stuck: import_feed"]


def test_an_open_breaker_mutes_the_queue_that_waits_for_it(stage: Callable[..., Stage], post: Post) -> None:
    """As the worker that put a message off has written it."""
    it = stage(alert_queue_length=10, alert_group_wait=0, alert_group_interval=0, alerts={"thresholds": {"no_worker": 0, "for": 0}})
    worker = Process(it.store, "host-1-q")
    deferred = records.Deferred(records.DEFERRED, it.now, "j1", 0, "charge", "default", it.now, it.now + 900, waiting_for("payments"))
    worker.writes(enqueued("j1"), tuple(deferred), queue_read(11, it.now))
    it.happens(opened("payments"))
    for _ in range(3):
        it.passes(15)
    assert post.titles == ["[Chaperone Alert] Circuit Breaker Opened: payments"]
    assert {each["type"]: each["suppressed"] for each in it.alerts()}["queue_length"] == "inhibited"


def test_a_failed_attempt_is_made_again_and_then_the_fallback_is_asked(stage: Callable[..., Stage], post: Post) -> None:
    spare = Post()
    alert_channel("spare")(spare)
    try:
        it = stage(
            alert_group_wait=0, alert_channels=[], alerts={"channels": {"post": {"fallback": "spare"}}, "routes": [{"channels": ["post"]}]}
        )
        post.answer = lambda message: False
        it.happens(dead())
        it.passes()
        for wait_s in BACKOFF_S:
            assert spare.sent == []
            it.passes(wait_s - 1)
            it.passes(2)
        assert spare.titles == ["[Chaperone Alert] Job Failed: charge"]
        results = [(each.channel, each.attempt, each.result) for each in deliveries.of_alert(it.store, it.alerts()[0]["id"])]
        assert sorted(results) == [*(("post", number, "failed") for number in range(1, 6)), ("spare", 1, "sent")]
        found = deliveries.statistics(it.store, since=NOW - 10, now=it.now)
        assert (found["total_sent"], found["total_failed"], found["by_type"]) == (1, 5, {"job_failed": {"sent": 1, "failed": 5}})
        assert deliveries.health(found) == {"healthy": False, "stats": found, "failure_rate": 83.33}
    finally:
        channels._registered.pop("spare")


def test_a_channel_that_is_down_keeps_nothing_from_its_fallback(stage: Callable[..., Stage], post: Post) -> None:
    spare = Post()
    alert_channel("spare")(spare)
    try:
        alerts = {"channels": {"post": {"fallback": "spare"}}, "routes": [{"channels": ["post"], "group_by": ["job_id"]}]}
        it = stage(alert_group_wait=0, alert_channels=[], alerts=alerts)
        post.answer = lambda message: False
        for number in range(5):
            it.happens(dead(f"j{number}"))
        for wait_s in (0, *BACKOFF_S):
            it.passes(wait_s + 1)
        for _ in range(12):
            it.passes(20)
        assert len(spare.sent) == 5, "nobody waits for what the others wait for"
        post.answer = lambda message: None
        it.happens(dead("j9"))
        it.passes(1)
        assert len(post.sent) == 1
    finally:
        channels._registered.pop("spare")


def test_one_that_may_have_arrived_says_so_and_its_end_does_not_overtake_it(stage: Callable[..., Stage], post: Post) -> None:
    it = stage(alert_group_wait=0, alert_group_interval=0)
    answers = iter([False])
    post.answer = lambda message: next(answers, None)
    it.happens(opened())
    it.passes()
    it.happens(closed())
    it.happens(dead("j2", actor="second"))
    it.passes()
    assert post.titles == ["[Chaperone Alert] Job Failed: second"], "one that others wait for in vain does not hold them up"
    it.passes(BACKOFF_S[0])
    about = "Circuit Breaker Opened: payments"
    assert post.titles[1:] == [f"[Chaperone Alert] {about}", f"[Chaperone Alert] Resolved: {about}"]
    assert ["may be a repeat" in message.text("text") for message in post.sent] == [False, True, False]


def test_what_was_on_its_way_when_its_sender_died_is_sent_again_by_the_next_and_says_so(stage: Callable[..., Stage], post: Post) -> None:
    it = stage(alert_group_wait=0)
    it.happens(dead())
    sends = []

    def die(*arguments: Any, **more: Any) -> None:
        sends.append(arguments)
        raise SystemExit

    it.passes()
    begun = it.alerting._begun
    assert begun is not None
    assert len(post.sent) == 1
    it.happens(dead("j2"))
    begun.senders.send = die  # type: ignore[method-assign]  # it dies between its claim and the channel
    it.now += 400
    with pytest.raises(SystemExit):
        it.alerting.turn(it.store, it.lease)
    it.replace("second")
    it.passes()
    assert len(post.sent) == 2
    assert "may be a repeat" in post.last
    assert "may be a repeat" not in post.sent[0].text("text")


def test_who_has_lost_the_lease_raises_and_sends_nothing(stage: Callable[..., Stage], post: Post) -> None:
    it = stage(alert_group_wait=0)
    it.passes()
    it.take("another")
    it.happens(dead())
    with pytest.raises(LeaseLost):
        it.alerting.turn(it.store, it.lease)
    assert it.alerts() == post.sent == []
    it.replace("third")
    it.passes()
    assert len(post.sent) == 1, "nothing is lost"


def test_a_flood_is_held_back_and_said(stage: Callable[..., Stage], post: Post) -> None:
    it = stage(alert_group_wait=0, alerts={"channels": {"post": {"limit": 3}}, "routes": [{"group_by": ["actor"]}]})
    for number in range(10):
        it.happens(dead(f"j{number}", actor=f"actor_{number}"))
        it.passes(1)
    assert len(post.sent) == 3
    it.passes(60)
    it.happens(dead("j99", actor="actor_99"))
    it.passes(1)
    assert "7 messages with 7 alerts before this one were held back here" in post.last
    it.happens(dead("j98", actor="actor_98"))
    it.passes(1)
    assert "held back" not in post.last


def test_a_rule_of_the_users_own(stage: Callable[..., Stage], post: Post) -> None:
    @alert_rule(events.JobMovedToDeadLetterQueue)
    def big_customer(event: events.JobMovedToDeadLetterQueue) -> Finding | None:
        if event.actor_name != "invoice":
            return None
        return Finding("big_customer", event.job_id, event.actor_name, severity="critical", details=[("Customer", "ACME")])

    @alert_rule(events.JobMovedToDeadLetterQueue)
    def broken(event: events.Event) -> None:
        raise ZeroDivisionError

    try:
        it = stage()
        it.happens(dead("j1", actor="invoice"), dead("j2"))
        it.passes()
        assert post.titles[0] == "[Chaperone Alert] Big Customer: invoice"
        assert "Customer: ACME" in post.last
    finally:
        rules._own.clear()


def test_switched_off_nothing_is_raised_not_even_later(stage: Callable[..., Stage], post: Post) -> None:
    it = stage(alerting_enabled=False)
    it.happens(dead())
    it.alerting.turn(it.store, it.lease)
    assert it.alerts() == []
    assert rows.to_judge(it.store, limit=10) == []


def test_a_threshold_has_to_be_passed_for_a_while_and_is_over_after_a_while(stage: Callable[..., Stage], post: Post) -> None:
    it = stage(alert_queue_length=10, alert_group_wait=0, alert_group_interval=0, alerts={"thresholds": {"no_worker": 0}})

    def read(ready: int) -> None:
        it.store.execute("DELETE FROM {queues}")
        it.store.apply(origin("host-1-q"), [queue_read(ready, it.now)], start=read.at, end=read.at + 1)  # type: ignore[attr-defined]
        read.at += 1  # type: ignore[attr-defined]

    read.at = 0  # type: ignore[attr-defined]
    for _ in range(6):
        read(11)
        it.passes(15)
    assert post.titles == ["[Chaperone Alert] Queue Too Long: default"]
    for _ in range(6):
        read(9)
        it.passes(15)
    assert post.titles[1:] == ["[Chaperone Alert] Resolved: Queue Too Long: default"]


def test_what_is_settled_goes_after_a_month_and_what_fires_stays(stage: Callable[..., Stage], post: Post) -> None:
    it = stage(alert_group_wait=0)
    it.happens(dead(), opened())
    it.passes()
    old = NOW + 31 * 86_400
    found = dict(retention.prune(it.store, it.settings, now=old))
    assert found["alerts"] == 1
    assert [each["type"] for each in it.alerts()] == ["circuit_breaker"]
