"""When a limit is passed, and which one counts."""

from __future__ import annotations

from itertools import pairwise
from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dramatiq_chaperone import limits
from dramatiq_chaperone.limits import CLEAR, NEAR, OVER, JobLimits, Limit, Point, Standing, judge, remember, resolve
from dramatiq_chaperone.settings import Settings

LIMIT = Limit(100)


def settings(**arguments: object) -> Settings:
    return Settings.load(arguments, environ={})


def told(readings: list[tuple[float, float]], limit: Limit | None = LIMIT, *, is_floor: bool = False) -> tuple[list[str], list[float]]:
    """The zone after each (time, reading), and the times at which violations began."""
    standing, zones, begun = Standing(), [], []
    for now, actual in readings:
        standing, is_new = judge(standing, limit, actual, now, is_floor=is_floor)
        zones.append(standing.zone)
        if is_new:
            begun.append(now)
    return zones, begun


def each_second(*readings: float) -> list[tuple[float, float]]:
    return [(float(now), actual) for now, actual in enumerate(readings)]


class TestEpisodes:
    def test_a_violation_begins_once_however_long_it_lasts(self) -> None:
        zones, begun = told(each_second(50, 101, 150, 120, 101, 130))
        assert begun == [1]
        assert zones == [CLEAR, OVER, OVER, OVER, OVER, OVER]

    def test_at_the_limit_is_not_past_it(self) -> None:
        assert told(each_second(100, 100, 100)) == ([NEAR] * 3, [])

    def test_a_dip_does_not_end_it(self) -> None:
        _, begun = told([(0, 120), (5, 50), (10, 120), (15, 50), (20, 120)])
        assert begun == [0]

    def test_just_below_does_not_end_it(self) -> None:
        zones, begun = told([(0, 120), (100, 95), (200, 95), (300, 120)])
        assert begun == [0]
        assert zones == [OVER] * 4

    def test_it_ends_when_the_reading_stays_low_and_then_another_may_begin(self) -> None:
        zones, begun = told([(0, 120), (1, 40), (6, 40), (11, 40), (12, 120)])
        assert zones == [OVER, OVER, OVER, CLEAR, OVER]
        assert begun == [0, 12]

    def test_an_end_may_lead_into_the_soft_zone(self) -> None:
        assert told([(0, 120), (1, 85), (11, 85)])[0] == [OVER, OVER, NEAR]

    def test_the_soft_zone_begins_at_80_percent_and_is_left_below_75(self) -> None:
        zones, begun = told([(0, 79), (1, 80), (2, 76), (20, 76), (21, 74), (31, 74)])
        assert zones == [CLEAR, NEAR, NEAR, NEAR, NEAR, CLEAR]
        assert begun == []

    def test_of_free_space_there_has_to_be_more_than_the_limit(self) -> None:
        zones, begun = told([(0, 500), (1, 120), (2, 99), (3, 0), (4, 105), (20, 120), (30, 120)], is_floor=True)
        assert zones == [CLEAR, NEAR, OVER, OVER, OVER, OVER, NEAR]
        assert begun == [2]

    def test_without_a_limit_nothing_is_wrong(self) -> None:
        assert told(each_second(1e12, 1e12), None) == ([CLEAR, CLEAR], [])

    @given(st.lists(st.tuples(st.floats(0.1, 20), st.floats(0, 300)), max_size=60))
    def test_between_two_violations_there_was_a_clear_end(self, steps: list[tuple[float, float]]) -> None:
        now, readings = 0.0, []
        for step, actual in steps:
            now += step
            readings.append((now, actual))
        _, begun = told(readings)
        for first, second in pairwise(begun):
            between = [(at, actual) for at, actual in readings if first < at < second]
            assert any(_is_quiet(between, start) for start in range(len(between)))
        passed = [at for at, actual in readings if actual > 100]
        assert begun[:1] == passed[:1], "the first one is never late"
        assert set(begun) <= set(passed)

    @given(st.lists(st.tuples(st.floats(0.1, 20), st.floats(0, 100)), max_size=60))
    def test_a_healthy_history_never_gives_a_verdict(self, steps: list[tuple[float, float]]) -> None:
        now, readings = 0.0, []
        for step, actual in steps:
            now += step
            readings.append((now, actual))
        zones, begun = told(readings)
        assert begun == []
        assert OVER not in zones
        if all(actual < 80 for _, actual in readings):
            assert set(zones) <= {CLEAR}


def _is_quiet(readings: list[tuple[float, float]], start: int) -> bool:
    """Whether from there on all is at 90 % at most, for ten seconds at least."""
    for at, actual in readings[start:]:
        if actual > 90:
            return False
        if at - readings[start][0] >= limits.END_S:
            return True
    return False


class TestCpu:
    def history(self, *used: float, step: float = 1.0, window_s: float = 10.0) -> tuple[Point, ...]:
        """CPU seconds used in each step."""
        found: tuple[Point, ...] = (Point(0.0, 0, 0.0),)
        total = 0.0
        for number, each in enumerate(used, 1):
            total += each
            found = remember(found, Point(number * step, 0, total), window_s)
        return found

    def test_a_window_that_is_not_full_says_nothing(self) -> None:
        assert limits.cpu_percent(self.history(*[1.0] * 9), 10.0) is None
        assert limits.cpu_percent((), 10.0) is None

    def test_a_burst_is_not_the_window(self) -> None:
        assert limits.cpu_percent(self.history(*[0.0] * 8, 1.0, 1.0), 10.0) == pytest.approx(20)

    def test_what_is_older_than_the_window_is_forgotten(self) -> None:
        history = self.history(*[1.0] * 50, *[0.5] * 10)
        assert limits.cpu_percent(history, 10.0) == pytest.approx(50)
        assert len(history) == 11

    def test_slow_sampling_takes_a_longer_window(self) -> None:
        history = self.history(10.0, 5.0, step=10.0, window_s=15.0)
        assert limits.cpu_percent(history, 15.0) == pytest.approx(75)

    @given(st.lists(st.floats(0, 2), min_size=30, max_size=200))
    def test_the_evidence_is_short_and_ends_now(self, used: list[float]) -> None:
        history = self.history(*used, window_s=60.0)
        assert len(history) <= 62
        cpu, memory = limits.cpu_evidence(history), limits.memory_evidence(history)
        assert len(cpu) < len(memory) <= limits.EVIDENCE
        assert cpu[-1][0] == memory[-1][0] == 0
        assert [at for at, _ in cpu] == sorted(at for at, _ in cpu)


class TestPrecedence:
    """Message, actor, argument, environment, default."""

    @pytest.mark.parametrize(
        ("arguments", "actor", "message", "expected"),
        [
            ({}, {}, {}, Limit(512e6, is_default=True)),
            ({"memory_limit": 300}, {}, {}, Limit(300e6)),
            ({"memory_limit": 300}, {"memory_limit": 200}, {}, Limit(200e6)),
            ({"memory_limit": 300}, {"memory_limit": 200}, {"memory_limit": 100}, Limit(100e6)),
            ({}, {}, {"memory_limit": 0}, None),
            ({}, {"memory_limit": 0}, {"memory_limit": 0.5}, Limit(0.5e6)),
            ({"memory_limit": 0}, {}, {}, None),
            ({}, {"memory_limit": None}, {}, None),
            ({"memory_limit": 300}, {"memory_limit": 200}, {"memory_limit": "lots"}, Limit(200e6)),
            ({}, {}, {"memory_limit": -1}, Limit(512e6, is_default=True)),
            ({}, {}, {"memory_limit": float("nan")}, Limit(512e6, is_default=True)),
        ],
    )
    def test_memory(self, arguments: dict[str, object], actor: dict[str, Any], message: dict[str, Any], expected: Limit | None) -> None:
        assert resolve(settings(**arguments), message, actor).memory == expected

    def test_the_environment_and_the_file_set_limits_too(self, tmp_path: Any) -> None:
        file = tmp_path / "chaperone.toml"
        file.write_text("cpu_limit = 40\nmemory_limit = 50\n")
        found = resolve(Settings.load({}, environ={"CHAPERONE_CONFIG": str(file), "CHAPERONE_MEMORY_LIMIT": "70"}))
        assert (found.cpu, found.memory) == (Limit(40), Limit(70e6))

    def test_the_defaults(self) -> None:
        assert resolve(settings()) == JobLimits(
            memory=Limit(512e6, is_default=True),
            cpu=Limit(80, is_default=True),
            files=Limit(1024, is_default=True),
            disk=Limit(1024e6, is_default=True),
            timeout=Limit(3600, is_default=True),
        )

    @pytest.mark.parametrize(
        ("setting", "actor", "message", "limit", "due"),
        [
            (None, {}, {}, Limit(3600, is_default=True), None),
            (60, {}, {}, Limit(60), 60),
            (60, {"time_limit": 5000}, {}, None, None),
            (60, {"timeout": 30}, {}, Limit(30), 30),
            (60, {"timeout": 30}, {"time_limit": 5000}, None, None),
            (60, {"timeout": 30}, {"timeout": 10}, Limit(10), 10),
            (60, {"time_limit": 5000}, {"timeout": 10}, Limit(10), 10),
            (60, {"timeout": 30}, {"timeout": 0}, None, inf),
            (0, {}, {}, None, inf),
        ],
    )
    def test_timeouts(self, setting: float | None, actor: dict[str, Any], message: dict[str, Any], limit: Limit | None, due: Any) -> None:
        found = resolve(settings(timeout=setting), message, actor)
        assert (found.timeout, found.timeout_s) == (limit, due)
        assert found.has_time_limit is (limit is None and due is None)

    def test_a_timeout_of_the_environment_or_the_file_counts_and_the_default_does_not(self, tmp_path: Any) -> None:
        file = tmp_path / "chaperone.toml"
        file.write_text("timeout = 40\n")
        assert resolve(Settings.load({}, environ={"CHAPERONE_CONFIG": str(file)})).timeout_s == 40
        assert resolve(Settings.load({}, environ={"CHAPERONE_TIMEOUT": "70"})).timeout_s == 70
        assert resolve(Settings.load({"timeout": 9}, environ={"CHAPERONE_TIMEOUT": "70"})).timeout_s == 9
        assert resolve(Settings.load({}, environ={})).timeout_s is None

    @pytest.mark.parametrize(
        ("arguments", "actor", "message", "expected"),
        [
            ({}, {}, {}, None),
            ({"on_memory": "interrupt"}, {}, {}, "interrupt"),
            ({"on_memory": "interrupt"}, {"on_memory": "record"}, {}, "record"),
            ({"on_memory": "interrupt"}, {"on_memory": "record"}, {"on_memory": "kill"}, "kill"),
            ({}, {}, {"on_memory": "explode"}, None),
        ],
    )
    def test_actions(self, arguments: dict[str, object], actor: dict[str, Any], message: dict[str, Any], expected: str | None) -> None:
        assert resolve(settings(**arguments), message, actor).on_memory == expected
