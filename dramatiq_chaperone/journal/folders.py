"""How the folder of a journal comes and goes: whole, as anyone else sees it, whenever a process is killed.

It is made, and deleted, under a name that begins with a dot, and has its real name from the moment on at which its
lock is held until all of it is in the store.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from .control import ControlBlock
from .locks import OWNER, LockFile

LOCK: Final = "lock"
CONTROL: Final = "control"
_ATTEMPTS: Final = 10


def make(folder: Path, content: bytes) -> tuple[LockFile, ControlBlock]:
    """Make the folder of a journal that this process owns.  *content* is what its lock file says.

    Raises:
      OSError: the system says no, or the folder is there.
    """
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft, lock = _make_draft(folder, content)
    try:
        control = ControlBlock(draft / CONTROL)
        os.rename(draft, folder)
    except OSError:
        discard(draft)
        lock.release(OWNER)
        lock.close()
        raise
    return lock, control


def _make_draft(folder: Path, content: bytes) -> tuple[Path, LockFile]:
    for attempt in range(_ATTEMPTS):
        draft = folder.with_name(f".{folder.name}.{attempt}")
        draft.mkdir(mode=0o700)
        try:
            return draft, LockFile.create(draft / LOCK, content)
        except FileNotFoundError:  # a sweeper came before the lock was held, and is still at it
            continue
        except OSError:
            discard(draft)
            raise
    raise FileNotFoundError(f"{folder} is deleted as often as it is made.")


def remove(folder: Path) -> None:
    """Delete the folder of a journal; nothing happens if it is gone."""
    hidden = folder.with_name(f".{folder.name}")
    with contextlib.suppress(FileNotFoundError):
        os.rename(folder, hidden)
        discard(hidden)


def discard(hidden: Path) -> None:
    """Delete a hidden folder, its lock file last: as long as there is anything in it, a sweeper can tell whose it is."""
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(hidden), key=lambda name: name == LOCK):
            (hidden / name).unlink(missing_ok=True)
        hidden.rmdir()


def sweep(directory: Path) -> None:
    """Delete what processes left behind that were killed while they made, or deleted, a journal."""
    if not directory.exists():
        return
    for name in os.listdir(directory):
        if not name.startswith("."):
            continue
        hidden = directory / name
        lock = LockFile.open(hidden / LOCK)
        if lock is None:
            with contextlib.suppress(OSError):
                hidden.rmdir()  # if it is being made this moment, its maker begins again
            continue
        if lock.acquire(OWNER):
            try:
                discard(hidden)
            finally:
                lock.release(OWNER)
        lock.close()
