"""A fork does not cut in two what its child could never finish."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Callable

import pytest

from dramatiq_chaperone import service
from dramatiq_chaperone.service import unforkable


def fork(in_child: Callable[[], bool]) -> bool:
    """Whether *in_child* says so, in a child."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads
        child = os.fork()
    if not child:
        try:
            os._exit(0 if in_child() else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


class Inside(threading.Thread):
    """Is inside until it is told to leave, or for *seconds*."""

    def __init__(self, seconds: float) -> None:
        super().__init__(daemon=True)
        self.seconds = seconds
        self.is_inside, self.may_leave = threading.Event(), threading.Event()
        self.left_at = 0.0

    def run(self) -> None:
        with unforkable, unforkable:
            self.is_inside.set()
            self.may_leave.wait(self.seconds)
            self.left_at = time.monotonic()


def enter_and_leave() -> bool:
    """In a child this must not wait for anybody."""
    with unforkable:
        return not threading.active_count() > 1


def test_it_waits_for_whoever_is_inside() -> None:
    inside = Inside(0.2)
    inside.start()
    assert inside.is_inside.wait(5)
    assert fork(lambda: 0 < inside.left_at <= time.monotonic() and enter_and_leave())
    inside.join()


def test_it_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "FORK_WAIT_S", 0.05)
    inside = Inside(30)
    inside.start()
    assert inside.is_inside.wait(5)
    try:
        assert fork(enter_and_leave)
        assert inside.is_alive()
    finally:
        inside.may_leave.set()
        inside.join()
    assert fork(enter_and_leave)


def test_whoever_is_inside_may_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "FORK_WAIT_S", 0.05)
    with unforkable:
        assert fork(enter_and_leave)
    assert fork(enter_and_leave)
