"""Commands: each reaches its worker once, or expires."""

from __future__ import annotations

import threading

import pytest

from dramatiq_chaperone import records
from dramatiq_chaperone.store import Store, commands
from tests.contracts.conftest import MakeStore, origin
from tests.waiting import wait_until


@pytest.mark.parametrize("key_type", ["id", "ulid", "uuid"])
def test_from_the_question_to_the_answer(make_store: MakeStore, key_type: str) -> None:
    store = make_store(primary_key_type=key_type)
    asked = commands.issue(store, "worker-1", "stack", {"job_id": "j1"}, issued_by="ann")
    assert commands.answer(store, asked) == (None, None)
    (taken,) = commands.claim(store, ["worker-1", "worker-2"])
    assert taken == records.Command(asked, "worker-1", "stack", {"job_id": "j1"})
    assert commands.claim(store, ["worker-1"]) == []
    done = (records.COMMAND_DONE, 1_790_000_000.0, asked, "done", '{"stacks": {}}')
    store.apply(origin("worker-1"), [done], start=0, end=10)
    assert commands.answer(store, asked) == ("done", {"stacks": {}})


def test_one_for_another_worker_is_left_alone(store: Store) -> None:
    commands.issue(store, "worker-1", "ping", {}, issued_by="ann")
    assert commands.claim(store, ["worker-2"]) == []
    assert commands.claim(store, []) == []


def test_an_expired_one_is_never_given(store: Store) -> None:
    asked = commands.issue(store, "worker-1", "ping", {}, issued_by="ann", seconds=0)
    wait_until(lambda: commands.answer(store, asked).outcome == "expired")
    assert commands.claim(store, ["worker-1"]) == []


def test_an_unknown_one_counts_as_expired(store: Store) -> None:
    assert commands.answer(store, "0").outcome == "expired"


def test_two_who_ask_at_once_share_the_commands(store: Store) -> None:
    asked = {commands.issue(store, "worker-1", "ping", {"n": n}, issued_by="ann") for n in range(20)}
    taken: list[str] = []
    barrier = threading.Barrier(4)

    def take() -> None:
        barrier.wait()
        taken.extend(command.command_id for command in commands.claim(store, ["worker-1"]))
        store.close()

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(asked)
