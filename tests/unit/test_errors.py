"""Errors say what is the matter, and carry it."""

from __future__ import annotations

from dramatiq_chaperone.errors import SchemaError, StoreUnavailable


def test_the_default_message_is_what_the_class_says_first() -> None:
    assert str(SchemaError(found=None)) == "The tables of the store are missing or of another version; run `chaperone db upgrade`."
    assert str(StoreUnavailable("no route")) == "no route"


def test_data_travels_as_attributes() -> None:
    error = SchemaError(found=1, wanted=2)
    assert (error.found, error.wanted) == (1, 2)
