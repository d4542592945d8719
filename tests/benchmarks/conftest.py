"""Fixtures of the benchmarks.  What they measure with: lab.py; their tables: figures.py."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests import servers
from tests.benchmarks import figures
from tests.benchmarks.lab import Lab


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Makes workers and senders to measure."""

    figures.publish("machine", figures.machine())

    def database(kind: str) -> contextlib.AbstractContextManager[str]:
        return request.getfixturevalue(kind).database()  # type: ignore[no-any-return]

    with (
        contextlib.closing(servers.RedisServer()) as server,
        contextlib.closing(Lab(tmp_path_factory.mktemp("lab"), server, database)) as made,
    ):
        yield made
