"""Which metrics an expression is made of."""

from __future__ import annotations

import re

from dramatiq_chaperone.metrics.names import SERIES

#: Every metric and its type.
TYPES = {each.name: each.type for each in SERIES}
_SUFFIX = re.compile(r"_(?:bucket|sum|count)$")


def metrics_in(expr: str) -> set[str]:
    """The metrics of ours; a histogram without the suffix of its series."""
    found = set()
    for word in re.findall(r"(?<![\w:])chaperone_\w+", expr):
        name = word if word in TYPES else _SUFFIX.sub("", word)
        assert name in TYPES, f"{word} is made up"
        found.add(name)
    return found
