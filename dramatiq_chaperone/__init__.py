"""Chaperone watches over every Dramatiq job: ``broker.add_middleware(Chaperone())``."""

from __future__ import annotations

__version__ = "0.1.0"
