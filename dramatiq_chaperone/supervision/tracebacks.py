"""Exceptions of jobs as they are recorded: without our own frames, capped, and without secrets."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any, Final

from ..payload import Redactor, redact_text
from .recorder import to_json

_HERE: Final = Path(__file__).parent
#: The wrapper, and what runs an isolated job.
OURS: Final = (str(_HERE / "execution.py"), str(_HERE / "isolation"))
#: Frames of a traceback that are kept, the innermost ones.
TRACE_FRAMES: Final = 60

Error = tuple[str, str, str, str]


def hide_ours(exception: BaseException) -> None:
    """Take our frames out of a traceback, so that it reads, and is sent on with a retry, as it would without."""
    previous, entry = None, exception.__traceback__
    while entry is not None:
        if not entry.tb_frame.f_code.co_filename.startswith(OURS):
            previous = entry
        elif previous is None:
            exception.__traceback__ = entry.tb_next
        else:
            previous.tb_next = entry.tb_next
        entry = entry.tb_next


def place_of(exception: BaseException) -> dict[str, Any]:
    """{file, line, code} of the innermost frame; empty where there is none."""
    frames = traceback.extract_tb(exception.__traceback__, limit=-1)
    return {"file": frames[-1].filename, "line": frames[-1].lineno, "code": frames[-1].line or ""} if frames else {}


def error_of(exception: BaseException, max_bytes: int, secrets: tuple[str, ...], redactor: Redactor) -> Error:
    """(class, message, traceback, context as JSON {file, line, code}) of *exception*, each text capped and without secrets.

    Beside the values *secrets*, what looks like a secret by its name goes: from messages, not from lines of code.
    """
    kind = type(exception)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    said = str(exception)
    message = redact_text(redactor.in_text(said), secrets)
    trace = "".join(traceback.format_exception(exception, limit=-TRACE_FRAMES))
    if said:
        trace = trace.replace(said, message)
    lines = [line if line.startswith(" ") else redactor.in_text(line) for line in trace.splitlines(keepends=True)]
    context = getattr(exception.__cause__, "context", None)  # of an isolated job
    if not isinstance(context, dict):
        context = place_of(exception)
    return name, _cap(message, max_bytes), _cap_start(redact_text("".join(lines), secrets), max_bytes), to_json(context)


def _cap(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[:limit] + "… (cut)"


def _cap_start(text: str, limit: int) -> str:
    """The end of a traceback says more than its start."""
    return text if len(text) <= limit else "(cut) …" + text[-limit:]
