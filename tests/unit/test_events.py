from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dramatiq_chaperone import events
from dramatiq_chaperone.events import (
    EVENTS,
    Event,
    JobEvent,
    JobStuck,
    JobTimeout,
    NotificationFailed,
    NotificationSent,
    WorkerStopped,
    delivery,
)
from dramatiq_chaperone.service import internal_errors

NOW = datetime(2026, 1, 2, tzinfo=UTC)
STUCK = JobStuck(job_id="1", actor_name="resize", stuck_duration=90.0, last_heartbeat=NOW)
TIMEOUT = JobTimeout(job_id="2", timeout_seconds=10.0, actual_duration=11.5)


@pytest.fixture(autouse=True)
def nobody_listens():
    yield
    assert events.finish_events()
    delivery._handlers.clear()
    internal_errors.clear()
    delivery._events.dropped = 0


# --- the table


def test_every_event_is_in_the_table_frozen_documented_and_by_keyword():
    kinds = [each for each in vars(events).values() if isinstance(each, type) and issubclass(each, Event)]
    assert {each for each in kinds if each.__name__ not in {"Event", "JobEvent", "WorkerEvent"}} == set(EVENTS)
    for kind in EVENTS:
        assert kind.__doc__.endswith(".")
        assert kind.__dataclass_params__.frozen
        assert all(each.kw_only for each in dataclasses.fields(kind))


def test_what_happens_at_every_message_is_not_stored():
    assert {kind.__name__ for kind, stored in EVENTS.items() if not stored} == {
        *("JobSupervisionStarted", "JobSupervisionEnded", "HeartbeatReceived", "HeartbeatMissed")
    }
    assert events.is_stored(JobStuck)
    assert not events.is_stored(events.HeartbeatReceived)
    assert not events.is_stored(dict)


def test_second_names_have_the_value_of_the_first():
    assert (STUCK.supervision_id, STUCK.job_class) == ("1", "resize")
    assert (STUCK.stuck_duration, STUCK.stuck_duration_ms, STUCK.last_heartbeat_at) == (90.0, 90_000.0, NOW)
    assert (TIMEOUT.timeout, TIMEOUT.duration) == (10.0, 11.5)
    assert JobStuck(job_id="1", supervision_id="2", stuck_duration=0.0).supervision_id == "2"
    violation = events.ResourceViolationDetected(job_id="1", violation_type="memory", limit=512, actual=600, exceeded_by=88)
    assert violation.type == "memory"


def test_events_can_be_compared_and_written_as_json():
    assert JobStuck(job_id="1", actor_name="resize", stuck_duration=90.0, last_heartbeat=NOW) == STUCK
    assert json.loads(json.dumps(dataclasses.asdict(STUCK), default=str))["supervision_id"] == "1"


# --- subscribing


def test_handlers_hear_of_their_events_only_in_the_order_of_publishing():
    heard = []

    @events.on(JobStuck)
    def handler(event):
        heard.append(event)

    events.on(JobTimeout, heard.append)
    for event in (STUCK, WorkerStopped(worker_id="w", stopped_at=NOW), TIMEOUT, STUCK):
        events.publish(event)
    assert events.finish_events()
    assert heard == [STUCK, TIMEOUT, STUCK]
    assert handler.__name__ == "handler"


def wait_until(condition):
    done = threading.Event()
    for _ in range(1000):
        if condition():
            return
        done.wait(0.01)
    pytest.fail("it did not happen")


def test_a_handler_never_runs_in_the_thread_that_publishes():
    threads = []
    events.on(JobStuck, lambda event: threads.append(threading.current_thread().name))
    events.publish(STUCK)
    wait_until(lambda: threads)
    assert threads == ["chaperone-events"]


def test_nothing_runs_where_nobody_listens():
    events.publish(STUCK)
    assert not events.has_subscribers(JobStuck)
    assert not delivery._events.is_running
    assert not any(thread.name == "chaperone-events" for thread in threading.enumerate())


def test_a_subscription_can_be_ended():
    heard = []
    end = events.on(JobStuck, heard.append)
    other = events.on(JobStuck, lambda event: heard.append("other"))
    end()
    end()
    events.publish(STUCK)
    assert events.finish_events()
    assert heard == ["other"]
    other()
    assert not events.has_subscribers(JobStuck)


def test_a_whole_family_can_be_subscribed_to():
    heard = []
    events.on(JobEvent, heard.append)
    assert events.has_subscribers(JobTimeout)
    assert not events.has_subscribers(WorkerStopped)
    end = events.on(Event, heard.append)
    assert all(events.has_subscribers(kind) for kind in EVENTS)
    end()
    assert not events.has_subscribers(JobStuck), "one function, one subscription"


def test_a_notification_that_failed_was_not_sent():
    events.on(NotificationSent, print)
    assert not events.has_subscribers(NotificationFailed)


@pytest.mark.parametrize("kind", ["JobStuck", dict, JobStuck(job_id="1", stuck_duration=1.0), None, object])
def test_only_events_can_be_subscribed_to(kind):
    with pytest.raises(TypeError, match="is not an event"):
        events.on(kind, print)


def test_only_what_can_be_called_can_subscribe():
    with pytest.raises(TypeError, match="cannot be called"):
        events.on(JobStuck, 3)


def a_function(event):
    pass


class Callable:
    def __call__(self, event):
        pass


def test_the_module_of_each_handler_is_known():
    events.on(JobStuck, print)
    events.on(JobStuck, a_function)
    events.on(JobStuck, Callable())
    assert events.handler_modules() == {"JobStuck": sorted(["builtins", __name__])}


# --- handlers


def test_coroutine_functions_run_on_one_loop():
    loops, heard = set(), []

    @events.on(JobStuck)
    async def handler(event):
        loops.add(asyncio.get_running_loop())
        await asyncio.sleep(0)
        heard.append(event)

    for _ in range(3):
        events.publish(STUCK)
    wait_until(lambda: len(heard) == 3)
    assert len(loops) == 1
    assert events.finish_events()
    assert loops.pop().is_closed()


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_a_handler_that_fails_is_counted_and_stops_nothing(error, caplog):
    heard = []

    @events.on(JobStuck)
    def failing(event):
        raise error("boom")

    @events.on(JobStuck)
    async def failing_too(event):
        raise error("boom")

    events.on(JobStuck, heard.append)
    for _ in range(3):
        events.publish(STUCK)
    assert events.finish_events()
    assert heard == [STUCK] * 3
    assert sorted(internal_errors.values()) == [3, 3]
    assert any("failing" in name for name in internal_errors)
    assert "boom" in caplog.text
    assert len(caplog.records) == 2


def test_what_is_too_much_is_dropped_and_counted(monkeypatch):
    monkeypatch.setattr(delivery, "CAPACITY", 5)
    in_handler, go_on, heard = threading.Event(), threading.Event(), []

    @events.on(JobStuck)
    def slow(event):
        in_handler.set()
        go_on.wait(10)
        heard.append(event)

    events.publish(STUCK)
    assert in_handler.wait(10)
    for _ in range(8):
        events.publish(STUCK)
    assert events.dropped_events() == 3
    assert not events.finish_events(timeout_s=0.01)
    go_on.set()
    assert events.finish_events()
    assert len(heard) == 6


def test_a_handler_may_publish():
    heard = []
    events.on(JobStuck, lambda event: events.publish(TIMEOUT))
    events.on(JobTimeout, heard.append)
    events.publish(STUCK)
    wait_until(lambda: heard == [TIMEOUT])


def test_after_it_was_finished_the_next_event_starts_it_again():
    heard = []
    events.on(JobStuck, heard.append)
    for _ in range(3):
        events.publish(STUCK)
        assert events.finish_events()
    assert len(heard) == 3


def in_a_process(code):
    path = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONWARNINGS": "ignore"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, cwd=path, env=env).stdout


def test_a_forked_child_hears_of_its_own_events_only():
    code = """
import os, threading
from dramatiq_chaperone.events import *
heard, first = [], threading.Event()
@on(JobStuck)
async def handler(event):
    heard.append(event.job_id); first.set()
publish(JobStuck(job_id="parent", stuck_duration=1.0))
assert first.wait(10)
pid = os.fork()
if pid == 0:
    heard.clear()
    publish(JobStuck(job_id="child", stuck_duration=1.0))
    ok = finish_events() and heard == ["child"]
    os._exit(0 if ok else 1)
assert os.waitpid(pid, 0)[1] == 0
publish(JobStuck(job_id="again", stuck_duration=1.0))
assert finish_events() and heard == ["parent", "again"], heard
"""
    in_a_process(code)


def test_what_was_published_last_is_handled_before_the_process_ends():
    code = """
from dramatiq_chaperone.events import *
on(JobStuck, lambda event: print(event.job_id))
publish(JobStuck(job_id="last", stuck_duration=1.0))
"""
    assert in_a_process(code) == "last\n"


def test_importing_events_loads_no_database():
    in_a_process("import sys, dramatiq_chaperone.events.kinds as k; assert not {'peewee', 'psutil'} & set(sys.modules)")


@pytest.mark.parametrize("kind", [each for each in events.EVENTS if events.is_stored(each)])
def test_a_stored_event_comes_back_as_it_was(kind):
    given = {
        each.name: SAMPLES[next(name for name in SAMPLES if name in str(each.type))]
        for each in dataclasses.fields(kind)
        if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
    }
    event = kind(**given)
    stored = json.loads(json.dumps(dataclasses.asdict(event), default=str))
    assert events.from_stored(kind.__name__, stored) == event
    assert events.from_stored(kind.__name__, {**stored, "later": 1}) == event, "what a later release added"


SAMPLES = {"datetime": NOW, "tuple": ("a", "b"), "bool": True, "int": 3, "float": 1.5, "str": "text", "Mapping": {"a": 1}}


def test_an_event_of_another_release_is_nothing():
    assert events.from_stored("Nonesuch", {}) is None
    assert events.from_stored("JobStuck", {}) is None


def test_handlers_of_modules_that_are_not_imported_here_hear_of_what_is_published_here(tmp_path):
    (tmp_path / "listeners.py").write_text(
        "from dramatiq_chaperone.events import *\nprint('imported')\non(JobStuck, lambda event: print(event.job_id))\n"
    )
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from dramatiq_chaperone.events import *
import_when_needed({{"JobStuck": ["listeners", "__main__"], "JobTimeout": ["no_such_module"]}})
publish(JobLost(job_id="unheard", lost_at=None))
print("not yet")
publish(JobStuck(job_id="first", stuck_duration=1.0))
publish(JobStuck(job_id="second", stuck_duration=1.0))
publish(JobTimeout(job_id="third", timeout_seconds=1.0, actual_duration=2.0))
"""
    assert in_a_process(code).split("\n")[:-1] == ["not yet", "imported", "first", "second"]
