"""The journal: the only way out of a worker.

A process writes each change of state into a row of memory-mapped segments; whoever holds the journal's lock brings
them into the store.  What is in the mapping survives SIGKILL, and appending costs no system call.

A journal is a folder named after its process::

    lock        JSON of the Origin; byte 0 is locked by the one who writes the journal to the store,
                byte 1 by its owner for as long as that lives, so that a death is known without asking for pids
    control     what the watcher tells the owner (ControlBlock)
    00000000    segments, numbered; the newest is mapped by the owner, one that is in the store is deleted

A folder whose name begins with a dot is a journal in the making, or one that is being deleted.
"""

from __future__ import annotations

from .control import ControlBlock
from .owner import Journal
from .reader import JournalDirectory, JournalReader
from .segments import SEGMENT_BYTES
from .thinning import thin

__all__ = ["SEGMENT_BYTES", "ControlBlock", "Journal", "JournalDirectory", "JournalReader", "thin"]
