"""Which copy of a message runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dramatiq_chaperone.service import internal_errors
from dramatiq_chaperone.settings import Settings
from dramatiq_chaperone.store import leases, open_store
from dramatiq_chaperone.supervision import claims as module
from dramatiq_chaperone.supervision.claims import RunClaims


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    found = Settings.load({"state_dir": str(tmp_path)}, environ={})
    open_store(found, create=True).close()
    return found


@pytest.fixture
def make_claims(settings: Settings) -> Iterator[Callable[[], RunClaims]]:
    """``make_claims()``: those of one process."""
    made: list[RunClaims] = []

    def make() -> RunClaims:
        made.append(RunClaims(settings))
        return made[-1]

    yield make
    for each in made:
        each.stop()


def test_the_first_one_runs_again_and_again_and_nobody_else_in_any_process(make_claims: Callable[[], RunClaims]) -> None:
    one, other = make_claims(), make_claims()
    assert one.claim("j1", 0, "copy-1")
    assert other.claim("j1", 0, "copy-1")
    assert not other.claim("j1", 0, "original")
    assert not one.claim("j1", 0, "copy-2")
    assert one.claim("j1", 1, "copy-2"), "each retry has a claim of its own"
    assert one.claim("j2", 0, "copy-2")


def test_of_many_at_once_one_runs(make_claims: Callable[[], RunClaims]) -> None:
    processes, allowed = [make_claims() for _ in range(3)], []
    for each in processes:
        assert each.claim("warm", 0, "same")

    def claim(number: int) -> None:
        if processes[number % 3].claim("j1", 0, f"copy-{number}"):
            allowed.append(number)

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(allowed) == 1


def test_without_a_store_it_runs(tmp_path: Path) -> None:
    internal_errors.clear()
    claims = RunClaims(Settings.load({"state_dir": str(tmp_path / "none")}, environ={}))
    assert claims.claim("j1", 0, "a")
    assert claims.claim("j1", 0, "b")
    claims.stop()
    assert internal_errors.pop("claims") >= 1


def test_a_store_that_hangs_holds_nothing_up(make_claims: Callable[[], RunClaims], monkeypatch: pytest.MonkeyPatch) -> None:
    internal_errors.clear()
    claims = make_claims()
    assert claims.claim("j1", 0, "a")
    going = threading.Event()
    monkeypatch.setattr(leases, "acquire", lambda *args, **more: going.wait(20) and None)
    monkeypatch.setattr(module, "ANSWER_S", 0.05)
    assert claims.claim("j1", 0, "b")
    assert claims.claim("j2", 0, "c"), "it is not asked again for a while"
    assert internal_errors.pop("claims") == 1
    going.set()
    monkeypatch.undo()
    monkeypatch.setattr(module, "ANSWER_S", 5.0)
    claims._away_until = 0.0
    assert not claims.claim("j1", 0, "d")


def test_it_goes_on_after_a_stop(make_claims: Callable[[], RunClaims]) -> None:
    claims = make_claims()
    assert claims.claim("j1", 0, "a")
    claims.stop()
    assert not claims.claim("j1", 0, "b")
