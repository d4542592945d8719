"""The audit log."""

from __future__ import annotations

import pytest

from dramatiq_chaperone.store import Store, audit
from tests.contracts.conftest import MakeStore


@pytest.mark.parametrize("key_type", ["id", "ulid", "uuid"])
def test_what_was_begun_gets_its_result(make_store: MakeStore, key_type: str) -> None:
    store = make_store(primary_key_type=key_type)
    first = audit.begin(store, who="ann", what="kill", target="j1", origin="cli")
    audit.begin(store, who="bob", what="purge", target="default", origin="dashboard 10.0.0.7", result="3 messages")
    assert {entry.who: entry.result for entry in audit.entries(store)} == {"ann": None, "bob": "3 messages"}
    audit.finish(store, first, "cancelled")
    found = {entry.who: entry for entry in audit.entries(store)}
    assert found["ann"][1:] == ("ann", "kill", "j1", "cli", "cancelled")
    assert found["ann"].created_at.tzinfo is not None


def test_the_newest_come_first(store: Store) -> None:
    for n in range(5):
        audit.begin(store, who="ann", what="kill", target=f"j{n}", origin="cli")
    assert [entry.target for entry in audit.entries(store, limit=2)] == ["j4", "j3"]


def test_a_long_text_is_cut(store: Store) -> None:
    audit.begin(store, who="x" * 1000, what="x" * 1000, target="x" * 1000, origin="x" * 1000)
    assert [len(text) for text in audit.entries(store)[0][1:5]] == [255, 40, 255, 255]
