"""Free space: episodes, and what waits during them."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dramatiq
import pytest

from dramatiq_chaperone import records
from dramatiq_chaperone.events import DiskSpaceLow, DiskSpaceRecovered
from dramatiq_chaperone.records import Origin
from dramatiq_chaperone.service import internal_errors
from dramatiq_chaperone.settings import Settings
from dramatiq_chaperone.supervision import disk
from dramatiq_chaperone.supervision.disk import DiskCheck, Episodes, FreeSpace, free_space
from dramatiq_chaperone.supervision.policy import Policy, policy_of_unknown


class TestEpisodes:
    def test_one_begins_below_the_threshold_and_lasts_until_there_is_a_little_more(self) -> None:
        episodes = Episodes()
        assert episodes.look(1000, [1000]) == ([], [])
        assert episodes.look(999, [1000]) == ([1000], [])
        assert episodes.look(900, [1000]) == ([], [])
        assert episodes.look(1049, [1000]) == ([], [])
        assert episodes.low == {1000}
        assert episodes.look(1050, [1000]) == ([], [1000])
        assert episodes.low == set()

    def test_each_threshold_has_its_own(self) -> None:
        episodes = Episodes()
        assert episodes.look(400, [1000, 500, 100]) == ([500, 1000], [])
        assert episodes.look(600, [1000, 500, 100]) == ([], [500])
        assert episodes.low == {1000}

    def test_a_threshold_that_nobody_has_any_more_ends_all_the_same(self) -> None:
        episodes = Episodes()
        episodes.look(10, [100])
        assert episodes.look(200, []) == ([], [100])


class Desk:
    """A disk check with a disk that says what the test wants."""

    def __init__(self, *actors: dict[str, Any], **settings: object) -> None:
        self.free_mb: float | Exception = 1e6
        self.entries: list[Any] = []
        self.events: list[Any] = []
        recorder: Any = SimpleNamespace(
            origin=Origin("w-1", "host", "boot", 1, 0.0, "worker"), append=self.entries.append, emit=self.events.append
        )
        self.settings = Settings.load(settings, environ={})
        self.check = DiskCheck(self.settings, recorder, lambda: actors, self._read)
        self._now = 0.0

    def _read(self) -> FreeSpace:
        if isinstance(self.free_mb, Exception):
            raise self.free_mb
        return FreeSpace("/data", self.free_mb)

    def reads(self, free_mb: float | Exception) -> list[Any]:
        """What is said when that is read."""
        self.events.clear()
        self.free_mb = free_mb
        self._now += 1
        self.check.turn(self._now)
        return [type(event).__name__ for event in self.events]

    def asks(self, actor: dict[str, Any] | None = None, **options: Any) -> str | None:
        """Why a message waits."""
        policy: Policy = policy_of_unknown("work", "default", self.settings)._replace(options=actor or {})
        verdict = self.check(dramatiq.Message("default", "work", (), {}, options), policy)
        if verdict is None:
            return None
        assert time.time() + 29 < verdict.until < time.time() + 31
        return verdict.reason


BEGINS = ["DiskSpaceLow", "ResourceViolationDetected"]


def test_below_the_setting_everything_waits_until_there_is_more() -> None:
    desk = Desk(disk_space_threshold=500)
    assert desk.reads(500) == []
    assert desk.asks() is None
    assert desk.reads(499) == BEGINS
    assert desk.asks() == "less than 500 MB are free on /data"
    assert desk.reads(510) == []
    assert desk.asks() is not None
    assert desk.reads(525) == ["DiskSpaceRecovered"]
    assert desk.asks() is None


def test_the_default_is_written_down_and_nothing_waits(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()
    with caplog.at_level(logging.WARNING):
        assert desk.reads(100) == BEGINS
    assert caplog.records == []
    assert not desk.events[0].jobs_wait
    assert desk.asks() is None


@pytest.mark.parametrize(
    ("setting", "actor", "message", "waits"),
    [
        (None, None, None, False),
        (200, None, None, True),
        (200, 50, None, False),
        (200, 0, None, False),
        (50, 200, None, True),
        (None, 200, None, True),
        (None, 200, 50, False),
        (None, 200, 0, False),
        (50, 50, 200, True),
        (0, None, None, False),
        (None, None, 200, True),
    ],
)
def test_the_message_goes_before_its_actor_and_that_before_the_setting(
    setting: float | None, actor: float | None, message: float | None, waits: bool
) -> None:
    options = {} if actor is None else {"disk_space_threshold": actor}
    desk = Desk(options, **({} if setting is None else {"disk_space_threshold": setting}))
    desk.reads(100)
    assert (desk.asks(options, **({} if message is None else {"disk_space_threshold": message})) is not None) is waits


def test_a_threshold_that_came_with_a_message_has_its_episode_too() -> None:
    desk = Desk()
    desk.reads(2000)
    assert desk.asks(disk_space_threshold=3000) is not None
    assert desk.reads(2000) == BEGINS
    assert desk.reads(3100) == []
    assert desk.asks(disk_space_threshold=3000) is not None
    assert desk.reads(3150) == ["DiskSpaceRecovered"]


def test_it_is_said_once_in_words(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk(disk_space_threshold=500)
    with caplog.at_level(logging.INFO):
        for free in (400, 300, 400, 600, 700):
            desk.reads(free)
    assert [record.getMessage() for record in caplog.records] == [
        "Less than 500 MB are free on /data (400 MB): jobs wait until there is more.",
        "600 MB are free on /data again.",
    ]


def test_the_events_carry_what_was_read() -> None:
    desk = Desk(disk_space_threshold=500)
    desk.reads(400)
    low, violation = desk.events
    assert isinstance(low, DiskSpaceLow)
    assert (low.worker_id, low.path, low.threshold, low.free, low.jobs_wait) == ("w-1", "/data", 500, 400, True)
    assert (violation.violation_type, violation.limit, violation.actual, violation.exceeded_by) == ("disk", 500, 400, 100)
    desk.reads(800)
    (recovered,) = desk.events
    assert isinstance(recovered, DiskSpaceRecovered)
    assert (recovered.threshold, recovered.free) == (500, 800)


def test_a_disk_that_cannot_be_read_changes_nothing() -> None:
    internal_errors.clear()
    desk = Desk(disk_space_threshold=500)
    desk.reads(400)
    assert desk.reads(OSError("gone")) == []
    assert desk.asks() is not None
    assert internal_errors.pop("disk") == 1


def test_it_is_read_once_a_second() -> None:
    desk = Desk(disk_space_threshold=500)
    desk.reads(1000)
    desk.free_mb = 100
    desk.check.turn(1.5)
    assert desk.asks() is None
    desk.check.turn(2.0)
    assert desk.asks() is not None


class TestReading:
    def test_the_fullest_file_system_counts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "statvfs", _systems(a=(4096, 500_000, 0), b=(4096, 1000, 0)))
        assert free_space(["a", "b"]) == FreeSpace("b", 1000 * 4096 / 1e6)

    def test_what_nobody_can_fill_is_left_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "statvfs", _systems(a=(4096, 0, os.ST_RDONLY), b=(4096, 1000, 0)))
        found = free_space(["a", "b"])
        assert found is not None
        assert found.path == "b"
        assert free_space(["a"]) is None

    def test_the_state_directory_and_that_of_temporary_files_unless_it_is_said(self, tmp_path: Path) -> None:
        default = disk._paths(Settings.load({"state_dir": str(tmp_path / "state")}, environ={}))
        assert default[0] == str(tmp_path / "state")
        assert len(default) == 2
        assert disk._paths(Settings.load({"disk_path": str(tmp_path)}, environ={})) == [str(tmp_path)]


def _systems(**systems: tuple[int, int, int]) -> Callable[[str], Any]:
    def statvfs(path: str) -> Any:
        size, available, flag = systems[path]
        return SimpleNamespace(f_blocks=10**6, f_frsize=size, f_bavail=available, f_flag=flag)

    return statvfs


def test_a_deferral_has_a_number_of_its_own() -> None:
    assert records.ENTRY_TYPES[records.DEFERRED] is records.Deferred
