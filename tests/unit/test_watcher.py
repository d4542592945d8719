"""What the watcher sees of its siblings from outside: how they ended."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest

from dramatiq_chaperone import host, watcher
from dramatiq_chaperone.records import Origin


class Reader:
    """The journal of a worker."""

    def __init__(self, pid: int) -> None:
        self.origin = Origin(f"w{pid}", "host", host.host_identity(), pid, 1.0, "worker")
        self.lives = True

    def owner_alive(self) -> bool:
        return self.lives


class Scene:
    """Workers, the count of their cgroup, and how they end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
        self.readers: dict[str, Any] = {f"w{n}": Reader(n) for n in range(1, workers + 1)}
        self.kills: int | None = 5
        self.codes: dict[int, int | None] = {}
        monkeypatch.setattr(host, "exit_code", lambda pid, at: self.codes.get(pid))
        self.siblings = watcher.Siblings(lambda: self.readers, dict, limit_s=10, oom_kills=lambda pid: self.kills)
        self.siblings.look()

    def ends(self, name: str, code: int | None = None) -> None:
        self.readers[name].lives = False
        self.codes[self.readers[name].origin.pid] = code


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Scene]:
    return lambda workers=1: Scene(monkeypatch, workers)


@pytest.mark.parametrize("code", [None, -signal.SIGKILL])
@pytest.mark.parametrize("looks_first", [True, False])
def test_out_of_memory(scene: Callable[[int], Scene], code: int | None, looks_first: bool) -> None:
    it = scene(2)
    it.ends("w1", code)
    it.kills = 6
    if looks_first:
        it.siblings.look()
        it.siblings.look()
    assert it.siblings.exit_of("w1") == (code, "SIGKILL (out of memory)")
    assert it.siblings.exit_of("w1") == (code, "SIGKILL (out of memory)")
    assert it.siblings.exit_of("w2") == (None, None)


def test_another_signal_is_not_memory(scene: Callable[[int], Scene]) -> None:
    it = scene(1)
    it.ends("w1", -signal.SIGSEGV)
    it.kills = 6
    assert it.siblings.exit_of("w1") == (-signal.SIGSEGV, "SIGSEGV")


@pytest.mark.parametrize(("code", "cause"), [(None, None), (-9, "SIGKILL"), (3, "exit code 3")])
def test_where_the_count_does_not_rise_it_is_what_it_is(scene: Callable[[int], Scene], code: int | None, cause: str | None) -> None:
    it = scene(1)
    it.ends("w1", code)
    assert it.siblings.exit_of("w1") == (code, cause)


def test_one_kill_and_two_deaths_are_not_guessed_at(scene: Callable[[int], Scene]) -> None:
    it = scene(2)
    it.ends("w1", -9)
    it.ends("w2", -9)
    it.kills = 6
    it.siblings.look()
    assert it.siblings.exit_of("w1") == it.siblings.exit_of("w2") == (-9, "SIGKILL")


def test_two_kills_and_two_deaths(scene: Callable[[int], Scene]) -> None:
    it = scene(2)
    it.ends("w1")
    it.ends("w2")
    it.kills = 7
    assert it.siblings.exit_of("w2") == it.siblings.exit_of("w1") == (None, "SIGKILL (out of memory)")


def test_a_kill_of_something_else_before_is_not_held_against_it(scene: Callable[[int], Scene]) -> None:
    it = scene(1)
    it.kills = 6  # a child process, say
    it.siblings.look()
    it.ends("w1", -9)
    assert it.siblings.exit_of("w1") == (-9, "SIGKILL")


def test_a_system_that_does_not_count(scene: Callable[[int], Scene]) -> None:
    it = scene(1)
    it.kills = None
    it.siblings.look()
    it.ends("w1", -9)
    assert it.siblings.exit_of("w1") == (-9, "SIGKILL")
    assert it.siblings.exit_of("stranger") == (None, None)
