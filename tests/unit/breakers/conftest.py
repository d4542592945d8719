"""A process without breakers, and one whose time the test has in its hands."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dramatiq_chaperone.breakers.registry import registry
from dramatiq_chaperone.breakers.sharing import Clock


@pytest.fixture(autouse=True)
def no_breakers(chaperone_env: object) -> Iterator[None]:
    """Every test begins without any, and with the default settings."""
    registry().clear()
    yield
    registry().clear()


class Hands(Clock):
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.at = 1_790_000_000.0

    def now(self) -> float:
        return self.at

    @property
    def ahead_s(self) -> float:
        return 0.0


@pytest.fixture
def clock(no_breakers: None, monkeypatch: pytest.MonkeyPatch) -> Hands:
    """The clock of breakers with ``storage="memory"``, and of their calls: how long ago one was must not depend on the machine."""
    hands = Hands()
    registry()._memory.clock = hands
    for module in ("breaker", "gate"):
        monkeypatch.setattr(f"dramatiq_chaperone.breakers.{module}.monotonic", lambda: hands.at)
    return hands
