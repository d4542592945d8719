"""Channels against real servers on this machine: mail, chat, on call, and such that fail."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from dramatiq_chaperone.alerts import channels, messages
from dramatiq_chaperone.alerts.channels import AppriseChannel, channels_of, mail_url, masked, secrets_of
from dramatiq_chaperone.alerts.kinds import Alert
from dramatiq_chaperone.alerts.trial import send_test
from dramatiq_chaperone.alerts.watchdog import Watchdog
from dramatiq_chaperone.settings import Settings
from tests.receivers import Mailbox, WebServer, mail_server
from tests.waiting import wait_until

SECRET = "s3cr3t-t0ken-abcdef"


def load(**arguments: Any) -> Settings:
    return Settings.load(arguments, environ={"HOME": "/nonexistent"})


def alert(number: int = 1, **changed: Any) -> Alert:
    facts: dict[str, Any] = {
        "id": str(number), "type": "job_stuck", "subject": "import_feed", "severity": "error", "priority": "normal", "status": "firing",
        "fingerprint": f"f{number}", "is_point": False, "labels": {"actor": "import_feed", "job_id": f"j{number}"}, "number": 1,
        "first_seen_at": 1000.0, "last_seen_at": 1000.0,
        "evidence": {"key": f"j{number}", "text": "x\n" * 20_000,
                     "details": [["Job", f"j{number}"], ["Diagnosis", "blocked in <fetch> & *more*"]]},
    }  # fmt: skip
    return Alert(**{**facts, **changed})


def message(*alerts: Alert, status: str = "firing", **more: Any) -> messages.Message:
    settings = load(dashboard_url="https://ops.example", alerts={"runbooks": {"job_stuck": "https://runbooks.example/stuck"}})
    return messages.make([(each, status) for each in alerts or (alert(),)], settings, now=2000.0, **more)


@pytest.fixture
def server() -> Iterator[WebServer]:
    with closing(WebServer()) as server:
        yield server


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    with mail_server() as box:
        yield box


def test_mail_goes_out_by_the_settings_of_the_specification(mailbox: Mailbox) -> None:
    box, port = mailbox, mailbox.port
    variables = {
        "CHAPERONE_ALERT_RECIPIENTS": "ops@example.com,on-call@example.com", "MAIL_HOST": "127.0.0.1", "MAIL_PORT": str(port),
        "MAIL_ENCRYPTION": "none", "MAIL_FROM_ADDRESS": "alerts@example.com", "MAIL_FROM_NAME": "The Chaperone", "HOME": "/nonexistent",
    }  # fmt: skip
    settings = Settings.load(environ=variables)
    channel = channels_of(settings).by_name["mail"]
    assert channel.send(message()) == channels.Sent(True, title="[Chaperone Alert] Job Stuck: import_feed")
    assert sorted(to for _, recipients, _ in box.mails for to in recipients) == ["on-call@example.com", "ops@example.com"]
    sender, _, mail = box.mails[0]
    assert sender == "alerts@example.com"
    assert mail["Subject"] == "[Chaperone Alert] Job Stuck: import_feed"
    assert "The Chaperone" in str(mail["From"])
    parts = {part.get_content_type(): part.get_payload(decode=True) for part in mail.walk() if not part.is_multipart()}
    html = bytes(parts["text/html"]).decode()  # type: ignore[arg-type]
    assert "blocked in &lt;fetch&gt; &amp; *more*" in html
    assert "https://ops.example/chaperone/jobs/j1" in html
    assert "https://runbooks.example/stuck" in html
    assert "infinite loop" in html


def slack(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> AppriseChannel:
    from apprise.plugins.slack import NotifySlack

    monkeypatch.setattr(NotifySlack, "webhook_url", f"http://{server.address}/services")
    return AppriseChannel("slack", "slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ")


def test_slack(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert slack(server, monkeypatch).send(message()).is_sent
    ((path, _, data),) = server.got
    assert path == "/services/T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ"
    (attachment,) = data["attachments"]
    assert attachment["title"] == "🧊 [Chaperone Alert] Job Stuck: import_feed"
    assert attachment["color"].upper() == "#A32037", "red, for an error"
    assert attachment["footer"] == "Chaperone"
    assert abs(attachment["ts"] - time.time()) < 60
    assert "j1" in attachment["text"]
    assert len(attachment["text"]) < 35_000


def test_what_a_job_says_calls_nobody(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = alert(evidence={"key": "j1", "details": [["Exception", "<!channel> <@U6TTX1F9R> @everyone <b>*x*</b>"]]})
    assert slack(server, monkeypatch).send(message(evil)).is_sent
    text = server.got[0].data["attachments"][0]["text"]
    assert "<!" not in text
    assert "<@" not in text
    assert "@everyone" not in message(evil).text("text")
    assert "<b>" not in message(evil).text("html")


def test_discord(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from apprise.plugins.discord import NotifyDiscord

    monkeypatch.setattr(NotifyDiscord, "notify_url", f"http://{server.address}/api/webhooks")
    server.answer = (204, b"")
    assert AppriseChannel("discord", "discord://1234567890/abcdefghijkl").send(message()).is_sent
    ((path, _, data),) = server.got
    assert path == "/api/webhooks/1234567890/abcdefghijkl"
    said = data.get("content") or data["embeds"][0]["description"]
    assert len(said) <= 2000
    assert "Job Stuck: import_feed" in said
    assert "Diagnosis: blocked in <fetch>" in said, "the first lines are kept, the stack is cut"


def test_pagerduty_is_told_of_each_incident_and_of_its_end(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from apprise.plugins import pagerduty

    monkeypatch.setitem(pagerduty.PAGERDUTY_API_LOOKUP, pagerduty.PagerDutyRegion.US, f"http://{server.address}/v2/enqueue")
    server.answer = (202, b"{}")
    channel = channels_of(load(pagerduty_routing_key="R0UT1NGK3Y1234567890123456789012")).by_name["pagerduty"]
    assert channel.is_on_call
    assert channel.send(message()).is_sent
    over = alert(status="resolved", resolved_at=1900.0)
    assert channel.send(message(over, status="resolved")).is_sent
    begin, end = (data for _, _, data in server.got)
    payload = begin.pop("payload")
    assert begin == {
        "routing_key": "R0UT1NGK3Y1234567890123456789012", "event_action": "trigger", "dedup_key": "job_stuck:j1", "client": "Chaperone",
        "links": [{"href": "https://ops.example/chaperone/jobs/j1"}],
    }  # fmt: skip
    assert (payload["source"], payload["component"], payload["severity"]) == ("chaperone", "queue-jobs", "error")
    assert payload["summary"].splitlines()[0].startswith("[Chaperone Alert] Job Stuck: import_feed")
    assert len(payload["summary"]) <= 1024
    assert payload["custom_details"]["Job"] == "j1"
    assert end == {"routing_key": "R0UT1NGK3Y1234567890123456789012", "event_action": "resolve", "dedup_key": "job_stuck:j1"}


def test_opsgenie_is_told_of_each_alert_and_closes_it(server: WebServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    from apprise.plugins import opsgenie

    monkeypatch.setitem(opsgenie.OPSGENIE_API_LOOKUP, opsgenie.OpsgenieRegion.US, f"http://{server.address}/v2/alerts")
    server.answer = (202, json.dumps({"result": "Request will be processed", "took": 0.1, "requestId": "req-77"}).encode())
    key = "a1b2c3d4-1111-2222-3333-444455556666"
    settings = load(opsgenie_api_key=key, state_dir=str(tmp_path))
    assert channels_of(settings).by_name["opsgenie"].send(message()).is_sent
    # Another process closes it: the ids are on disk.
    assert channels_of(settings).by_name["opsgenie"].send(message(alert(status="resolved"), status="resolved")).is_sent
    (_, headers, begin), (path, _, end) = server.got
    assert headers["Authorization"] == f"GenieKey {key}"
    assert (begin["alias"], begin["priority"], begin["tags"]) == ("job_stuck:j1", "P2", ["chaperone", "queue-jobs"])
    assert begin["message"] == "[Chaperone Alert] Job Stuck: import_feed"
    assert begin["details"]["Job"] == "j1"
    assert path.startswith("/v2/alerts/req-77/close")
    assert end["source"] == "Chaperone Job Supervision"


@pytest.mark.parametrize("scheme", ["json"])
def test_a_server_that_answers_500_or_hangs_or_resets_is_a_failure(server: WebServer, scheme: str) -> None:
    channel = AppriseChannel("hook", f"{scheme}://user:{SECRET}@{server.address}/{SECRET}?rto=0.5")
    server.answer = (500, b"no")
    failed = channel.send(message())
    assert (failed.is_sent, "500" in failed.error) == (False, True)
    server.is_hanging = True
    assert not channel.send(message()).is_sent
    server.close()
    failed = channel.send(message())
    assert not failed.is_sent
    assert SECRET not in failed.error


def test_a_bad_address_is_named_without_its_secret_and_the_others_work_on(server: WebServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    settings = load(
        alerts={
            "channels": {"bad": {"urls": f"nosuch://{SECRET}"}, "worse": {"urls": SECRET}, "good": {"urls": f"json://{server.address}"}}
        }
    )
    found = channels_of(settings, check=True)
    assert sorted(found.wrong) == ["bad", "worse"]
    assert found.by_name["good"].send(message()).is_sent
    late = AppriseChannel("bad", f"nosuch://{SECRET}").send(message())
    assert late.is_misconfigured
    for text in (*found.wrong.values(), late.error, caplog.text, str(settings)):
        assert SECRET not in text


def test_apprise_logs_no_secret(server: WebServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("apprise", "urllib3.connectionpool"):
        caplog.set_level(logging.DEBUG, logger=name)
    server.answer = (500, b"no")
    AppriseChannel("hook", f"json://user:{SECRET}@{server.address}/path/{SECRET}").send(message())
    assert any(record.name == "apprise" for record in caplog.records)
    assert any(record.name == "urllib3.connectionpool" for record in caplog.records)
    assert SECRET not in caplog.text


def test_a_channel_with_several_addresses_is_several(server: WebServer) -> None:
    found = channels_of(
        load(alerts={"channels": {"ops": {"urls": [f"json://{server.address}/a", f"json://{server.address}/b"], "tags": ["all"]}}})
    )
    assert [name for name in found.by_name if name not in {"log", "database"}] == ["ops", "ops-2"]
    assert found.expanded(["ops"]) == ["ops", "ops-2"]
    assert found.tags["all"] == ["ops", "ops-2"]


def test_only_the_chosen_channels() -> None:
    settings = load(
        slack_webhook_url="https://hooks.slack.com/services/T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ", alert_urls="json://x,xml://y"
    )
    assert channels_of(settings).default == ["slack", "json", "xml"]
    assert channels_of(load(alert_urls="json://x,xml://y", alert_channels="xml")).default == ["xml"]
    assert channels_of(load()).default == ["log"]


def test_the_address_of_mail() -> None:
    settings = load(
        mail_host="smtp.example.com", mail_username="us er", mail_password="p@ss:word", alert_recipients="a@example.com,b@example.com"
    )
    assert mail_url(settings) == (
        "mailtos://us%20er:p%40ss%3Aword@smtp.example.com:587/?smtp=smtp.example.com&from=alerts%40smtp.example.com"
        "&name=Chaperone%20Alerts&to=a%40example.com%2Cb%40example.com&mode=starttls"
    )
    assert "p@ss" not in masked(mail_url(settings), secrets_of(mail_url(settings)))


def test_fifty_alerts_are_told_in_every_form_and_the_first_ten_are_named() -> None:
    it = message(*(alert(number) for number in range(50)))
    for form in ("text", "markdown", "html"):
        said = it.text(form, 2000)
        assert len(said) <= 2000
        assert "50 fire, the first 10" in said
    assert it.text("text").count("import_feed") == 10


def test_a_trial_goes_to_each_channel_and_says_what_came_of_it(server: WebServer) -> None:
    arguments = {"alerts": {"channels": {"good": {"urls": f"json://{server.address}"}, "bad": {"urls": "nosuch://x"}}}}
    found = send_test(["stuck"], settings=load(**arguments))
    assert [(each.channel, each.is_sent) for each in found] == [("bad", False), ("good", True)]
    assert server.got[0][2]["title"] == "[Chaperone Alert] TEST: Job Stuck: example_actor"
    assert "This is a test. Nothing is wrong." in server.got[0][2]["message"]
    assert [each.channel for each in send_test(["stuck"], channels=["bad"], settings=load(**arguments))] == ["bad"]
    assert len(server.got) == 1, "only where it was asked for"
    with pytest.raises(ValueError, match="did you mean job_stuck"):
        send_test(["job_stukc"], settings=load(**arguments))
    with pytest.raises(ValueError, match="There is no channel 'goood'; did you mean good"):
        send_test(["stuck"], channels=["goood"], settings=load(**arguments))


def test_every_type_can_be_tried() -> None:
    from dramatiq_chaperone.alerts.kinds import ALIASES, KINDS

    found = send_test([*KINDS, *ALIASES], settings=load())
    assert all(each.is_sent and each.channel == "log" for each in found)
    assert len(found) == len(KINDS) + len(ALIASES)


def test_the_watchdog_is_asked_for_while_all_is_well(server: WebServer, caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    dog = Watchdog(f"http://{server.address}/ping/{SECRET}", clock=lambda: now)
    dog.run_once()
    assert server.got == [], "nobody has said so yet"
    dog._well_at = now
    dog.run_once()
    assert [each.path for each in server.got] == [f"/ping/{SECRET}"]
    now = 61.0
    dog.run_once()
    assert len(server.got) == 1
    dog._well_at = now
    server.close()
    dog.run_once()
    dog.run_once()
    assert caplog.text.count("The watchdog does not answer") == 1
    assert SECRET not in caplog.text


def test_a_watchdog_runs_once_all_is_well(server: WebServer) -> None:
    dog = Watchdog(f"http://{server.address}/ping")
    dog.well()
    wait_until(lambda: server.got)
    assert dog.stop()
