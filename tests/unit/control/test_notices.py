"""What a worker is told through a block that holds one message."""

from __future__ import annotations

import json
from typing import Any

from dramatiq_chaperone.control.notices import KEEP_S, Notices, Reader
from dramatiq_chaperone.errors import JournalError
from dramatiq_chaperone.records import Command


class Blocks:
    """Control blocks of so many characters, and the notices that are written into them."""

    def __init__(self, room: int = 10_000) -> None:
        self.room = room
        self.now = 100.0
        self.messages: dict[str, dict[str, Any]] = {}
        self.writes = 0
        self.notices = Notices(self.tell, clock=lambda: self.now)

    def tell(self, worker_id: str, message: dict[str, Any]) -> None:
        if len(json.dumps(message)) > self.room:
            raise JournalError("too large")
        self.writes += 1
        self.messages[worker_id] = message


def command(number: int, target: str = "w1", **arguments: Any) -> Command:
    return Command(str(number), target, "ping", arguments)


def test_what_came_before_is_still_there_when_it_may_not_have_been_read() -> None:
    blocks = Blocks()
    assert blocks.notices.know("w1", "suspects", "abc")
    assert blocks.notices.command(command(1))
    assert blocks.notices.command(command(2, "w2"))
    assert blocks.notices.request("w1", "give_back", ["dead"])
    assert blocks.notices.command(command(3))
    message = blocks.messages["w1"]
    assert message["known"] == {"suspects": "abc"}
    assert [each["command_id"] for each in message["commands"]] == ["1", "3"]
    assert Reader().requests(message) == {"give_back": ["dead"]}
    assert [each["command_id"] for each in blocks.messages["w2"]["commands"]] == ["2"]


def test_what_is_said_once_goes_after_a_while_and_what_is_known_stays() -> None:
    blocks = Blocks()
    blocks.notices.know("w1", "suspects", "abc")
    blocks.notices.command(command(1))
    blocks.notices.request("w1", "read_queues")
    blocks.now += KEEP_S
    blocks.notices.know("w1", "more", 1)
    assert blocks.messages["w1"] == {"known": {"suspects": "abc", "more": 1}, "requests": {}, "commands": []}


def test_what_a_worker_knows_is_not_said_again() -> None:
    blocks = Blocks()
    for _ in range(3):
        assert blocks.notices.know("w1", "suspects", "abc")
    assert blocks.writes == 1
    assert blocks.notices.knows("w1", "suspects")
    blocks.notices.forget(["w2"])
    assert not blocks.notices.knows("w1", "suspects")
    blocks.notices.know("w1", "suspects", "abc")
    assert blocks.writes == 2


def test_a_request_is_heard_once_and_again_when_it_is_made_again() -> None:
    blocks, reader = Blocks(), Reader()
    blocks.notices.request("w1", "read_queues")
    assert reader.requests(blocks.messages["w1"]) == {"read_queues": True}
    blocks.notices.know("w1", "suspects", "abc")
    assert reader.requests(blocks.messages["w1"]) == {}
    blocks.notices.request("w1", "read_queues")
    assert reader.requests(blocks.messages["w1"]) == {"read_queues": True}
    successor = Blocks()
    successor.notices.request("w1", "read_queues")
    assert reader.requests(successor.messages["w1"]) == {"read_queues": True}, "another watcher counts from elsewhere"


def test_where_there_is_no_room_the_oldest_commands_have_been_seen() -> None:
    blocks = Blocks(room=600)
    for number in range(10):
        assert blocks.notices.command(command(number, text="x" * 50))
    assert [each["command_id"] for each in blocks.messages["w1"]["commands"]][-1] == "9"
    assert not blocks.notices.command(command(10, text="x" * 600)), "this one alone is too large"
    assert blocks.messages["w1"]["commands"] == []
