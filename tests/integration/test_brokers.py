"""What is written down does not depend on the broker."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import dramatiq
import pytest
from dramatiq import Message
from dramatiq.common import current_millis
from dramatiq.middleware import Middleware, SkipMessage

from dramatiq_chaperone import current_job, heartbeat, records, report_progress
from dramatiq_chaperone.payload import payload_text
from tests.guarantees.conftest import MakeStage, Stage, make_stage
from tests.waiting import wait_until

__all__ = ["make_stage"]

QUICK = {"max_retries": 2, "min_backoff": 1, "max_backoff": 5}
ABOUT_JOBS = (records.ENQUEUED, records.STARTED, records.ENDED, records.SKIPPED, records.HEARTBEAT, records.DEAD)


class Skip(Middleware):
    """Skips what it is told to."""

    def before_process_message(self, broker: Any, message: Any) -> None:
        if message.options.get("skip"):
            raise SkipMessage("not today")


def told(entry: Any) -> tuple[Any, ...]:
    """What an entry says, without times and ids."""
    if isinstance(entry, records.Enqueued):
        payload = None if entry.payload is None else json.loads(payload_text(entry.payload) or "")
        if payload is not None:
            payload["options"].pop("redis_message_id", None)
            payload["options"].pop("eta", None)
        waits = (entry.eta is not None, entry.retry_at is not None)
        return ("enqueued", entry.retries, entry.priority, *waits, repr(payload), entry.payload_complete, entry.tenant)
    if isinstance(entry, records.Started):
        return ("started", entry.retries, entry.priority, entry.timeout_at is not None, entry.limits)
    if isinstance(entry, records.Ended):
        return ("ended", entry.retries, entry.outcome, entry.status, entry.error and entry.error[:2])
    if isinstance(entry, records.HeartbeatMade):
        return ("heartbeat", entry.source, entry.metadata, entry.progress_current, entry.progress_total)
    if isinstance(entry, records.Dead):
        return ("dead", entry.retries, entry.reason, entry.exception, entry.message, entry.payload_complete)
    return ("skipped", entry.retries)


def lives(stage: Stage) -> dict[str, list[tuple[Any, ...]]]:
    """What was written down of each job, by its first argument."""
    found = defaultdict(list)
    names = {}
    for kind in ABOUT_JOBS:
        for entry in stage.entries(kind):
            if isinstance(entry, records.Enqueued) and entry.payload is not None:
                names.setdefault(entry.job_id, json.loads(payload_text(entry.payload) or "")["args"][0])
            if hasattr(entry, "queue"):
                assert entry.queue == stage.queue
            found[names[entry.job_id]].append(told(entry))
    return {name: sorted(entries, key=repr) for name, entries in sorted(found.items())}


def play(stage: Stage) -> dict[str, list[tuple[Any, ...]]]:
    """Jobs of every kind."""
    parents = []

    @stage.actor(priority=3, tenant="acme")
    def well(name: str) -> None:
        job = current_job()
        assert job is not None
        heartbeat(step=1)
        report_progress(1, 2)
        parents.append(job.job_id)
        if name == "parent":
            well.send("child")

    @stage.actor(**QUICK)
    def recover(name: str) -> None:
        job = current_job()
        assert job is not None
        if not job.retries:
            raise ValueError("the first time")

    @stage.actor(**QUICK)
    def fail(name: str) -> None:
        raise ValueError("always")

    refuse = stage.actor(fail.fn, actor_name="refuse", throws=ValueError)
    old = stage.actor(well.fn, actor_name="old", max_age=1)
    stage.work()
    well.send("well")
    well.send("parent")
    well.send_with_options(args=("delayed",), delay=60)
    well.send_with_options(args=("skipped",), skip=True)
    well.send_with_options(args=("limited",), timeout=60)
    recover.send("recovered")
    fail.send("failed")
    refuse.send("refused")
    stage.broker.enqueue(old.message("old").copy(message_timestamp=current_millis() - 1000))
    stage.broker.enqueue(Message(queue_name=stage.queue, actor_name="nobody", args=("unknown",), kwargs={}, options={}))
    dramatiq.pipeline([well.message_with_options(args=("piped",), pipe_ignore=True)], broker=stage.broker).run()
    stage.join()
    stage.stop()
    wait_until(lambda: len(stage.entries(records.DEAD)) == 4)
    children = [entry for entry in stage.entries(records.ENQUEUED) if entry.parent_job_id]
    assert [entry.parent_job_id in parents for entry in children] == [True]
    return lives(stage)


@pytest.mark.parametrize("kind", ["redis", "rabbitmq"])
def test_the_same_is_written_down_as_with_the_stub_broker(make_stage: MakeStage, kind: str) -> None:
    found = []
    for each in ("stub", kind):
        stage = make_stage(each)
        stage.broker.add_middleware(Skip())
        found.append(play(stage))
    assert found[0] == found[1]
    assert len(found[0]) == 12
    assert found[0]["skipped"][-1] == ("skipped", 0)
    assert [entry[:3] for entry in found[0]["old"] if entry[0] == "dead"] == [("dead", 0, "age")]
    assert [entry[:3] for entry in found[0]["unknown"] if entry[0] == "dead"] == [("dead", 0, "unknown actor")]
    assert [entry[:3] for entry in found[0]["failed"] if entry[0] == "dead"] == [("dead", 3, "retries exhausted")]
