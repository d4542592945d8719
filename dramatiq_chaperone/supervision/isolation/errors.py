"""Exceptions on their way from the process of an isolated job to its worker."""

from __future__ import annotations

import pickle
import traceback
from typing import Any, NamedTuple

from ..tracebacks import hide_ours, place_of


class RemoteTraceback(Exception):
    """Where an isolated job failed, as the ``__cause__`` of its exception.

    Attributes:
      context: {file, line, code} of the innermost frame.
    """

    def __init__(self, text: str, context: dict[str, Any]) -> None:
        super().__init__(text, context)
        self.text = text
        self.context = context

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


class Packed(NamedTuple):
    """An exception that can travel."""

    #: Pickled; of one that cannot be, a RuntimeError with its name.
    exception: bytes
    trace: str
    context: dict[str, Any]


def pack(exception: BaseException) -> Packed:
    """*exception* with its traceback, as far as that lies in the job's own code."""
    hide_ours(exception)
    try:
        trace = "".join(traceback.format_exception(exception))
    except Exception as error:  # noqa: BLE001 - an exception may have a __str__ that raises anything
        trace = f"{type(exception).__qualname__}, whose text cannot be made: {error!r}\n"
    return Packed(_pickled(exception), trace, place_of(exception))


def _pickled(exception: BaseException) -> bytes:
    try:
        data = pickle.dumps(exception, pickle.HIGHEST_PROTOCOL)
        if type(pickle.loads(data)) is type(exception):  # noqa: S301 - we have just made it
            return data
    except Exception:  # noqa: BLE001, S110 - classes of the user's may raise anything here; what follows is the answer
        pass
    kind = type(exception)
    try:
        text = str(exception)
    except Exception:  # noqa: BLE001 - as above
        text = ""
    return pickle.dumps(RuntimeError(f"{kind.__module__}.{kind.__qualname__}: {text}"))


def unpack(packed: Packed) -> BaseException:
    """The exception, with its traceback as its cause."""
    exception: BaseException
    try:
        exception = pickle.loads(packed.exception)  # noqa: S301 - our own child wrote it
    except Exception as error:  # noqa: BLE001 - a class may be there only in the child
        exception = RuntimeError(f"An exception of the job cannot be read here: {error!r}")
    exception.__cause__ = RemoteTraceback(packed.trace, packed.context)
    return exception
