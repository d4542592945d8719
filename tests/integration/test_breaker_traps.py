"""What pybreaker does on a storage that processes share, and ours must not: each of these fails on plain pybreaker and Redis."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, Protocol
from urllib.parse import urlsplit

import pybreaker
import pytest
import redis

from dramatiq_chaperone import breaker
from dramatiq_chaperone.breakers.registry import registry
from dramatiq_chaperone.settings import Settings
from dramatiq_chaperone.store import open_store
from tests.contracts.conftest import drop_tables
from tests.proxy import Proxy
from tests.waiting import wait_until

MakeProxy = Callable[[str, int], Proxy]


class Shared(Protocol):
    """Breakers over one storage, which is behind a proxy; two failures open one, for a minute."""

    storage: Proxy

    def get(self, name: str) -> pybreaker.CircuitBreaker:
        """That of this process."""

    def fail_elsewhere(self, name: str) -> None:
        """A call of another process, which knows how the circuit stands, fails."""

    def between(self, step: Callable[[], None]) -> None:
        """Take *step* once, when the next call here has read how the circuit stands and has not gone on yet."""


ELSEWHERE = """
import time
from dramatiq_chaperone import breaker
from dramatiq_chaperone.breakers.registry import registry
svc = breaker({name!r}, {options})
while svc.status.state != "half_open": time.sleep(0.01)
try: svc.call(lambda: 1 / 0)
except ZeroDivisionError: registry().close()
"""


class Ours:
    options = {"failure_threshold": 2, "success_threshold": 1, "timeout": 60, "half_open_attempts": 1}  # noqa: RUF012 - never changed

    def __init__(self, storage: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
        self.storage, self._monkeypatch = storage, monkeypatch

    def get(self, name: str) -> pybreaker.CircuitBreaker:
        return breaker(name, **self.options)  # type: ignore[arg-type]  # they are what they have to be

    def fail_elsewhere(self, name: str) -> None:
        code = ELSEWHERE.format(name=name, options=", ".join(f"{key}={value}" for key, value in self.options.items()))
        subprocess.run([sys.executable, "-W", "error", "-c", code], timeout=60, check=True)

    def between(self, step: Callable[[], None]) -> None:
        storage = registry()._database
        assert storage is not None
        apply = storage.apply

        def after(*arguments: Any, **more: Any) -> Any:
            self._monkeypatch.setattr(storage, "apply", apply)
            step()
            return apply(*arguments, **more)

        self._monkeypatch.setattr(storage, "apply", after)


class _Redis(redis.Redis):
    """Does something once, after it has read the state."""

    step: Callable[[], None] | None = None

    def get(self, name: Any) -> Any:
        found = super().get(name)
        if name.endswith(":state") and self.step is not None:
            step, self.step = self.step, None
            step()
        return found


class Plain:
    def __init__(self, storage: Proxy) -> None:
        self.storage = storage
        self._client = self._connect()
        self._breakers: dict[str, pybreaker.CircuitBreaker] = {}

    def _connect(self) -> _Redis:
        return _Redis(port=self.storage.port, retry=None)

    def _make(self, name: str, client: _Redis) -> pybreaker.CircuitBreaker:
        storage = pybreaker.CircuitRedisStorage(pybreaker.STATE_CLOSED, client)
        return pybreaker.CircuitBreaker(2, 60, state_storage=storage, name=name, throw_new_error_on_trip=False)

    def get(self, name: str) -> pybreaker.CircuitBreaker:
        if name not in self._breakers:
            self._breakers[name] = self._make(name, self._client)
        return self._breakers[name]

    def fail_elsewhere(self, name: str) -> None:
        with contextlib.closing(self._connect()) as client:
            fail(self._make(name, client))

    def between(self, step: Callable[[], None]) -> None:
        self._client.step = step

    def close(self) -> None:
        self._client.close()


@pytest.fixture
def ours(postgres_url: str, proxy: MakeProxy, chaperone_env: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Iterator[Ours]:
    prefix = f"traps{os.getpid()}_"
    chaperone_env(DATABASE_URL=postgres_url, AUTO_MIGRATE=1, TABLE_PREFIX=prefix)
    store = open_store(Settings.load(), create=True)
    parts = urlsplit(postgres_url)
    storage = proxy(parts.hostname or "", parts.port or 5432)
    netloc = f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{storage.port}".lstrip("@")
    chaperone_env(DATABASE_URL=parts._replace(netloc=netloc).geturl(), AUTO_MIGRATE=1, TABLE_PREFIX=prefix)
    registry().clear()
    yield Ours(storage, monkeypatch)
    registry().clear()
    drop_tables(store)
    store.close()


@pytest.fixture
def plain(redis_url: str, proxy: MakeProxy) -> Iterator[Plain]:
    parts = urlsplit(redis_url)
    with contextlib.closing(Plain(proxy(parts.hostname or "", parts.port or 6379))) as made:
        yield made


@pytest.fixture(params=["ours", pytest.param("plain", marks=pytest.mark.xfail(raises=AssertionError))])
def shared(request: pytest.FixtureRequest) -> Shared:
    found: Shared = request.getfixturevalue(request.param)
    return found


def fail(svc: pybreaker.CircuitBreaker, times: int = 1) -> None:
    def call() -> None:
        raise OSError("no")

    for _ in range(times):
        with pytest.raises(OSError, match="no"):
            svc.call(call)


def is_refused(svc: pybreaker.CircuitBreaker) -> bool:
    try:
        svc.call(int)
    except pybreaker.CircuitBreakerError:
        return True
    return False


def test_a_closed_call_costs_no_round_trip(shared: Shared) -> None:
    svc = shared.get("payments")
    fail(svc)  # the storage is connected from now on
    before = shared.storage.forwarded
    for _ in range(300):
        svc.call(int)
    assert shared.storage.forwarded - before < 100, "not one in three calls"


def test_nobody_is_let_in_on_what_was_true_before(shared: Shared) -> None:
    """The trial of another process fails between the look at the circuit and the step: the service is left alone again."""
    svc, called = shared.get("payments"), []
    fail(svc)
    svc.half_open()
    shared.between(lambda: shared.fail_elsewhere("payments"))
    with contextlib.suppress(pybreaker.CircuitBreakerError):
        svc.call(called.append, 1)
    assert called == []
    assert svc.current_state == "open"


def test_what_is_open_stays_open_when_the_storage_goes_away(shared: Shared) -> None:
    svc = shared.get("payments")
    fail(svc, 2)
    assert is_refused(svc)
    shared.storage.cut()
    assert is_refused(svc)
    if (storage := registry()._database) is not None:
        wait_until(lambda: storage.is_away)
    assert is_refused(svc)


def test_two_services_in_one_storage_are_two(shared: Shared) -> None:
    fail(shared.get("payments"), 2)
    assert is_refused(shared.get("payments"))
    assert not is_refused(shared.get("mail"))
