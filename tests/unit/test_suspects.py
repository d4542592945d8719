"""Suspects as they stand in a control block."""

from __future__ import annotations

from uuid import uuid4

from dramatiq_chaperone.journal import ControlBlock
from dramatiq_chaperone.journal.suspects import code_of, decode, encode
from dramatiq_chaperone.store.crashes import MAX_SUSPECTS


def test_what_is_told_is_what_is_known() -> None:
    job_ids = [str(uuid4()) for _ in range(1000)]
    codes = decode(encode(job_ids))
    assert all(code_of(job_id) in codes for job_id in job_ids)
    assert decode(encode([])) == frozenset()
    assert decode(encode(["é\ud800", "a" * 300])) == {code_of("é\ud800"), code_of("a" * 300)}


def test_as_many_as_there_may_be_fit_into_half_a_block() -> None:
    assert len(encode(str(number) for number in range(MAX_SUSPECTS))) <= ControlBlock.BYTES / 2
