"""Circuit breakers: ``with breaker("payments"):`` leaves a service that fails alone until it recovers, in every process at once.

``breakers()`` lists those of this process.  This module is light: pybreaker is imported by the first breaker.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .states import BreakerState

#: As a function has it.
__module__ = "dramatiq_chaperone.breakers"


class _Package(ModuleType):
    """The package and the function of its name are one thing, for both are public names."""

    def __call__(self) -> list[BreakerState]:
        """The state of every breaker of this process, by service."""
        from .registry import breakers

        return breakers()


sys.modules[__name__].__class__ = _Package
