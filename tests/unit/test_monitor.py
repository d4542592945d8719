"""Who is silent for long enough to say so: pure, with the time passed in."""

from __future__ import annotations

import pytest

from dramatiq_chaperone.monitor import Silence, Verdict
from dramatiq_chaperone.records import Origin
from dramatiq_chaperone.store.silence import Heard


def heard(beat: int = 1, *, name: str = "w1", identity: str = "far", interval_s: float | None = None) -> Heard:
    return Heard(Origin(name, "host", identity, 7, 1.0, "worker"), beat, 1000.0, interval_s)


class Watch:
    """Looks once a second, at a moment that goes on."""

    def __init__(self, *, lives: bool = True, heartbeat_s: float = 5.0) -> None:
        self.silence = Silence(heartbeat_s, identity=lambda: "here", is_alive=lambda pid, at: lives)
        self.now = 100.0

    def looks(self, seconds: int, *workers: Heard) -> list[Verdict]:
        """The verdicts of the last look."""
        verdicts: list[Verdict] = []
        for _ in range(seconds):
            verdicts = self.silence.look(list(workers), asked_at=self.now, now=self.now)
            self.now += 1
        return verdicts


@pytest.mark.parametrize(("seconds", "is_lost"), [(15, None), (16, False), (30, False), (31, True), (100, True)])
def test_three_beats_are_inconclusive_and_six_are_lost(seconds: int, is_lost: bool | None) -> None:
    verdicts = Watch().looks(seconds, heard())
    assert [each.is_lost for each in verdicts] == ([] if is_lost is None else [is_lost])


def test_it_is_timed_from_the_last_new_beat_whatever_the_clocks_say() -> None:
    watch = Watch()
    watch.looks(25, heard(1))
    assert watch.looks(16, heard(2))[0].silent_s == 15
    assert watch.looks(1, heard(1))[0:] == [], "another beat is a sign of life, even a lower one"


def test_each_is_timed_by_itself() -> None:
    watch = Watch()
    watch.looks(20, heard(1, name="a"))
    verdicts = watch.looks(16, heard(1, name="a"), heard(1, name="b"))
    assert [(each.worker.origin.worker_id, each.is_lost) for each in verdicts] == [("a", True), ("b", False)]


def test_a_worker_that_beats_less_often_has_longer() -> None:
    watch = Watch()
    assert watch.looks(180, heard(interval_s=60.0)) == []
    assert [each.is_lost for each in watch.looks(181, heard(interval_s=60.0))] == [True]
    assert Watch().looks(31, heard(interval_s=0.1))[0].is_lost, "one that beats more often gets no less"


@pytest.mark.parametrize(("lives", "seconds", "is_lost"), [(True, 10_000, False), (False, 120, False), (False, 121, True)])
def test_on_its_own_host_it_knows_better(lives: bool, seconds: int, is_lost: bool) -> None:
    assert [each.is_lost for each in Watch(lives=lives).looks(seconds, heard(identity="here"))] == [is_lost]


def test_after_a_gap_a_full_threshold_is_waited() -> None:
    watch = Watch()
    watch.looks(29, heard())
    watch.now += 11
    assert watch.looks(15, heard()) == []
    assert watch.looks(16, heard())[0].is_lost


def test_a_store_that_takes_long_to_answer_is_a_gap_too() -> None:
    watch = Watch()
    watch.looks(29, heard())
    assert watch.silence.look([heard()], asked_at=watch.now, now=watch.now + 20) == []
    watch.now += 21
    assert watch.looks(14, heard()) == []


def test_forgotten_is_timed_anew() -> None:
    watch = Watch()
    watch.looks(29, heard())
    watch.silence.forget()
    assert watch.looks(15, heard()) == []


def test_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    watch = Watch()
    watch.looks(28, heard())
    assert caplog.text.count("has been silent for") == 1
    watch.looks(5, heard(2))
    watch.looks(28, heard(2))
    assert caplog.text.count("has been silent for") == 2
