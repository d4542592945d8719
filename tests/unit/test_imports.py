"""What importing the package costs everyone who only sends messages."""

from __future__ import annotations

import subprocess
import sys

HEAVY = {"apprise", "click", "fastapi", "peewee", "prometheus_client", "psycopg", "pymysql", "rich"}


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_loads_no_library_that_only_some_processes_need() -> None:
    loaded = run("import sys; from dramatiq_chaperone import *; Chaperone; print(*sys.modules)").split()

    assert HEAVY.isdisjoint(loaded)
    assert "dramatiq_chaperone.supervision.isolation" not in loaded  # for workers that have isolated actors


def test_nobody_pays_for_circuit_breakers_but_who_uses_one() -> None:
    loaded = run("import sys, dramatiq_chaperone; dramatiq_chaperone.Chaperone(); dramatiq_chaperone.breakers; print(*sys.modules)").split()

    assert {"pybreaker", "peewee"}.isdisjoint(loaded)


def test_the_package_of_breakers_is_the_function_too() -> None:
    assert run("import dramatiq_chaperone.breakers.sharing; from dramatiq_chaperone import breakers; print(breakers())").strip() == "[]"
    assert run("from dramatiq_chaperone import breaker, breakers; breaker('mail'); print(breakers()[0].service)").strip() == "mail"


def test_the_plugin_of_pytest_loads_nothing_that_gevent_would_have_to_patch() -> None:
    loaded = run(
        "import sys, pytest; before = set(sys.modules); import dramatiq_chaperone.testing; print(*set(sys.modules) - before)"
    ).split()

    assert {"dramatiq_chaperone", "dramatiq_chaperone.testing"} <= set(loaded)
    assert not [name for name in loaded if name in {"ssl", "asyncio", "multiprocessing", "queue"} or name.partition(".")[0] == "dramatiq"]


def test_every_public_name_is_there() -> None:
    import dramatiq_chaperone

    for name in dramatiq_chaperone.__all__:
        assert name in dir(dramatiq_chaperone)
        assert getattr(dramatiq_chaperone, name).__module__.startswith("dramatiq_chaperone.")
    assert not hasattr(dramatiq_chaperone, "chaperone")


def test_import_starts_no_thread() -> None:
    assert run("import threading; from dramatiq_chaperone import Chaperone; print(threading.active_count())").strip() == "1"
