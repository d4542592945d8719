"""A dead worker's messages, a living one's broker, and the store between them: on a real Redis."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from dramatiq import Message
from dramatiq.brokers.redis import RedisBroker

from dramatiq_chaperone import records
from dramatiq_chaperone.brokers import handback, leases_of
from dramatiq_chaperone.brokers.handback import HandBack
from dramatiq_chaperone.settings import Settings
from dramatiq_chaperone.store import Store, crashes, open_store
from tests.waiting import wait_until


class Scene:
    """A worker that held messages and is dead, and one that lives."""

    def __init__(self, url: str, settings: Settings, store: Store) -> None:
        self.dead = RedisBroker(url=url, maintenance_chance=0)  # type: ignore[no-untyped-call]
        self.living = RedisBroker(url=url, maintenance_chance=0)  # type: ignore[no-untyped-call]
        for broker in (self.dead, self.living):
            broker.declare_queue("default")
        self.store = store
        self.suspected: list[str] = []
        leases = leases_of(self.living)
        assert leases is not None
        self.hand_back = HandBack(settings, self.living, leases, suspected=self.suspected.extend, max_crashes=lambda actor: 3)

    def hold(self, *job_ids: str, **options: Any) -> None:
        for job_id in job_ids:
            self.living.enqueue(Message("default", "work", (), {}, options, message_id=job_id))
            self.dead.do_fetch("default", 1)

    def crash(self, job_id: str, times: int) -> None:
        """Other workers died of it before."""
        for number in range(times):
            origin = records.Origin(f"old-{number}", "host", "boot-1", 1, 0.0, "worker")
            now = time.time()
            started = (records.STARTED, now, job_id, f"r{number}", 0, "work", "default", "T", 0, now, 0.0, None, None, None)
            self.store.apply(origin, [started], start=0, end=10)
            self.store.worker_lost(origin, at=now, exit_code=None, exit_cause=None, is_certain=True)

    def die(self, *, is_certain: bool = True) -> list[crashes.Return]:
        """What the store says of it then."""
        origin = records.Origin("dead", "host", "boot-1", 1, 0.0, "worker")
        booted = (records.WORKER, time.time(), "RedisBroker", self.dead.broker_id, '["default"]', 8, None, "{}")
        self.store.apply(origin, [booted], start=0, end=10)
        self.store.worker_lost(origin, at=time.time(), exit_code=-9, exit_cause="SIGKILL", is_certain=is_certain)
        return crashes.returns(self.store)

    def ask(self, found: list[crashes.Return]) -> None:
        """As who reads it there does; one turn at a time."""
        self.hand_back._asked.update({each.worker_id: each._asdict() for each in found})
        self.hand_back.run_once()

    def ready(self) -> list[str]:
        keys = self.living.client.lrange("dramatiq:default", 0, -1)
        return [Message.decode(self.living.client.hget("dramatiq:default.msgs", key)).message_id for key in keys]


@pytest.fixture
def scene(redis_url: str, chaperone_env: Callable[..., None]) -> Iterator[Scene]:
    settings = Settings.load()
    store = open_store(settings, create=True)
    made = Scene(redis_url, settings, store)
    yield made
    made.hand_back.stop()
    store.close()
    made.dead.close()
    made.living.close()


def test_what_it_held_is_suspect_before_it_is_ready(scene: Scene) -> None:
    scene.hold("j1", "j2")
    found = scene.die()
    assert [each.worker_id for each in found] == ["dead"]
    scene.ask(found)
    assert scene.ready() == ["j1", "j2"]
    assert scene.suspected == ["j1", "j2"]
    assert sorted(crashes.suspects(scene.store)) == ["j1", "j2"]
    assert crashes.returns(scene.store) == []
    assert scene.living.client.zscore("dramatiq:__heartbeats__", scene.dead.broker_id) is None


def test_its_thread_does_it_when_it_is_asked(scene: Scene) -> None:
    scene.hold("j1")
    scene.hand_back.ask([each._asdict() for each in scene.die()])
    wait_until(lambda: scene.ready() == ["j1"])
    wait_until(lambda: crashes.returns(scene.store) == [], what="it to be done")
    scene.hold("j2")
    scene.store.execute("UPDATE {returns} SET done_at = NULL")
    scene.hand_back.ask([each._asdict() for each in crashes.returns(scene.store)])
    wait_until(lambda: len(scene.ready()) == 2)


def test_what_must_not_run_again_waits_until_everybody_has_heard_of_it(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.hold("innocent", "guilty")
    scene.hold("patient", max_crashes=9)
    for job_id in ("guilty", "patient"):
        scene.crash(job_id, 3)
    found = [each for each in scene.die() if each.worker_id == "dead"]
    scene.ask(found)
    assert scene.ready() == ["innocent", "patient"]
    assert [each.worker_id for each in crashes.returns(scene.store)] == ["dead"]
    assert 0 < scene.hand_back.interval_s <= handback.HEAR_S
    scene.ask(found)
    assert scene.ready() == ["innocent", "patient"], "to be asked again does not make it sooner"
    monkeypatch.setitem(scene.hand_back._waiting, "dead", time.monotonic())
    scene.ask([])
    assert scene.ready() == ["guilty", "innocent", "patient"]
    assert crashes.returns(scene.store) == []


def test_a_silent_worker_s_messages_go_back_when_its_lease_has_run_out(scene: Scene) -> None:
    scene.hold("j1")
    found = scene.die(is_certain=False)
    scene.ask(found)
    assert scene.ready() == []
    assert crashes.suspects(scene.store) == ["j1"], "read before anybody else can take it"
    scene.living.client.zadd("dramatiq:__heartbeats__", {scene.dead.broker_id: (time.time() - 61) * 1000})
    scene.ask(crashes.returns(scene.store))
    assert scene.ready() == ["j1"]
    assert len(crashes.crashes(scene.store, "j1")) == 1, "nobody can tell whether it ran"


def test_a_silent_worker_with_empty_hands_is_not_done_with(scene: Scene) -> None:
    scene.hold("j1")
    scene.dead.do_ack("default", scene.living.client.smembers(f"dramatiq:__acks__.{scene.dead.broker_id}.default").pop())
    scene.ask(scene.die(is_certain=False))
    assert len(crashes.returns(scene.store)) == 1, "it may live, and fetch more"


def test_what_somebody_else_gave_back_meanwhile_is_waited_for_no_longer(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.hold("guilty")
    scene.crash("guilty", 3)
    scene.ask([each for each in scene.die() if each.worker_id == "dead"])
    other = leases_of(scene.living)
    assert other is not None
    other.give_back(scene.dead.broker_id, other.held(scene.dead.broker_id, ["default"]) or [], is_dead=True)
    other.forget(scene.dead.broker_id)
    monkeypatch.setitem(scene.hand_back._waiting, "dead", time.monotonic())
    scene.ask([])
    assert not scene.hand_back._waiting
    assert scene.ready() == ["guilty"]
    assert scene.hand_back.interval_s > 1000


def test_what_another_redis_has_is_left_to_others(scene: Scene) -> None:
    found = scene.die()  # it never asked this one for anything
    scene.ask(found)
    assert crashes.returns(scene.store) == found


def test_it_never_gives_its_own_back(scene: Scene) -> None:
    scene.hold("j1")
    (found,) = scene.die()
    scene.hand_back._broker = scene.dead
    scene.ask([found])
    assert scene.ready() == []


def test_while_redis_is_away_it_is_left_for_later(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.hold("j1")
    found = scene.die()
    with monkeypatch.context() as patch:
        patch.setattr(scene.hand_back._leases, "held", lambda *_: 1 / 0)
        scene.ask(found)
    assert crashes.returns(scene.store) == found
    scene.ask(found)
    assert scene.ready() == ["j1"]
