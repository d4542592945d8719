"""The watchdog: an address that is asked for once a minute while all is well, so that somebody else notices when it is not."""

from __future__ import annotations

import logging
import time
import urllib.request
from collections.abc import Callable
from typing import Final

from ..service import Service

logger = logging.getLogger("dramatiq_chaperone.alerts")

PING_S: Final = 60.0
_TIMEOUT_S: Final = 10.0


class Watchdog(Service):
    """Asks for *url* once a minute, as long as :meth:`well` is called at least as often."""

    name = "watchdog"

    def __init__(self, url: str, *, interval_s: float = PING_S, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(interval_s=interval_s)
        self._url, self._clock = url, clock
        self._well_at = float("-inf")
        self._is_failing = False

    def well(self) -> None:
        """All is well now."""
        self._well_at = self._clock()
        if not self.is_running:
            self.start()

    def run_once(self) -> None:
        """Ask for it, unless nobody has said for too long that all is well."""
        if self._clock() - self._well_at > self.interval_s:
            return
        try:
            with urllib.request.urlopen(self._url, timeout=_TIMEOUT_S):  # noqa: S310 - http and https alone come here
                self._is_failing = False
        except (OSError, ValueError) as error:
            if not self._is_failing:
                logger.warning("The watchdog does not answer: %s", type(error).__name__)  # its address may be a secret
            self._is_failing = True
