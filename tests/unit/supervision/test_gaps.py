"""What a process that was stopped knows of its messages."""

from __future__ import annotations

import time
from queue import PriorityQueue
from types import SimpleNamespace
from typing import Any

import pytest
from dramatiq import Message
from dramatiq.common import iter_queue
from dramatiq.worker import _WorkQueueItem

from dramatiq_chaperone.errors import StoreUnavailable
from dramatiq_chaperone.supervision.gaps import DelayQueues, Gaps


def message(key: str | None = None, job_id: str = "j1") -> Any:
    return SimpleNamespace(message_id=job_id, options={} if key is None else {"redis_message_id": key})


class Leases:
    """What Redis says; None: it does not answer."""

    def __init__(self, *held: str) -> None:
        self.held: set[str] | None = set(held)
        self.asked = 0

    def renew(self, queues: Any) -> frozenset[str]:
        self.asked += 1
        if self.held is None:
            raise ConnectionError("Redis is away")
        return frozenset(self.held)


class Desk:
    """What the store says; None: it does not answer."""

    answer: bool | None = True

    def ask(self, question: Any) -> bool:
        if self.answer is None:
            raise StoreUnavailable
        return self.answer


def make(leases: Leases | None, *waiting: Any, desk: Desk | None = None) -> Gaps:
    return Gaps("w1", desk or Desk(), lease_s=60.0, leases=leases, queues=lambda: ["default"], waiting=lambda: list(waiting))  # type: ignore[arg-type]


def stop_for(gaps: Gaps, seconds: float) -> float:
    """The sampler's last turn was so long ago; returns when a run began that was on then."""
    gaps.turn(time.monotonic() - seconds)
    return time.monotonic() - seconds - 1


def test_who_takes_its_turns_asks_nobody() -> None:
    leases = Leases()
    gaps = make(leases)
    assert not gaps.has_lost(message("k1"), time.monotonic()), "before the sampler's first turn nothing is known"
    gaps.turn(time.monotonic())
    assert not gaps.has_lost(message("k1"), time.monotonic() - 5)
    assert not gaps.has_lost_unbegun(message("k1"))
    stop_for(gaps, 29)
    assert not gaps.has_lost_unbegun(message("k1"))
    assert leases.asked == 0


def test_after_a_gap_a_run_is_lost_whose_lease_is_gone() -> None:
    leases = Leases("k1")
    gaps = make(leases)
    began = stop_for(gaps, 31)
    assert not gaps.has_lost(message("k1"), began)
    assert gaps.has_lost(message("k2"), began)
    assert leases.asked == 1
    assert not gaps.has_lost(message("k2"), time.monotonic()), "this one began after it"


def test_the_sampler_may_be_the_first_to_notice() -> None:
    gaps = make(Leases())
    began = stop_for(gaps, 31)
    gaps.turn(time.monotonic())
    assert gaps.has_lost(message("k1"), began), "minutes later too"


def test_what_was_fetched_before_and_not_begun_is_looked_at_once_more_when_it_begins() -> None:
    leases = Leases("k1")
    gaps = make(leases, message("k1", "j1"), message("k2", "j2"), message("k3", "j3"))
    stop_for(gaps, 31)
    gaps.turn(time.monotonic())
    assert sorted(gaps.doubtful) == ["k2", "k3"]
    assert not gaps.has_lost_unbegun(message("k1", "j1"))
    assert gaps.has_lost_unbegun(message("k2", "j2"))
    assert not gaps.has_lost_unbegun(message("k9", "j2")), "a retry of it, which came back"
    leases.held = {"k3"}
    assert not gaps.has_lost_unbegun(message("k3", "j3")), "the other worker died, and it came back with its key"
    assert not gaps.doubtful


def test_the_message_that_was_on_its_way_to_its_thread_is_looked_at_too() -> None:
    gaps = make(Leases())
    stop_for(gaps, 31)
    assert gaps.has_lost_unbegun(message("k1"))


def test_what_cannot_be_found_out_is_taken_for_our_own_and_asked_again() -> None:
    leases = Leases()
    leases.held = None
    gaps = make(leases, message("k2"))
    began = stop_for(gaps, 31)
    assert not gaps.has_lost(message("k1"), began)
    assert not gaps.doubtful
    leases.held = set()
    assert gaps.has_lost(message("k1"), began)


def test_where_the_broker_has_no_leases_the_store_tells() -> None:
    desk, waiting = Desk(), message()
    gaps = make(None, waiting, desk=desk)
    began = stop_for(gaps, 31)
    assert gaps.has_lost(message(), began)
    assert gaps.has_lost_unbegun(waiting)
    assert not gaps.has_lost_unbegun(message()), "another object: it was fetched later"
    desk.answer = False
    assert not gaps.has_lost(message(), began)
    desk.answer = None
    assert not gaps.has_lost(message(), began)


@pytest.mark.parametrize("seconds", [29, 31])
def test_half_a_lease_is_a_gap(seconds: float) -> None:
    leases = Leases("k1")
    gaps = make(leases)
    gaps.has_lost(message("k1"), stop_for(gaps, seconds))
    assert leases.asked == (seconds > 30)


class Consumers:
    """A consumer thread of a delay queue, with what it has."""

    def __init__(self, *waiting: Any, cached: tuple[Any, ...] = ()) -> None:
        self.delay_queue: PriorityQueue[Any] = PriorityQueue()
        for each in waiting:
            self.delay_queue.put(_WorkQueueItem(each.options["eta"], each))
        ids = {each.message_id for each in (*waiting, *cached)}
        self.consumer = SimpleNamespace(message_cache=[each.encode() for each in cached], queued_message_ids=ids)

    def keys(self) -> list[str]:
        return [item.message.options["redis_message_id"] for item in iter_queue(self.delay_queue)]


def delayed(key: str, eta: int = 0) -> Message[Any]:
    options = {"redis_message_id": key, "eta": eta}
    return Message("default.DQ", "work", (), {}, options, message_id=f"id of {key}")


class TestDelayQueues:
    def test_without_a_gap_nothing_is_asked(self) -> None:
        leases = Leases()
        gaps, thread = make(leases), Consumers(delayed("k1"))
        gaps.turn(time.monotonic())
        queues = DelayQueues(gaps, lambda queue: thread)
        one = delayed("k2")
        assert [queues.sift("default.DQ", one), queues.sift("default.DQ", None)] == [one, None]
        assert (leases.asked, thread.keys()) == (0, ["k1"])

    def test_after_one_what_was_taken_is_dropped_once(self) -> None:
        leases = Leases("k2", "k3", "k5")
        thread = Consumers(*(delayed(f"k{n}", eta=9 - n) for n in (1, 2, 3)), cached=(delayed("k4"), delayed("k5")))
        gaps = make(leases)
        queues = DelayQueues(gaps, lambda queue: thread)
        stop_for(gaps, 31)
        assert queues.sift("default.DQ", delayed("k6")) is None
        assert [Message.decode(data).message_id for data in thread.consumer.message_cache] == ["id of k5"]
        assert thread.consumer.queued_message_ids == {"id of k2", "id of k3", "id of k5"}
        assert thread.delay_queue.unfinished_tasks == 2
        asked = leases.asked
        assert thread.keys() == ["k3", "k2"], "in their order"
        assert queues.sift("default.DQ", None) is None
        assert leases.asked == asked

    def test_what_came_back_is_here_once(self) -> None:
        back = delayed("k1")
        gaps, thread = make(Leases("k1", "k2")), Consumers(delayed("k1"), delayed("k2"), cached=(delayed("k2"),))
        stop_for(gaps, 31)
        assert DelayQueues(gaps, lambda queue: thread).sift("default.DQ", back) is back
        assert thread.keys() == []
        assert len(thread.consumer.message_cache) == 1

    def test_while_redis_is_away_it_asks_again(self) -> None:
        leases = Leases("k1")
        leases.held = None
        gaps, thread = make(leases), Consumers(delayed("k1"), delayed("k2"))
        queues = DelayQueues(gaps, lambda queue: thread)
        stop_for(gaps, 31)
        queues.sift("default.DQ", None)
        leases.held = {"k1"}
        queues.sift("default.DQ", None)
        assert thread.keys() == ["k1"]
