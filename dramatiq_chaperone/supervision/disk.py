"""Free disk space: read once a second, asked about for each message."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from ..events import DiskSpaceLow, DiskSpaceRecovered
from ..limits import DISK, MB, Limit
from ..service import internal_error
from ..settings import Settings
from .admission import PutOff
from .policy import Policy
from .recorder import Recorder
from .violations import Violations

logger = logging.getLogger("dramatiq_chaperone.disk")

#: Seconds between two readings.
READ_EVERY_S: Final = 1.0
#: A message that waits for space looks again after so many seconds.
STEP_S: Final = 30.0
#: Space is low until it is so much above its threshold: it does not come and go with each file.
RECOVERED: Final = 1.05

_OPTION: Final = "disk_space_threshold"


class FreeSpace(NamedTuple):
    """What is left on one file system."""

    path: str
    free_mb: float


def free_space(paths: Iterable[str]) -> FreeSpace | None:
    """The file system of *paths* with the least space that this user may fill; None if none of them can be filled at all.

    Those that are mounted read-only, or have no size, are left out.
    """
    found = []
    for path in paths:
        system = os.statvfs(path)
        if system.f_blocks and not system.f_flag & os.ST_RDONLY:
            found.append(FreeSpace(path, system.f_bavail * system.f_frsize / MB))
    return min(found, key=lambda space: space.free_mb, default=None)


class Episodes:
    """Which thresholds the free space is below.  Pure.

    Attributes:
      low: the thresholds (MB) of the episodes that last.
    """

    def __init__(self) -> None:
        self.low: frozenset[float] = frozenset()

    def look(self, free_mb: float, thresholds: Iterable[float]) -> tuple[list[float], list[float]]:
        """The thresholds whose episode begins, and those whose episode ends, with this reading; both sorted."""
        begun = {each for each in thresholds if each not in self.low and free_mb < each}
        ended = {each for each in self.low if free_mb >= each * RECOVERED}
        self.low = (self.low | begun) - ended
        return sorted(begun), sorted(ended)


class DiskCheck:
    """Puts messages off while less space is free than their threshold; a check of :class:`~.admission.Admission`.

    The threshold of a message goes before that of its actor, that before the setting; 0 switches it off.  The setting's
    own default puts nothing off: below it, it is only written down.

    Parameters:
      options_of_actors: gives the options of each actor that the broker knows.
      read: gives the free space; raises OSError.
    """

    def __init__(
        self,
        settings: Settings,
        recorder: Recorder,
        options_of_actors: Callable[[], Iterable[Mapping[str, Any]]],
        read: Callable[[], FreeSpace | None] | None = None,
    ) -> None:
        self._recorder, self._options_of_actors = recorder, options_of_actors
        self._default = float(settings.disk_space_threshold) if settings.is_set(_OPTION) else 0.0
        self._watched = frozenset({float(settings.disk_space_threshold)} - {0.0})
        paths = _paths(settings)
        self._read = read or (lambda: free_space(paths))
        self._next = 0.0
        self._holding: set[float] = set()
        self._episodes = Episodes()
        #: Thresholds that came with a message.
        self._seen: set[float] = set()
        self._space = FreeSpace("", float("inf"))
        #: Nothing waits while this is 0: the highest threshold of an actor, or of all, that the free space is below.
        self._highest = 0.0

    def __call__(self, message: Any, policy: Policy) -> PutOff | None:
        """A comparison, and a look for the option, while there is space enough."""
        if not self._highest and _OPTION not in message.options:
            return None
        return self._verdict(message.options, policy)

    def _verdict(self, options: Mapping[str, Any], policy: Policy) -> PutOff | None:
        threshold = float(options.get(_OPTION, policy.options.get(_OPTION, self._default)) or 0)
        space = self._space
        if not threshold or (space.free_mb >= threshold and threshold not in self._episodes.low):
            return None
        if len(self._seen) < 100:  # enough for what people set by hand
            self._seen.add(threshold)
        return PutOff(time.time() + STEP_S, f"less than {threshold:g} MB are free on {space.path}")

    @property
    def is_in_use(self) -> bool:
        """Whether there is a threshold at all for which messages may wait."""
        return bool(self._holding)

    def turn(self, now: float) -> None:
        """Read the free space anew, at most once a second, and say what has begun and what has ended.  *now* is monotonic."""
        if now < self._next:
            return
        self._next = now + READ_EVERY_S * 0.999
        try:
            space = self._read()
        except OSError as error:
            internal_error("disk", error)
            return
        if space is None:
            return
        actors = {float(options.get(_OPTION) or 0) for options in self._options_of_actors()} - {0.0}
        self._holding = holding = actors | self._seen | ({self._default} - {0.0})
        self._space = space
        begun, ended = self._episodes.look(space.free_mb, holding | self._watched)
        for threshold in begun:
            self._say_low(space, threshold, holds=threshold in holding)
        for threshold in ended:
            self._say_recovered(space, threshold)
        self._highest = max(self._episodes.low & holding, default=0.0)

    def _say_low(self, space: FreeSpace, threshold: float, *, holds: bool) -> None:
        origin = self._recorder.origin
        if holds:
            logger.warning("Less than %g MB are free on %s (%.0f MB): jobs wait until there is more.", threshold, space.path, space.free_mb)
        self._recorder.emit(
            DiskSpaceLow(
                worker_id=origin.worker_id,
                host=origin.host,
                pid=origin.pid,
                path=space.path,
                threshold=threshold,
                free=space.free_mb,
                jobs_wait=holds,
                began_at=datetime.now(UTC),
            )
        )
        limit = Limit(threshold * MB, is_default=not holds)
        Violations(self._recorder).add(None, DISK, limit, space.free_mb * MB, attribution="shared", evidence={"path": space.path})

    def _say_recovered(self, space: FreeSpace, threshold: float) -> None:
        origin = self._recorder.origin
        logger.info("%.0f MB are free on %s again.", space.free_mb, space.path)
        self._recorder.emit(
            DiskSpaceRecovered(
                worker_id=origin.worker_id,
                host=origin.host,
                pid=origin.pid,
                path=space.path,
                threshold=threshold,
                free=space.free_mb,
                recovered_at=datetime.now(UTC),
            )
        )


def _paths(settings: Settings) -> list[str]:
    """Where the user says, or else where a worker writes: the state directory and that of temporary files."""
    paths = [settings.disk_path] if settings.disk_path else [settings.state_dir, Path(tempfile.gettempdir())]
    return [str(path) for path in paths]
