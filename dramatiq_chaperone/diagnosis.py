"""Why a job does not move, told from what was seen of its thread.  Pure: the looks and the times are passed in.

A diagnosis is no verdict.  It is made of evidence that it brings along: the stack, the CPU curve, how long since.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

#: From this share of a core on a thread counts as busy, up to the other one as waiting.
BUSY: Final = 0.20
IDLE: Final = 0.05
#: On a crowded machine it is busy, too, from the second share on if it wanted to run for the first one of the time.
WANTED: Final = 0.50
_STARVED: Final = 0.01
#: A worker of the ``dramatiq`` command that gets this signal writes the stacks of all its threads into its journal's folder.
#: Its watcher sends it, to the thread that holds the GIL.  None where the system has no real-time signals.
DUMP_SIGNAL: Final[int | None] = signal.SIGRTMIN + 7 if hasattr(signal, "SIGRTMIN") else None
#: In the folder of a journal: what was written there; and the threads that matter, one a line: native id, name.
STACKS_FILE: Final = "stacks"
THREADS_FILE: Final = "threads"
#: The name there of the thread whose pulse is watched.
SAMPLER: Final = "chaperone-sampler"
#: Frames of a stack that are kept as evidence, the innermost ones.
FRAMES: Final = 25

_STDLIB: Final = os.path.dirname(os.__file__) + os.sep
_INSTALLED: Final = re.compile(r"[/\\](?:site|dist)-packages[/\\]")


class Frame(NamedTuple):
    """One call in a stack."""

    function: str
    file: str
    line: int
    #: Tells two places in one line apart.
    at: int = 0
    #: The source of what is being evaluated there, where that was looked up: ``'lock.acquire()'``.
    call: str = ""

    def place(self) -> str:
        """``'f (file:line)'``."""
        return f"{self.function} ({self.file}:{self.line})"


#: The calls of a thread at one moment, the innermost last.
Stack = tuple[Frame, ...]


class Look(NamedTuple):
    """A thread at one moment."""

    #: Seconds of some clock that is the same for all looks at one thread.
    at: float
    #: Used by the thread, or by the process where it has no clock of its own; None where it is not known.
    cpu_s: float | None
    stack: Stack
    #: Seconds in which the thread could have run and had no processor; counted from anywhere.
    starved_s: float = 0.0


class Link(NamedTuple):
    """A thread that waits for a lock, and who holds it."""

    thread: str
    #: The job that it runs, None where it runs none.
    job_id: str | None
    #: Where it waits.
    place: str
    lock: str
    holder: str
    holder_job_id: str | None
    #: Where the holder is now.
    holder_place: str


class Diagnosis(NamedTuple):
    """What is the matter.

    Attributes:
      cause: ``'spinning'``, ``'blocked'``, ``'deadlock'``, ``'gil'``, ``'gone'`` or ``'idle'``.
      text: a sentence without a full stop.
      evidence: plain data: the stack (innermost last), the CPU curve, and since when.
    """

    cause: str
    text: str
    evidence: dict[str, Any]


def diagnose(looks: Sequence[Look], *, links: Sequence[Link] = (), quiet_s: float | None = None, gaps_s: Sequence[float] = ()) -> Diagnosis:
    """What the looks at one thread tell, oldest first.

    Parameters:
      links: the lock that it waits for, who holds it, what that one waits for, and so on; a ring is a deadlock.
      quiet_s: seconds since the job last said something, None where it never did or never had to.
      gaps_s: how long the observer itself did not run, in these looks' time.
    """
    seen = [look for look in looks if look.stack]
    if not seen:
        return Diagnosis("gone", "its thread is gone", _evidence(looks, quiet_s, gaps_s))
    last = seen[-1]
    share = busy_share(looks)
    same = _same_tail(seen, lambda look: [(f.function, f.file, f.at, f.line) for f in look.stack])
    held_s = last.at - same[0].at
    evidence = _evidence(looks, quiet_s, gaps_s)
    is_busy = share is not None and (share >= BUSY or (share >= _STARVED and _wanted_share(looks) >= WANTED))
    if links and not is_busy:
        return _locked(links, held_s, evidence)
    if share is not None and is_busy:
        return _busy(seen, share, held_s, evidence, is_still=len(same) == len(seen) > 1)
    if share is None or share < IDLE:
        found = _waiting(seen, same, held_s, evidence)
        if found is not None:
            return found
    for_s = _for(quiet_s) if quiet_s is not None else ""
    percent = "" if share is None else f", at {100 * share:.0f} % of a core"
    return Diagnosis("idle", f"alive, no progress{for_s}: in {own_frame(last.stack).place()}{percent}", evidence)


def deaf(looks: Sequence[Look], *, quiet_s: float | None = None) -> Diagnosis:
    """The process of an isolated job does not say where it is, for its interpreter does not run."""
    share = busy_share(looks)
    percent = "" if share is None else f", at {100 * share:.0f} % of a core"
    for_s = "" if quiet_s is None else _for(quiet_s)
    cause = "spinning" if share is not None and share >= BUSY else "blocked"
    return Diagnosis(cause, f"in C code{for_s}: its process does not answer{percent}", _evidence(looks, quiet_s, ()))


def held_gil(stack: Stack, silent_s: float, *, is_own: bool, job_id: str | None = None) -> Diagnosis:
    """The process says nothing, and one thread alone works.

    Parameters:
      stack: of that thread.
      is_own: whether the job that is looked at runs in it; else *job_id*, where it is known, does.
    """
    evidence = {"stack": _lines(stack), "silent_s": round(silent_s, 1)}
    where = own_frame(stack).place() if stack else "C code"
    by = "" if is_own else f", by job {job_id}" if job_id else ", by another thread"
    rest = "nothing else in this process can run"
    via = f", in {stack[-1].function}" if stack and stack[-1] != own_frame(stack) else ""
    return Diagnosis("gil", f"the GIL is held in {where}{via}{by}, for {_seconds(silent_s)}: {rest}", evidence)


def gone(cause: str | None) -> Diagnosis:
    """The process has ended.  *cause*: as the system told it, None where it did not."""
    return Diagnosis("gone", f"its process is gone: {cause or 'the cause is unknown'}", {"exit_cause": cause})


def busy_share(looks: Sequence[Look]) -> float | None:
    """The share of a core that the thread used over these looks; None where that cannot be told."""
    known = [(look.at, look.cpu_s) for look in looks if look.cpu_s is not None]
    if len(known) < 2 or known[-1][0] <= known[0][0]:
        return None
    (then, before), (now, after) = known[0], known[-1]
    return max(0.0, (after - before) / (now - then))


def _wanted_share(looks: Sequence[Look]) -> float:
    known = [(look.at, look.cpu_s + look.starved_s) for look in looks if look.cpu_s is not None and look.stack]
    if len(known) < 2 or known[-1][0] <= known[0][0]:
        return 0.0
    return (known[-1][1] - known[0][1]) / (known[-1][0] - known[0][0])


def own_frame(stack: Stack) -> Frame:
    """The innermost call in the user's own code; the innermost of all where there is none."""
    return next((frame for frame in reversed(stack) if not is_library(frame.file)), stack[-1])


def is_library(file: str) -> bool:
    """Whether a source file belongs to Python or to an installed package."""
    if _INSTALLED.search(file):
        return True
    return file.startswith((_STDLIB, "<frozen"))


def _busy(looks: Sequence[Look], share: float, held_s: float, evidence: dict[str, Any], *, is_still: bool) -> Diagnosis:
    percent = f"{100 * share:.0f} % of a core"
    inner = looks[-1].stack[-1]
    if is_still and inner.call.endswith(")"):
        text = f"spinning in C code, in {inner.call} of {own_frame(looks[-1].stack).place()}{_for(held_s)}, at {percent}"
        return Diagnosis("spinning", text, evidence)
    frame = _common(looks)
    return Diagnosis("spinning", f"spinning at {frame.place()}, at {percent}{_for(looks[-1].at - looks[0].at)}", evidence)


def _common(looks: Sequence[Look]) -> Frame:
    """The innermost call of the user's that was there at every look, where it is now."""
    depth = min(len(look.stack) for look in looks)
    last = looks[-1].stack
    shared = 0
    while shared < depth and len({(look.stack[shared].function, look.stack[shared].file) for look in looks}) == 1:
        shared += 1
    return own_frame(last[:shared]) if shared else own_frame(last)


def _waiting(looks: Sequence[Look], same: Sequence[Look], held_s: float, evidence: dict[str, Any]) -> Diagnosis | None:
    last = looks[-1]
    what = waits_for(last.stack)
    if len(same) == len(looks):
        return Diagnosis("blocked", f"blocked in {own_frame(last.stack).place()}{_for(held_s)}{what and f': {what}'}", evidence)
    frame = _common(looks)
    if what and all(waits_for(look.stack) for look in looks):
        span_s = last.at - looks[0].at
        return Diagnosis("blocked", f"blocked in {frame.place()}{_for(span_s)}, again and again: {what}", evidence)
    return None


def _locked(links: Sequence[Link], held_s: float, evidence: dict[str, Any]) -> Diagnosis:
    first = links[0]
    evidence["locks"] = [link._asdict() for link in links]
    ring = [link.thread for link in links]
    if links[-1].holder in ring:
        who = "; ".join(
            f"{_who(link.thread, link.job_id)} waits in {link.place} for {link.lock}, held by {_who(link.holder, link.holder_job_id)}"
            for link in links[ring.index(links[-1].holder) :]
        )
        return Diagnosis("deadlock", f"deadlock{_for(held_s)}: {who}", evidence)
    text = (
        f"blocked in {first.place}{_for(held_s)}: waits for the lock {first.lock}, "
        f"held by {_who(first.holder, first.holder_job_id)} in {first.holder_place}"
    )
    return Diagnosis("blocked", text, evidence)


def _who(thread: str, job_id: str | None) -> str:
    return f"job {job_id} ({thread})" if job_id else f"thread {thread}"


#: What a call is for, by the source of it; the first that matches.
_CALLS: Final = tuple(
    (re.compile(pattern), what)
    for pattern, what in (
        (r"\bsleep\(", "sleeps"),
        (r"\.acquire\(|\block\b|\b_?lock$|[lL]ock\)?$|[sS]emaphore", "waits for a lock"),
        (r"\b(?:flock|lockf)\(", "waits for the lock of a file"),
        (r"waitpid|\.communicate\(|wait4|waitid", "waits for a process"),
        (r"\b(?:recv|recv_into|recvfrom|read_response|readinto|do_handshake|_read_bytes)\w*\(", "waits for data from a socket"),
        (r"\bconnect\w*\(|getaddrinfo|gethostby", "waits for a connection"),
        (r"\baccept\(", "waits for somebody to connect"),
        (r"\bsend(?:all|to|msg)?\(", "waits to send to a socket"),
        (r"\b(?:select|poll|epoll_wait)\(", "waits for a file or a socket"),
        (r"\binput\(|\.read\w*\(", "waits for data to read"),
        (r"\.join\(", "waits for a thread or a process to end"),
        (r"\.get\(", "waits for something in a queue"),
        (r"\.result\(", "waits for a result"),
        (r"\.wait\(", "waits to be woken"),
    )
)
#: What calls of the standard library are for, by the end of their file and their name; looked for from the innermost on.
_LIBRARY: Final = {
    ("subprocess.py", "wait"): "waits for a process",
    ("subprocess.py", "_wait"): "waits for a process",
    ("subprocess.py", "communicate"): "waits for a process",
    ("queue.py", "get"): "waits for something in a queue",
    ("queue.py", "put"): "waits for room in a queue",
    ("_base.py", "result"): "waits for a result",
    ("threading.py", "join"): "waits for a thread to end",
    ("connection.py", "recv"): "waits for another process to send",
    ("ssl.py", "read"): "waits for data from a socket",
    ("ssl.py", "recv"): "waits for data from a socket",
    ("ssl.py", "recv_into"): "waits for data from a socket",
    ("ssl.py", "do_handshake"): "waits for a connection",
    ("socket.py", "readinto"): "waits for data from a socket",
    ("socket.py", "create_connection"): "waits for a connection",
    ("socket.py", "getaddrinfo"): "waits for the address of a host",
    ("tasks.py", "sleep"): "sleeps",
    ("locks.py", "acquire"): "waits for a lock",
    ("queues.py", "get"): "waits for something in a queue",
    ("queues.py", "put"): "waits for room in a queue",
    ("streams.py", "read"): "waits for data from a socket",
    ("streams.py", "readline"): "waits for data from a socket",
    ("streams.py", "readexactly"): "waits for data from a socket",
    ("streams.py", "open_connection"): "waits for a connection",
    ("locks.py", "wait"): "waits to be woken",
    ("threading.py", "wait"): "waits to be woken",
}


def waits_for(stack: Stack) -> str:
    """What a thread that uses no CPU waits for, in words, with the call where it is known; empty where that cannot be told."""
    inner = stack[-1]
    names = {(os.path.basename(frame.file), frame.function.rpartition(".")[2]): None for frame in stack if is_library(frame.file)}
    what = next((said for key, said in _LIBRARY.items() if key in names), "")
    if not what and inner.call:
        what = next((said for pattern, said in _CALLS if pattern.search(inner.call)), "")
    if inner.call and not is_library(inner.file):
        return f"{what} in {inner.call}" if what else inner.call
    return what


def _same_tail(looks: Sequence[Look], key: Any) -> Sequence[Look]:
    """The looks at the end that all show the same place."""
    place = key(looks[-1])
    first = len(looks)
    while first and key(looks[first - 1]) == place:
        first -= 1
    return looks[first:]


def _evidence(looks: Sequence[Look], quiet_s: float | None, gaps_s: Sequence[float]) -> dict[str, Any]:
    if not looks:
        return {"stack": [], "quiet_s": quiet_s}
    start = looks[0].at
    return {
        "stack": _lines(next((look.stack for look in reversed(looks) if look.stack), ())),
        "cpu": [[round(look.at - start, 2), round(look.cpu_s, 3)] for look in looks if look.cpu_s is not None],
        "looks": len(looks),
        "seconds": round(looks[-1].at - start, 2),
        "quiet_s": None if quiet_s is None else round(quiet_s, 1),
        "gaps_s": [round(gap, 1) for gap in gaps_s],
    }


def _lines(stack: Stack) -> list[str]:
    """Innermost last, as Python prints a stack."""
    return [f'File "{f.file}", line {f.line}, in {f.function}' + (f": {f.call}" if f.call else "") for f in stack[-FRAMES:]]


def _for(seconds: float) -> str:
    return f" for {_seconds(seconds)}" if seconds >= 0.05 else ""


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


_THREAD: Final = re.compile(r"^(Current thread|Thread) (0x[0-9a-f]+)(?: \[[^\]]*\])? \(most recent call first\):$")
_FRAME: Final = re.compile(r'^  File "(.*)", line (\d+|\?\?\?) in (.*)$')


_LINE: Final = re.compile(r'\s*File "(?P<file>.+)", line (?P<line>\d+), in (?P<function>.+)')


def parse_stack(lines: Sequence[str]) -> Stack:
    """A stack as :mod:`traceback` formats it, the innermost call last; empty where these lines are none."""
    found: list[Frame] = []
    for line in "\n".join(lines).splitlines():
        if match := _LINE.fullmatch(line):
            found.append(Frame(match["function"], match["file"], int(match["line"])))
        elif found and not found[-1].call:  # below its source, some versions of Python mark a part of it
            found[-1] = found[-1]._replace(call=line.strip())
    return tuple(each._replace(call="") for each in found[:-1]) + tuple(found[-1:])


def parse_dump(text: str) -> tuple[Stack, list[Stack]]:
    """What :mod:`faulthandler` wrote of all threads: the stack of the one that was asked, and those of the others; innermost last.

    It comes from another process: what does not look like a stack is left out.
    """
    current: list[Frame] = []
    others: list[list[Frame]] = []
    into: list[Frame] | None = None
    for line in text.splitlines():
        if head := _THREAD.match(line):
            into = [] if head[1] == "Thread" else current
            if into is not current:
                others.append(into)
            elif current:
                break  # a second dump
        elif into is not None and (found := _FRAME.match(line)):
            into.append(Frame(found[3][:200], found[1][:500], int(found[2]) if found[2].isdigit() else 0))
        elif not line.startswith("  "):
            into = None
    return tuple(reversed(current)), [tuple(reversed(each)) for each in others if each]
