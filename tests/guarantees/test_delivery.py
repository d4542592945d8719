"""Messages: they arrive, as they were sent, at least once, and end where Dramatiq says."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import dramatiq
import pika
import pytest
from dramatiq import Message, PickleEncoder, Worker, get_encoder, set_encoder
from dramatiq.brokers.stub import StubBroker
from dramatiq.common import current_millis
from dramatiq.errors import QueueJoinTimeout
from dramatiq.middleware import AgeLimit, Middleware, Retries

from dramatiq_chaperone import records
from tests.conftest import StartProcess, StartWorker
from tests.guarantees.conftest import MakeStage, Same, Stage, plain
from tests.processes import ROOT, WorkerProcess
from tests.servers import delete_rabbitmq_queues
from tests.waiting import wait_until

QUICK = {"max_retries": 2, "min_backoff": 1, "max_backoff": 5}


class TestAcknowledgement:
    def test_a_message_is_acknowledged_after_its_actor_has_returned(self, each_stage: Stage) -> None:
        stage = each_stage
        going, reached = threading.Event(), threading.Event()

        @stage.actor
        def hold() -> None:
            reached.set()
            going.wait(10)

        message = hold.send()
        stage.work()
        assert reached.wait(10)
        assert "before_ack" not in stage.spy.of(message.message_id)
        going.set()
        stage.join()
        hooks = stage.spy.of(message.message_id)
        assert hooks.index("after_process_message") < hooks.index("before_ack") < hooks.index("after_ack")
        assert hooks.count("after_ack") == 1
        stage.stop()
        assert stage.waiting() == stage.dead() == []

    @pytest.mark.parametrize("kind", ["redis", "rabbitmq"])
    def test_a_message_whose_worker_was_killed_runs_again(
        self, kind: str, request: pytest.FixtureRequest, start_worker: StartWorker, start_process: StartProcess, tmp_path: Path
    ) -> None:
        runs, going = tmp_path / "runs", tmp_path / "going"
        queue = request.getfixturevalue("rabbitmq_queue")() if kind == "rabbitmq" else "default"
        env = {
            "BROKER_URL": request.getfixturevalue(f"{kind}_url"),
            "QUEUE": queue,
            "RUNS": str(runs),
            "CHAPERONE_STATE_DIR": str(tmp_path / "state"),
        }

        def start() -> WorkerProcess:
            return start_worker("tests.guarantees.killed_app", env=env, cwd=ROOT, threads=1)

        first = start()
        code = f"from tests.guarantees.killed_app import hold\nhold.send({str(going)!r})"
        assert start_process(sys.executable, "-c", code, env=env, cwd=ROOT).wait() == 0
        wait_until(runs.exists, timeout_s=20)
        os.kill(int(runs.read_text().split()[1]), signal.SIGKILL)
        first.wait()
        assert len(runs.read_text().splitlines()) == 1
        going.touch()
        start()
        wait_until(lambda: "done" in runs.read_text(), timeout_s=30, what="the second run")
        assert [line.split()[0] for line in runs.read_text().splitlines()] == ["start", "start", "done"]

    @pytest.mark.parametrize("kind", ["redis", "rabbitmq"])
    def test_what_a_stopped_worker_had_fetched_goes_back(self, make_stage: MakeStage, kind: str) -> None:
        stage = make_stage(kind)
        going, reached, ran = threading.Event(), threading.Event(), []

        @stage.actor
        def hold(number: int) -> None:
            reached.set()
            going.wait(10)
            ran.append(number)

        worker = stage.work(threads=1)
        for number in range(5):
            hold.send(number)
        assert reached.wait(10)
        wait_until(lambda: worker.work_queue.qsize() == 1, what="the prefetch")
        stopping = threading.Thread(target=worker.stop)
        stopping.start()
        wait_until(lambda: not worker.workers[0].running)
        going.set()
        stopping.join()
        assert len(ran) == 1
        stage._workers.clear()
        stage.run()
        assert sorted(ran) == list(range(5))


class TestTheMessageItself:
    def test_it_reaches_the_broker_byte_for_byte_as_without(self, same: Same, broker_kind: str) -> None:
        def scenario(stage: Stage) -> list[bytes]:
            actor = stage.actor(lambda *args, **kwargs: None, actor_name="work", max_retries=3)
            following = stage.actor(lambda *args: None, actor_name="following")
            actor.send(1, "ü", None, key={"a": [1.5, True]})
            actor.send_with_options(args=(2,), kwargs={"b": 2}, time_limit=5, mine="kept")
            dramatiq.pipeline([actor.message(3), following.message()], broker=stage.broker).run()
            dramatiq.group([actor.message(4), actor.message(5)], broker=stage.broker).run()
            actor.send_with_options(args=(6,), delay=60_000)
            messages = stage.waiting()
            assert len(messages) == 5
            return plain([*messages, *stage.delayed()])

        assert len(same(scenario, broker_kind)) == 6

    def test_its_retries_do_too(self, same: Same, broker_kind: str) -> None:
        def scenario(stage: Stage) -> list[bytes]:
            @stage.actor(**QUICK)
            def fail(number: int) -> None:
                raise ValueError(number)

            fail.send_with_options(args=(1,), mine="kept")
            stage.run(threads=1)
            # The consumers of a queue and of its delayed messages race, and so do the ids that Redis gives.
            return sorted(re.sub(rb'"redis_message_id":"[^"]*"', b"", each) for each in plain(stage.spy.wire))

        wire = same(scenario, broker_kind)
        assert len([each for each in wire if b'"traceback"' in each]) == 4

    def test_options_of_the_users_own_survive_a_retry(self, each_stage: Stage) -> None:
        seen: list[Any] = []

        class Look(Middleware):
            def before_process_message(self, broker: Any, message: Any) -> None:
                seen.append((message.options.get("mine"), message.message_id, message.options.get("retries", 0)))

        stage = each_stage
        stage.broker.add_middleware(Look())

        @stage.actor(**QUICK)
        def fail() -> None:
            raise ValueError

        message = fail.send_with_options(mine={"a": 1})
        stage.run()
        assert seen == [({"a": 1}, message.message_id, retries) for retries in range(3)]

    def test_a_custom_encoder(self, same: Same) -> None:
        before = get_encoder()
        set_encoder(PickleEncoder())
        try:

            def scenario(stage: Stage) -> list[Any]:
                seen: list[Any] = []
                stage.actor(seen.append, actor_name="keep").send({1, 2, timedelta(seconds=1)})
                stage.run()
                return seen

            assert same(scenario) == [{1, 2, timedelta(seconds=1)}]
        finally:
            set_encoder(before)


class TestOrder:
    def test_a_lower_priority_number_goes_first(self, each_stage: Stage) -> None:
        stage, ran = each_stage, []
        going, reached = threading.Event(), threading.Event()

        @stage.actor
        def hold() -> None:
            reached.set()
            going.wait(10)

        low = stage.actor(lambda: ran.append("low"), actor_name="low", priority=10)
        high = stage.actor(lambda: ran.append("high"), actor_name="high", priority=-10)
        worker = stage.work(threads=1, prefetch=10)
        hold.send()
        assert reached.wait(10)
        low.send()
        high.send()
        wait_until(lambda: worker.work_queue.qsize() == 2, what="both to be fetched")
        going.set()
        stage.join()
        assert ran == ["high", "low"]

    def test_messages_of_one_priority_run_as_they_came(self, stage: Stage) -> None:
        ran: list[int] = []
        keep = stage.actor(ran.append, actor_name="keep")
        for number in range(50):
            keep.send(number)
        stage.run(threads=1)
        assert ran == list(range(50))

    def test_a_worker_takes_only_the_queues_that_it_was_given(self, each_stage: Stage) -> None:
        stage, ran = each_stage, []
        mine = stage.actor(lambda: ran.append("mine"), actor_name="mine")
        other = stage.actor(lambda: ran.append("other"), actor_name="other", queue_name=f"{stage.queue}_other")
        other.send()
        mine.send()
        stage.work(queues={stage.queue})
        wait_until(lambda: ran == ["mine"])
        wait_until(lambda: stage.spy.under_way == 1)
        stage.stop()
        assert ran == ["mine"]
        stage.work(queues={other.queue_name})
        stage.join()
        assert ran == ["mine", "other"]
        stage.stop()
        stage.broker.flush(other.queue_name)
        if stage.kind == "rabbitmq":
            delete_rabbitmq_queues(stage.url, other.queue_name)


class TestDelay:
    def test_a_delayed_message_waits_for_its_time(self, each_stage: Stage) -> None:
        ran: list[int] = []
        late = each_stage.actor(lambda sent: ran.append(current_millis() - sent), actor_name="late")
        late.send_with_options(args=(current_millis(),), delay=150)
        late.send_with_options(args=(current_millis(),), delay=timedelta(milliseconds=250))
        each_stage.run()
        assert len(ran) == 2
        assert 150 <= ran[0] < 5000
        assert 250 <= ran[1] < 5000

    def test_it_waits_in_the_delay_queue_and_then_runs_once(self, each_stage: Stage) -> None:
        stage, ran = each_stage, []
        late = stage.actor(lambda: ran.append(1), actor_name="late")
        message = late.send_with_options(delay=100)
        assert message.queue_name == f"{stage.queue}.DQ"
        assert "eta" in message.options
        stage.run()
        hooks = stage.spy.of(message.message_id)
        assert hooks.count("before_delay_message") == hooks.count("before_process_message") == 1
        assert hooks.count("after_enqueue") == hooks.count("after_ack") == 2
        assert ran == [1]

    def test_delayed_messages_run_by_their_time(self, stage: Stage) -> None:
        ran: list[int] = []
        late = stage.actor(ran.append, actor_name="late")
        for delay in (300, 100, 200):
            late.send_with_options(args=(delay,), delay=delay)
        stage.run(threads=1)
        assert ran == [100, 200, 300]


class TestDeadLetters:
    def test_they_are_the_same_byte_for_byte(self, same: Same, broker_kind: str) -> None:
        """Retries exhausted, an expected exception, one that a middleware failed, one too old, and an unknown actor."""

        class Refuse(Middleware):
            def before_process_message(self, broker: Any, message: Any) -> None:
                if message.actor_name == "refused":
                    message.fail()

        def scenario(stage: Stage) -> list[bytes]:
            @stage.actor(**QUICK)
            def fail(number: int) -> None:
                raise ValueError(number)

            @stage.actor(throws=KeyError)
            def throw() -> None:
                raise KeyError

            refused = stage.actor(lambda: None, actor_name="refused")
            old = stage.actor(lambda: None, actor_name="old", max_age=1)
            stage.work(threads=1)
            for message in (
                fail.message(1),
                throw.message(),
                refused.message(),
                old.message().copy(message_timestamp=current_millis() - 1000),
                Message(queue_name=stage.queue, actor_name="nobody", args=(1,), kwargs={}, options={"mine": 1}),
            ):
                stage.broker.enqueue(message)
                stage.join()
            stage.stop()
            return plain(stage.dead())

        dead = same(scenario, broker_kind, middleware=lambda: [AgeLimit(), Retries(), Refuse()])
        assert [json.loads(each)["actor_name"] for each in dead] == ["fail", "throw", "refused", "old", "nobody"]

    def test_a_message_for_an_unknown_actor_is_a_dead_letter(self, each_stage: Stage) -> None:
        stage = each_stage
        stage.work()
        message = stage.broker.enqueue(Message(queue_name=stage.queue, actor_name="nobody", args=(), kwargs={}, options={}))
        stage.join()
        assert stage.spy.of(message.message_id)[-2:] == ["before_nack", "after_nack"]
        assert "before_process_message" not in stage.spy.of(message.message_id)
        stage.stop()
        assert len(stage.dead()) == 1

    def test_a_message_that_is_too_old_does_not_run(self, each_stage: Stage) -> None:
        stage, ran = each_stage, []
        old = stage.actor(lambda: ran.append("old"), actor_name="old", max_age=50)
        young = stage.actor(lambda: ran.append("young"), actor_name="young", max_age=600_000)
        long_ago = current_millis() - 1000
        stage.broker.enqueue(old.message().copy(message_timestamp=long_ago))
        stage.broker.enqueue(young.message().copy(message_timestamp=long_ago))
        stage.broker.enqueue(young.message_with_options(max_age=50).copy(message_timestamp=long_ago))
        stage.run()
        assert ran == ["young"]
        stage.stop()
        assert len(stage.dead()) == 2

    def test_what_cannot_be_decoded_is_a_dead_letter_and_stops_nothing(
        self, make_stage: MakeStage, rabbitmq_url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        stage, ran = make_stage("rabbitmq"), []
        actor = stage.actor(lambda: ran.append(1), actor_name="work")
        actor.send()
        with contextlib.closing(pika.BlockingConnection(pika.URLParameters(rabbitmq_url))) as connection:
            connection.channel().basic_publish(exchange="", routing_key=stage.queue, body=b"no message")
        actor.send()
        stage.run()
        assert ran == [1, 1]
        stage.stop()
        assert stage.dead() == [b"no message"]


class TestTheStubBroker:
    def test_join_raises_what_the_actor_raised(self, stage: Stage) -> None:
        broker = stage.broker
        assert isinstance(broker, StubBroker)

        class MyError(Exception):
            pass

        @stage.actor(max_retries=0)
        def fail() -> None:
            raise MyError("mine")

        fail.send()
        stage.work()
        with pytest.raises(MyError, match="mine"):
            broker.join(stage.queue)
        broker.join(stage.queue, fail_fast=False)
        broker.flush_all()
        broker.join(stage.queue)

    def test_join_gives_up_in_time(self, stage: Stage) -> None:
        broker = stage.broker
        assert isinstance(broker, StubBroker)
        stage.actor(lambda: None, actor_name="never").send()
        with pytest.raises(QueueJoinTimeout):
            broker.join(stage.queue, timeout=50)


class TestTheWorker:
    def test_it_finishes_what_runs_before_it_stops(self, each_stage: Stage) -> None:
        stage, done, reached = each_stage, [], threading.Event()

        @stage.actor
        def slow() -> None:
            reached.set()
            time.sleep(0.3)
            done.append(1)

        slow.send()
        stage.work()
        assert reached.wait(10)
        stage.stop()
        assert done == [1]
        assert stage.spy.under_way == 0

    def test_paused_it_runs_nothing_and_resumed_it_goes_on(self, stage: Stage) -> None:
        ran: list[int] = []
        keep = stage.actor(ran.append, actor_name="keep")
        worker: Worker = stage.work()
        keep.send(1)
        stage.join()
        worker.pause()
        keep.send(2)
        assert [each.paused_event.is_set() for each in worker.workers] == [True, True]
        assert ran == [1]
        worker.resume()
        stage.join()
        assert ran == [1, 2]

    def test_a_flushed_queue_is_empty(self, each_stage: Stage) -> None:
        ran: list[int] = []
        keep = each_stage.actor(ran.append, actor_name="keep")
        keep.send(1)
        keep.send_with_options(args=(2,), delay=10)
        each_stage.broker.flush_all()
        if each_stage.kind == "stub":
            assert each_stage.delayed() == []
        keep.send(3)
        each_stage.work()
        wait_until(lambda: ran == [3])
        assert len(each_stage.entries(records.ENQUEUED)) == 3
