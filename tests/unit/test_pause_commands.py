"""The commands that pause queues."""

from __future__ import annotations

import json
from typing import Any

from dramatiq_chaperone.control.pausing import PauseCommands
from dramatiq_chaperone.control.runner import CommandRunner
from dramatiq_chaperone.records import Command


class Pausing:
    def __init__(self) -> None:
        self.paused: dict[str, frozenset[str]] = {"mail": frozenset({"smtp"})}

    def pause(self, *queues: str, by: str) -> None:
        self.paused |= {queue: self.paused.get(queue, frozenset()) | {by} for queue in queues}

    def resume(self, *queues: str, by: str) -> None:
        kept = {queue: holders - {by} if queue in queues else holders for queue, holders in self.paused.items()}
        self.paused = {queue: holders for queue, holders in kept.items() if holders}


def ask(runner: CommandRunner, name: str, **arguments: Any) -> tuple[str, Any]:
    outcome, detail = runner.run(Command("c1", "w1", name, arguments))
    return outcome, json.loads(detail)


def test_some_queues_or_all_of_the_worker() -> None:
    runner = CommandRunner(list)
    PauseCommands(Pausing(), lambda: ["mail", "video"]).add_to(runner)
    assert ask(runner, "pause", queues=["video"]) == ("done", {"paused": {"mail": ["smtp"], "video": ["operator"]}})
    assert ask(runner, "pause") == ("done", {"paused": {"mail": ["operator", "smtp"], "video": ["operator"]}})
    assert ask(runner, "resume") == ("done", {"paused": {"mail": ["smtp"]}}), "what somebody else has paused stays so"


def test_a_queue_that_it_does_not_serve_is_refused() -> None:
    runner = CommandRunner(list)
    PauseCommands(Pausing(), lambda: ["mail", "video"]).add_to(runner)
    outcome, detail = ask(runner, "pause", queues=["video", "audio"])
    assert outcome == "refused"
    assert detail["reason"] == "this worker does not serve audio; it serves mail, video"
