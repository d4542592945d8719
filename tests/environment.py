"""The tests' own settings, taken out of the environment so that no test and no process of a test sees one of ours by accident."""

from __future__ import annotations

import os
from typing import Final

#: CHAPERONE_TEST_SCALE, CHAPERONE_TEST_RABBITMQ_URL, ..., as they were when the tests began.
TEST_SETTINGS: Final[dict[str, str]] = {}


def isolate() -> None:
    """Move every CHAPERONE_* variable of the person who runs the tests out of the way."""
    for name in [name for name in os.environ if name.startswith("CHAPERONE_")]:
        value = os.environ.pop(name)
        if name.startswith("CHAPERONE_TEST_"):
            TEST_SETTINGS[name] = value


def is_ci() -> bool:
    """Whether a server that does not answer is a failure, not a reason to skip."""
    return os.environ.get("CI", "").lower() in {"1", "true"}
