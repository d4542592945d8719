"""Actors and the middleware around them, Dramatiq's own and the user's."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import dramatiq
import pytest
from dramatiq import GenericActor
from dramatiq.brokers.stub import StubBroker
from dramatiq.errors import ActorNotFound
from dramatiq.middleware import AsyncIO, CurrentMessage, Middleware, MiddlewareError, Retries, SkipMessage

from dramatiq_chaperone import Chaperone, records
from tests.guarantees.conftest import HOOKS, MakeStage, Same, Spy, Stage
from tests.processes import ROOT
from tests.waiting import wait_until


class TestActors:
    def test_an_actor_that_is_called_runs_at_once(self, stage: Stage) -> None:
        add = stage.actor(lambda x, y=1: x + y, actor_name="add")
        seen: list[int] = []
        outer = stage.actor(lambda: seen.append(add(5, y=6)), actor_name="outer")
        assert add(1, y=2) == 3
        outer.send()
        stage.run()
        assert add(1) == 2
        assert seen == [11]
        assert stage.spy.count("before_process_message") == 1
        with pytest.raises(TypeError):
            add()

    def test_what_an_actor_is(self, same: Same) -> None:
        def work() -> None:
            """Works."""

        def scenario(stage: Stage) -> list[Any]:
            actor = stage.actor(work, priority=7, max_retries=3)
            found = [actor.actor_name, actor.queue_name, actor.priority, actor.options, repr(actor), str(actor), actor.fn is work]
            actor.send()
            stage.run()
            found += [actor.fn.__name__, actor.fn.__doc__, actor.logger.name]
            stage.stop()
            return [*found, actor.fn is work]

        assert same(scenario)[-1] is True

    def test_a_class_may_be_an_actor(self, same: Same, broker_kind: str) -> None:
        def scenario(stage: Stage) -> list[Any]:
            seen: list[Any] = []

            class Base(GenericActor):
                class Meta:
                    abstract = True
                    broker = stage.broker
                    queue_name = stage.queue
                    max_retries = 1
                    min_backoff = 1

                def name(self) -> str:
                    raise NotImplementedError

                def perform(self, number: int) -> None:
                    seen.append((self.name(), number))
                    if seen.count((self.name(), number)) == 1:
                        raise ValueError

            class One(Base):
                def name(self) -> str:
                    return "one"

            class Two(Base):
                def name(self) -> str:
                    return "two"

            One.send(1)
            Two.send(2)
            stage.run()
            assert (One.actor_name, Two.options) == ("One", {"max_retries": 1, "min_backoff": 1})
            return sorted(seen)

        assert same(scenario, broker_kind) == [("one", 1)] * 2 + [("two", 2)] * 2

    def test_an_actor_of_a_class_of_its_own(self, same: Same) -> None:
        class Loud(dramatiq.Actor[Any, Any]):
            def __call__(self, *args: Any, **kwargs: Any) -> Any:
                return super().__call__(*args, **{**kwargs, "loud": True})

        def scenario(stage: Stage) -> list[Any]:
            seen: list[Any] = []
            stage.actor(lambda loud=False: seen.append(loud), actor_name="work", actor_class=Loud).send()
            stage.run()
            return seen

        assert same(scenario) == [True]

    def test_what_is_not_known_is_refused(self, same: Same) -> None:
        def scenario(stage: Stage) -> list[str]:
            errors = []
            stage.actor(lambda: None, actor_name="twice").send()
            for options in (
                {"actor_name": "twice"},
                {"actor_name": "odd", "no_such_option": 1},
                {"actor_name": "q", "queue_name": "no queue"},
            ):
                with pytest.raises(ValueError) as raised:
                    stage.actor(lambda: None, **options)
                errors.append(str(raised.value))
            with pytest.raises(ActorNotFound):
                stage.broker.get_actor("nobody")
            return errors

        assert len(same(scenario)) == 3

    def test_an_actor_that_is_declared_while_the_worker_runs(self, each_stage: Stage) -> None:
        each_stage.work()
        ran: list[int] = []
        each_stage.actor(ran.append, actor_name="late").send(1)
        each_stage.join()
        assert ran == [1]
        wait_until(lambda: [entry.status for entry in each_stage.entries(records.ENDED)] == ["completed"])
        assert len(each_stage.entries(records.STARTED)) == 1

    def test_asyncio_actors_share_one_loop_and_the_callers_context(self, same: Same, broker_kind: str) -> None:
        def scenario(stage: Stage) -> list[Any]:
            seen: list[Any] = []
            loops = set()
            together = asyncio.Event()

            @stage.actor
            async def meet(number: int) -> None:
                loops.add(id(asyncio.get_running_loop()))
                message = CurrentMessage.get_current_message()
                assert message is not None
                seen.append(message.args)
                if len(seen) == 2:
                    together.set()
                await asyncio.wait_for(together.wait(), 10)

            meet.send(1)
            meet.send(2)
            stage.run(threads=2)
            assert len(loops) == 1
            return sorted(seen)

        assert same(scenario, broker_kind, middleware=lambda: [AsyncIO(), CurrentMessage(), Retries(max_retries=0)]) == [(1,), (2,)]


class TestMiddleware:
    def test_every_hook_is_called_as_often_and_in_the_same_order(self, same: Same, broker_kind: str) -> None:
        """Of two middleware, one on each side of Dramatiq's own."""

        def scenario(stage: Stage) -> dict[str, list[tuple[str, str]]]:
            calls: dict[str, list[tuple[str, str]]] = {}

            class Named(Spy):
                def __init__(self, name: str) -> None:
                    super().__init__()
                    self.name = name

                def note(self, hook: str, subject: Any, *args: Any) -> None:
                    thread = threading.current_thread()  # between threads there is no order
                    calls.setdefault(getattr(thread, "queue_name", type(thread).__name__), []).append((self.name, hook))

            stage.broker.add_middleware(Named("first"), before=Retries)
            stage.broker.add_middleware(Named("last"))

            @stage.actor(max_retries=1, min_backoff=1, max_backoff=2)
            def work(is_bad: bool) -> None:
                if is_bad:
                    raise ValueError

            stage.boot()
            stage.work(threads=1)
            for is_bad in (False, True):
                work.send(is_bad)
                stage.join()
            stage.stop()
            return calls

        calls = same(scenario, broker_kind, middleware=lambda: [Retries()])
        seen = {hook for each in calls.values() for _, hook in each}
        assert seen == set(HOOKS) - {"after_skip_message", "before_declare_queue"}

    def test_a_message_may_be_skipped(self, same: Same, broker_kind: str) -> None:
        def scenario(stage: Stage) -> list[Any]:
            ran: list[int] = []

            class Skip(Middleware):
                def before_process_message(self, broker: Any, message: Any) -> None:
                    if message.args[0] < 3:
                        if message.args[0] == 2:
                            message.fail()
                        raise SkipMessage("not today")

            stage.broker.add_middleware(Skip())
            keep = stage.actor(ran.append, actor_name="keep")
            messages = [keep.send(number) for number in (1, 2, 3)]
            stage.run(threads=1)
            return [ran, *([hook for hook in stage.spy.of(each.message_id) if "enqueue" not in hook] for each in messages)]

        ran, skipped, failed, processed = same(scenario, broker_kind)
        assert ran == [3]
        assert skipped == ["before_process_message", "after_skip_message", "before_ack", "after_ack"]
        assert failed == ["before_process_message", "after_skip_message", "before_nack", "after_nack"]
        assert processed == ["before_process_message", "after_process_message", "before_ack", "after_ack"]

    def test_an_actor_may_skip_its_own_message(self, same: Same) -> None:
        def scenario(stage: Stage) -> list[str]:
            @stage.actor
            def refuse() -> None:
                raise SkipMessage("nothing to do")

            message = refuse.send()
            stage.run()
            return stage.spy.of(message.message_id)[2:]

        assert same(scenario) == ["before_process_message", "after_skip_message", "before_ack", "after_ack"]

    def test_a_hook_that_raises_stops_nothing_and_one_that_refuses_does(self, same: Same) -> None:
        def scenario(stage: Stage) -> list[Any]:
            ran: list[int] = []

            class Broken(Middleware):
                def before_process_message(self, broker: Any, message: Any) -> None:
                    raise RuntimeError("broken")

                after_process_message = after_enqueue = before_process_message

                def before_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
                    if message.args[0] == 2:
                        raise MiddlewareError("full")

            stage.broker.add_middleware(Broken())
            keep = stage.actor(ran.append, actor_name="keep")
            keep.send(1)
            with pytest.raises(MiddlewareError, match="full"):
                keep.send(2)
            stage.work()
            wait_until(lambda: stage.spy.count("after_ack") == 1)
            return ran

        assert same(scenario) == [1]

    def test_the_current_message_is_that_of_the_actor_alone(self, same: Same) -> None:
        def scenario(stage: Stage) -> list[Any]:
            seen: list[Any] = []

            @stage.actor
            def look(number: int) -> None:
                message = CurrentMessage.get_current_message()
                assert message is not None
                seen.append((message.args, message.actor_name))
                contextvars.copy_context().run(lambda: seen.append(CurrentMessage.get_current_message() is message))

            look.send(1)
            look.send(2)
            stage.run(threads=1)
            assert CurrentMessage.get_current_message() is None
            return seen

        assert same(scenario, middleware=lambda: [CurrentMessage()]) == [((1,), "look"), True, ((2,), "look"), True]

    def test_what_dramatiq_logs_stays_the_same(self, same: Same, caplog: pytest.LogCaptureFixture) -> None:
        def scenario(stage: Stage) -> list[Any]:
            caplog.clear()

            @stage.actor(max_retries=1, min_backoff=1, max_backoff=1)
            def work(is_bad: bool) -> int | None:
                if is_bad:
                    raise ValueError("mine")
                return 5

            with caplog.at_level(logging.INFO, "dramatiq"):
                for is_bad in (False, True):
                    stage.broker.enqueue(work.message(is_bad).copy(message_id=f"fixed-{is_bad}"))
                    if not stage._workers:
                        stage.work(threads=1)
                    stage.join()
                stage.stop()
            return [(each.name, each.levelname, each.getMessage()) for each in caplog.records if each.name.startswith("dramatiq.")]

        assert len(same(scenario)) >= 6

    def test_it_may_be_placed_before_and_after_others(self, chaperone_env: Any) -> None:
        class Mine(Middleware):
            pass

        broker = StubBroker()
        broker.add_middleware(Chaperone())
        dramatiq.actor(lambda: None, actor_name="one", broker=broker)
        broker.add_middleware(Mine(), before=Retries)
        broker.add_middleware(Mine(), after=Retries)
        names = [type(entry).__name__ for entry in broker.middleware]
        position = names.index("Retries")
        assert names[position - 1 : position + 2] == ["Mine", "Retries", "Mine"]
        with pytest.raises(ValueError, match="not found"):
            broker.add_middleware(Mine(), before=CurrentMessage)

    def test_dramatiqs_prometheus_counts_the_same(self, redis_url: str, tmp_path: Path) -> None:
        """In processes of their own, for its registry is one per process."""
        found = []
        for supervised in ("0", "1"):
            env = {
                "dramatiq_prom_db": str(tmp_path / f"prometheus-{supervised}"),
                "CHAPERONE_STATE_DIR": str(tmp_path / "state"),
                "CHAPERONE_WATCHER": "0",
                "SUPERVISED": supervised,
                "PYTHONPATH": str(ROOT),
                "PATH": "",
            }
            done = subprocess.run(
                [sys.executable, "-m", "tests.guarantees.prometheus_app"],
                env=env,
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            found.append(done.stdout)
        assert found[0] == found[1]
        assert 'dramatiq_message_rejects_total{actor_name="work",queue_name="default"} 1.0' in found[0]

    def test_placement_does_not_depend_on_the_order_of_things(self, make_stage: MakeStage) -> None:
        stage = make_stage()
        ran: list[int] = []
        keep = stage.actor(ran.append, actor_name="keep")
        late = Spy()
        stage.broker.add_middleware(late)
        keep.send(1)
        stage.run()
        assert stage.spy.of(stage.entries(records.ENQUEUED)[0].job_id) == late.of(stage.entries(records.ENQUEUED)[0].job_id)
