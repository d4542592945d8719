"""Why a job does not move, from looks that are made up."""

from __future__ import annotations

import re
import sysconfig
import traceback
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dramatiq_chaperone.diagnosis import Frame, Link, Look, deaf, diagnose, gone, held_gil, own_frame, parse_dump, parse_stack, waits_for

STDLIB = Path(sysconfig.get_paths()["stdlib"])
LIBRARY = str(STDLIB / "threading.py")
TOP = Frame("_bootstrap", LIBRARY, 1002)
frames = st.builds(
    Frame,
    st.sampled_from(["f", "g", "wait", "h.<lambda>", ""]),
    st.sampled_from(["app.py", LIBRARY, "/x/site-packages/lib/a.py", "<string>", ""]),
    st.integers(0, 100),
    st.integers(0, 9),
    st.sampled_from(["", "lock.acquire()", "time.sleep(1)", "f(("]),
)
looks = st.lists(st.builds(Look, st.floats(0, 1e6), st.none() | st.floats(0, 1e6), st.lists(frames, max_size=6).map(tuple)), max_size=8)


def looks_at(*stacks: tuple[Frame, ...], cpu: float = 0.0, step: float = 10.0) -> list[Look]:
    """A look every *step* seconds at a thread that uses *cpu* of a core."""
    return [Look(n * step, n * step * cpu, stack) for n, stack in enumerate(stacks)]


def test_spinning_is_told_at_the_call_that_is_always_there() -> None:
    spin = Frame("spin", "app.py", 7)
    step, other = Frame("step", "app.py", 3), Frame("other", "app.py", 5)
    stacks = [(TOP, spin), (TOP, spin._replace(line=8), step), (TOP, spin._replace(line=9), other)]
    found = diagnose(looks_at(*stacks, cpu=0.97), quiet_s=180)
    assert (found.cause, found.text) == ("spinning", "spinning at spin (app.py:9), at 97 % of a core for 20 s")
    assert found.evidence["cpu"] == [[0.0, 0.0], [10.0, 9.7], [20.0, 19.4]]
    assert found.evidence["stack"][-1] == 'File "app.py", line 5, in other'
    assert found.evidence["quiet_s"] == 180


def test_spinning_on_a_crowded_machine() -> None:
    stacks = [(TOP, Frame("spin", "app.py", n)) for n in range(3)]
    starved = [look._replace(starved_s=look.at * 0.9) for look in looks_at(*stacks, cpu=0.04)]
    assert diagnose(starved).text == "spinning at spin (app.py:2), at 4 % of a core for 20 s"
    assert diagnose(looks_at(*stacks, cpu=0.04)).cause == "idle"


def test_busy_in_c_code_without_the_gil() -> None:
    frame = Frame("derive", "app.py", 7, 4, "pbkdf2_hmac('sha256', …)")
    found = diagnose(looks_at((TOP, frame), (TOP, frame), cpu=1.0))
    assert found.text == "spinning in C code, in pbkdf2_hmac('sha256', …) of derive (app.py:7) for 10 s, at 100 % of a core"


def test_blocked_since() -> None:
    before, after = Frame("fetch", "app.py", 6, 2), Frame("fetch", "app.py", 7, 4, "sock.recv(1024)")
    found = diagnose(looks_at((TOP, before), (TOP, after), (TOP, after), (TOP, after)))
    assert found.cause == "idle", "it moved in between, so nothing is sure yet"
    found = diagnose(looks_at(*[(TOP, after)] * 4, step=104))
    assert found.cause == "blocked"
    assert found.text == "blocked in fetch (app.py:7) for 312 s: waits for data from a socket in sock.recv(1024)"


def test_a_loop_that_polls() -> None:
    poll, nap = Frame("poll", "app.py", 3, 9), Frame("nap", "app.py", 9, 1, "time.sleep(5)")
    found = diagnose(looks_at((TOP, poll, nap), (TOP, poll._replace(at=8), nap), (TOP, poll, nap)))
    assert (found.cause, found.text) == ("blocked", "blocked in nap (app.py:9) for 20 s, again and again: sleeps in time.sleep(5)")


def test_alive_and_no_progress() -> None:
    found = diagnose(looks_at((TOP, Frame("f", "app.py", 1)), (TOP, Frame("f", "app.py", 2)), cpu=0.1), quiet_s=300, gaps_s=[7.0])
    assert (found.cause, found.text) == ("idle", "alive, no progress for 300 s: in f (app.py:2), at 10 % of a core")
    assert found.evidence["gaps_s"] == [7.0]


def test_one_look_is_enough_to_say_where() -> None:
    found = diagnose([Look(5.0, None, (TOP, Frame("f", "app.py", 1, 1, "time.sleep(9)")))])
    assert (found.cause, found.text) == ("blocked", "blocked in f (app.py:1): sleeps in time.sleep(9)")


@pytest.mark.parametrize("seen", [[], [Look(1.0, None, ())]])
def test_gone(seen: list[Look]) -> None:
    assert diagnose(seen).cause == "gone"
    assert gone("SIGKILL").text == "its process is gone: SIGKILL"
    assert gone(None).text == "its process is gone: the cause is unknown"


def test_a_lock_and_a_deadlock() -> None:
    seen = looks_at(*[(TOP, Frame("f", "app.py", 1, 1, "a"))] * 3, step=30)
    link = Link("T-1", "job-1", "f (app.py:1)", "a", "T-2", "job-2", "g (app.py:9)")
    found = diagnose(seen, links=[link])
    assert (found.cause, found.text) == (
        "blocked",
        "blocked in f (app.py:1) for 60 s: waits for the lock a, held by job job-2 (T-2) in g (app.py:9)",
    )
    back = Link("T-2", None, "g (app.py:9)", "b", "T-1", "job-1", "f (app.py:1)")
    found = diagnose(seen, links=[link, back])
    assert found.cause == "deadlock"
    assert found.text == (
        "deadlock for 60 s: job job-1 (T-1) waits in f (app.py:1) for a, held by job job-2 (T-2); "
        "thread T-2 waits in g (app.py:9) for b, held by job job-1 (T-1)"
    )
    assert len(found.evidence["locks"]) == 2


def test_who_works_waits_for_no_lock() -> None:
    link = Link("T-1", "job-1", "f (app.py:1)", "a", "T-2", "job-2", "g (app.py:9)")
    assert diagnose(looks_at(*[(TOP, Frame("f", "app.py", 1))] * 3, cpu=0.9), links=[link]).cause == "spinning"


def test_the_gil() -> None:
    stack = (TOP, Frame("find", "app.py", 9), Frame("match", str(STDLIB / "re" / "__init__.py"), 166))
    own = held_gil(stack, 17.0, is_own=True)
    assert (own.cause, own.text) == ("gil", "the GIL is held in find (app.py:9), in match, for 17 s: nothing else in this process can run")
    other = held_gil(stack, 17.0, is_own=False, job_id="job-2")
    assert "in find (app.py:9), in match, by job job-2, for 17 s" in other.text
    assert held_gil((), 4.0, is_own=False).text.startswith("the GIL is held in C code, by another thread, for 4.0 s")


def test_a_long_stack_is_cut_at_its_outer_end() -> None:
    stack = tuple(Frame("f", "app.py", n) for n in range(100))
    found = diagnose(looks_at(stack, stack))
    assert len(found.evidence["stack"]) == 25
    assert found.evidence["stack"][-1] == 'File "app.py", line 99, in f'


@given(looks, st.none() | st.floats(0, 1e6))
def test_any_looks_give_a_diagnosis(seen: list[Look], quiet_s: float | None) -> None:
    found = diagnose(sorted(seen, key=lambda look: look.at), quiet_s=quiet_s)
    assert found.cause in {"spinning", "blocked", "idle", "gone"}
    assert found.text


@given(st.lists(frames, min_size=1, max_size=6).map(tuple))
def test_own_code_comes_first(stack: tuple[Frame, ...]) -> None:
    frame = own_frame(stack)
    if any(each.file in {"app.py", "<string>", ""} for each in stack):
        assert frame.file in {"app.py", "<string>", ""}
    else:
        assert frame == stack[-1]
    assert isinstance(waits_for(stack), str)


DUMP = """Current thread 0x00007fd997fff6c0 (most recent call first):
  File "/lib/re/__init__.py", line 166 in match
  File "/srv/app.py", line 9 in find

Thread 0x00007fd9b49586c0 [worker-1] (most recent call first):
  File "/srv/app.py", line ??? in idle
  <no Python frame>
"""


def test_a_dump_is_read() -> None:
    current, others = parse_dump(DUMP)
    assert current == (Frame("find", "/srv/app.py", 9), Frame("match", "/lib/re/__init__.py", 166))
    assert others == [(Frame("idle", "/srv/app.py", 0),)]
    assert parse_dump(DUMP + DUMP)[0] == current


@given(st.text() | st.lists(st.sampled_from(re.split("(?<=\n)", DUMP)), max_size=20).map("".join))
def test_what_is_no_dump_is_left_out(text: str) -> None:
    current, others = parse_dump(text)
    assert all(isinstance(frame, Frame) for stack in [current, *others] for frame in stack)


def test_a_process_of_its_own_that_does_not_answer() -> None:
    busy = deaf(looks_at((), (), cpu=0.98), quiet_s=90)
    assert (busy.cause, busy.text) == ("spinning", "in C code for 90 s: its process does not answer, at 98 % of a core")
    assert deaf(looks_at((), ()), quiet_s=90).cause == "blocked"
    assert deaf([]).text == "in C code: its process does not answer"


def test_a_stack_is_read_as_it_was_written() -> None:
    try:
        int("x")
    except ValueError as error:
        lines = traceback.format_list(traceback.extract_tb(error.__traceback__))
    (frame,) = parse_stack(lines)
    assert (frame.function, frame.file, frame.call) == ("test_a_stack_is_read_as_it_was_written", __file__, 'int("x")')
    assert parse_stack(['  File "app.py", line 3, in f', "    g()", '  File "app.py", line 7, in g']) == (
        Frame("f", "app.py", 3),
        Frame("g", "app.py", 7),
    )
    assert parse_stack(["The process of the job (pid 7) does not answer."]) == ()
