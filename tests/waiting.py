"""Waiting for a condition, never for time."""

from __future__ import annotations

from dramatiq_chaperone.testing import wait_until

__all__ = ["wait_until"]
