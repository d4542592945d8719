"""What travels between a worker and the process of an isolated job, and what is made of it."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import threading
from itertools import dropwhile
from pathlib import Path
from typing import Any

import psutil
import pytest
from dramatiq.errors import Retry

from dramatiq_chaperone.errors import JobProcessDied, SettingsError, TimeoutExceeded
from dramatiq_chaperone.limits import MB, resolve
from dramatiq_chaperone.settings import Settings
from dramatiq_chaperone.supervision import resources
from dramatiq_chaperone.supervision.isolation import wire
from dramatiq_chaperone.supervision.isolation.errors import RemoteTraceback, pack, unpack
from dramatiq_chaperone.supervision.isolation.limits import Limits, limits_of
from dramatiq_chaperone.supervision.isolation.zygote import memory_events, oom_kills
from dramatiq_chaperone.supervision.policy import policy_of_unknown
from tests.waiting import wait_until


class Picky(Exception):
    def __init__(self, code: int, *, lock: Any) -> None:
        super().__init__(f"code {code}")
        self.lock = lock


class TwoArguments(Exception):
    """Can be pickled, and not made again."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} {two}")


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def raised(exception: BaseException) -> BaseException:
    try:
        raise exception
    except BaseException as error:
        return error


class TestFrames:
    def test_they_come_out_whole_however_they_are_cut(self) -> None:
        stream = b"".join(map(wire.encode, [("a", 1), ("b", "x" * 1000), ("c", None)]))
        for size in (1, 3, 7, 1000, 5000):
            frames = wire.Frames()
            found = [body for at in range(0, len(stream), size) for body in frames.feed(stream[at : at + size])]
            assert [pickle.loads(body)[0] for body in found] == ["a", "b", "c"]

    def test_an_interrupt_waits_until_a_frame_is_out(self) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            channel = wire.Channel(theirs)
            seen: list[bool] = []
            channel.sent = lambda: seen.append(channel.is_sending)
            channel.send(("x", 1))
            thread = threading.Thread(target=channel.send, args=(("y", 2),))
            thread.start()
            thread.join()
            assert seen == [False]  # other threads are never interrupted
            assert [pickle.loads(body) for body in wire.Frames().feed(ours.recv(1000))] == [("x", 1), ("y", 2)]

    def test_what_has_arrived(self) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            channel = wire.Channel(theirs)
            assert list(channel.received()) == []
            ours.sendall(wire.encode(1) + wire.encode(2) + wire.encode(3)[:5])
            assert channel.receive() == 1
            assert list(channel.received()) == [2]
            ours.sendall(wire.encode(3)[5:])
            assert list(channel.received()) == [3]
            ours.close()
            with pytest.raises(EOFError):
                channel.receive()

    def test_a_process_that_the_job_forks_says_nothing(self) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            channel = wire.Channel(theirs)
            channel._pid = 1
            channel.send("nothing")
            with pytest.raises(BlockingIOError):
                ours.recv(1, socket.MSG_DONTWAIT)


class TestExceptions:
    @pytest.mark.parametrize(
        "exception",
        [KeyError("x"), Retry("later", delay=7), SettingsError("no", field="a"), JobProcessDied(exit_code=3), TimeoutExceeded("t")],
    )
    def test_they_arrive_as_they_are(self, exception: BaseException) -> None:
        found = unpack(pickle.loads(pickle.dumps(pack(raised(exception)))))
        assert type(found) is type(exception)
        assert str(found) == str(exception)
        assert vars(found).items() >= {key: value for key, value in vars(exception).items() if key != "__notes__"}.items()
        assert isinstance(found.__cause__, RemoteTraceback)
        assert "raise exception" in str(found.__cause__)
        assert found.__cause__.context["code"] == "raise exception"
        assert found.__cause__.context["file"] == __file__

    @pytest.mark.parametrize(
        ("exception", "text"),
        [
            (Picky(7, lock=threading.Lock()), f"{__name__}.Picky: code 7"),
            (TwoArguments(1, 2), f"{__name__}.TwoArguments: 1 2"),
            (type("Local", (Exception,), {})("here"), f"{__name__}.Local: here"),
        ],
    )
    def test_what_cannot_travel_is_told_by_its_name(self, exception: BaseException, text: str) -> None:
        found = unpack(pack(raised(exception)))
        assert (type(found), str(found)) == (RuntimeError, text)

    def test_the_chain_is_in_its_traceback(self) -> None:
        try:
            try:
                raise ValueError("inner")
            except ValueError as error:
                raise KeyError("outer") from error
        except KeyError as error:
            cause = str(unpack(pack(error)).__cause__)
        assert "ValueError: inner" in cause
        assert "direct cause" in cause

    def test_one_without_a_text(self) -> None:
        found = unpack(pack(raised(Mute())))
        assert type(found) is Mute
        assert "Mute" in str(found.__cause__)

    def test_one_whose_class_is_not_here(self) -> None:
        packed = pack(raised(KeyError("x")))._replace(exception=b"cno_such_module\nError\n.")
        assert "cannot be read here" in str(unpack(packed))


class TestLimits:
    @staticmethod
    def of(options: dict[str, Any], actor: dict[str, Any] | None = None, **settings: object) -> Limits:
        loaded = Settings.load(settings, environ={"HOME": "/nowhere"})
        policy = policy_of_unknown("a", "q", loaded)._replace(options=actor or {})
        return limits_of(resolve(loaded, options, policy.options), policy, options, loaded)

    def test_built_in_limits_do_nothing(self) -> None:
        assert self.of({}) == Limits(None, None)

    def test_the_nearest_one_counts(self) -> None:
        assert self.of({}, memory_limit=100).memory == 100 * MB
        assert self.of({}, {"memory_limit": 50}, memory_limit=100).memory == 50 * MB
        assert self.of({"memory_limit": 20}, {"memory_limit": 50}, memory_limit=100).memory == 20 * MB
        assert self.of({"memory_limit": 0}, {"memory_limit": 50}, memory_limit=100).memory is None

    def test_one_that_is_only_recorded(self) -> None:
        assert self.of({"memory_limit": 20, "on_memory": "record"}).memory is None

    def test_an_address_space(self) -> None:
        assert self.of({}, {"address_space_limit": 600}).address_space == 600 * MB
        assert self.of({}, address_space_limit=700).address_space == 700 * MB
        assert self.of({"address_space_limit": 0}, address_space_limit=700).address_space is None


class TestOutOfMemory:
    """Where the system counts those that it has ended for want of memory; a real one needs a cgroup of the test's own."""

    @pytest.mark.parametrize(
        ("cgroups", "file", "text"),
        [
            ("0::/app\n", "app/memory.events", "low 0\noom 3\noom_kill 2\n"),
            ("0::/\n", "memory.events", "oom_kill 2\noom_group_kill 0\n"),
            ("0::/of/the/host\n", "memory.events", "oom_kill 2\n"),
            ("5:cpu:/\n4:memory:/app\n0::/\n", "memory/app/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
            ("4:memory:/of/the/host\n", "memory/memory.oom_control", "oom_kill_disable 0\noom_kill 2\n"),
        ],
    )
    def test_it_is_found(self, tmp_path: Path, cgroups: str, file: str, text: str) -> None:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
        found = memory_events(cgroups, tmp_path)
        assert found == tmp_path / file
        assert oom_kills(found) == 2

    def test_it_is_not_there(self, tmp_path: Path) -> None:
        assert memory_events("5:cpu:/\n0::/\n", tmp_path) is None
        assert oom_kills(None) == oom_kills(tmp_path / "gone") == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="read from /proc")
class TestUsage:
    def test_of_a_process_with_its_descendants(self) -> None:
        code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'x = b\"y\" * (80 << 20); print(1, flush=True); input()'])"
        with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            found = resources.usage_of(process.pid)
            assert found is not None
            assert 80 << 20 < found.rss < 200 << 20
            assert found.cpu_seconds > 0
            assert found.open_files >= 3
            process.communicate(b"\n")
        assert resources.usage_of(process.pid) is None

    def test_the_memory_of_a_child_counts_once_it_is_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Between fork and exec it has that of its parent."""
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
            monkeypatch.setattr(resources, "SETTLED_S", 3600.0)
            young = resources.children()
            assert (young.processes >= 1, young.rss) == (True, 0)
            monkeypatch.setattr(resources, "SETTLED_S", 0.0)
            # Its start is known to the tick of a clock, so it may seem to begin in a moment.
            wait_until(lambda: resources.children().rss > resources.children(without=process.pid).rss)
            settled, others = resources.children(), resources.children(without=process.pid)
            assert settled.processes == others.processes + 1
            process.communicate(b"\n")

    def test_one_that_nobody_has_waited_for_uses_nothing(self) -> None:
        with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
            wait_until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE)
            assert resources.usage_of(process.pid) is None

    def test_one_on_its_way_out_has_ended(self) -> None:
        """Its memory goes first, a while before it is called a zombie."""
        for _ in range(30):
            with subprocess.Popen([sys.executable, "-c", "bytearray(50 << 20)"]) as process:
                seen = []
                while (found := resources.usage_of(process.pid)) is not None:
                    seen.append(found.rss)
            assert all(dropwhile(lambda rss: not rss, seen))  # at its very beginning it may have none

    def test_of_this_one(self) -> None:
        found = resources.usage_of(os.getpid())
        assert found is not None
        assert found.rss > 0
