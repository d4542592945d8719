from __future__ import annotations

import contextlib
import dis
import errno
import itertools
import json
import logging
import mmap
import os
import resource
import signal
import struct
from collections import deque
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dramatiq_chaperone import records
from dramatiq_chaperone.errors import JournalError
from dramatiq_chaperone.journal import ControlBlock, Journal, JournalDirectory, folders, owner, segments
from dramatiq_chaperone.journal.locks import OWNER, WRITER, LockFile

SMALL = 4096


def origin(worker_id="host-1-abc"):
    return records.Origin(worker_id, "host", "boot:ns", os.getpid(), 1.5, "worker", master_pid=7)


def note(number, size=0, kind=records.EVENT):
    return (kind, float(number), "x" * size)


def numbers(entries):
    return [int(entry[1]) for entry in entries]


def read_all(reader, position=0, **options):
    found = []
    while True:
        entries, position = reader.read(position, **options)
        if not entries:
            return found, position
        found += entries


@pytest.fixture
def small_segments(monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT_BYTES", SMALL)


@pytest.fixture
def journal(tmp_path):
    it = Journal(tmp_path / "state" / "journal", origin())
    yield it
    it.close()


@pytest.fixture
def directory(journal):
    return JournalDirectory(journal.path.parent)


@pytest.fixture
def reader(directory, journal):
    it = directory.take(journal.origin.worker_id)
    yield it
    it.release()


@contextlib.contextmanager
def full_disk():
    """No file may grow to the size of a segment, in this process; the kernel says so in the way of a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (segments.SEGMENT_BYTES // 2, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# Entries and positions


def test_what_is_appended_is_read_in_order_and_once(journal, reader):
    entries = [(records.STARTED, 1.5, "a", None, True, ("x", "é\0🦆\ud800"), b"raw", -(1 << 70)), note(2), note(3)]
    for entry in entries:
        journal.append(entry)
    found, position = reader.read(0)
    assert found == entries
    assert reader.read(position) == ([], position)
    journal.append(note(4))
    assert numbers(reader.read(position)[0]) == [4]


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, SMALL - 60), max_size=60),
    budgets=st.lists(st.integers(1, 3 * SMALL), min_size=1, max_size=8),
    looks=st.sets(st.integers(0, 60)),
    is_freed=st.booleans(),
)
def test_entries_of_any_sizes_are_read_in_order_for_any_budget(tmp_path_factory, sizes, budgets, looks, is_freed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "SEGMENT_BYTES", SMALL)
        directory = tmp_path_factory.mktemp("journal")
        journal = Journal(directory, origin())
        reader = JournalDirectory(directory).take(journal.origin.worker_id)
        found, position, turn = [], 0, 0

        def look():
            nonlocal position, turn
            more, after = reader.read(position, max_bytes=budgets[turn % len(budgets)])
            assert after >= position
            found.extend(more)
            position, turn = after, turn + 1
            if is_freed:
                reader.free(position)
            return more

        for number, size in enumerate(sizes):
            if number in looks:
                look()
            journal.append(note(number, size))
        while look():
            pass
        assert [(int(at), len(text)) for _, at, text in found] == list(enumerate(sizes))
        journal.close()
        reader.remove()
        assert not list(directory.iterdir())


def test_an_entry_may_fill_a_segment_to_its_last_byte(small_segments, journal, reader):
    size = SMALL - len(segments.encode(note(0, 1000))) + 1000
    assert len(segments.encode(note(0, size))) == SMALL
    for number in range(3):
        journal.append(note(number, size))
        assert reader.read(number * SMALL)[1] == (number + 1) * SMALL
    reader.free(3 * SMALL)
    assert journal.waiting_segments() == 0
    journal.append(note(3))
    assert numbers(reader.read(3 * SMALL)[0]) == [3]


def test_what_is_appended_while_a_segment_is_read_is_not_passed_over(small_segments, journal, reader, monkeypatch):
    read, counter = segments.read, iter(range(100))

    def overtaken(path, offset):
        data = read(path, offset)
        for number in itertools.islice(counter, 10):
            journal.append(note(number, 1000))
        return data

    monkeypatch.setattr(segments, "read", overtaken)
    journal.append(note(-1))
    found, position = [], 0
    for _ in range(40):
        entries, position = reader.read(position)
        found += entries
    assert numbers(found) == list(range(-1, 100))


def test_a_missing_segment_is_passed_over(small_segments, journal, reader):
    for number in range(8):
        journal.append(note(number, SMALL // 2 + 1))
    segments.segment_path(journal.path, 3).unlink()
    segments.segment_path(journal.path, 4).unlink()
    assert numbers(read_all(reader)[0]) == [0, 1, 2, 5, 6, 7]


def test_free_deletes_what_lies_wholly_before_a_position_and_nothing_else(small_segments, journal, reader):
    for number in range(4):
        journal.append(note(number, SMALL // 2 + 1))
    _, position = reader.read(0, max_bytes=SMALL // 2)
    reader.free(position)
    assert segments.numbers(journal.path) == [0, 1, 2, 3]
    assert reader.backlog_bytes(position) == 4 * SMALL
    _, position = reader.read(position, max_bytes=1)
    reader.free(position)
    assert segments.numbers(journal.path) == [1, 2, 3]
    assert reader.backlog_bytes(position) == 3 * SMALL


def test_a_torn_entry_ends_its_segment(small_segments, journal, reader):
    for number in range(3):
        journal.append(note(number, 100))
    size = len(segments.encode(note(0, 100)))
    path = segments.segment_path(journal.path, 0)
    whole = path.read_bytes()
    for keep in range(size):
        path.write_bytes(whole[: 2 * size + keep] + bytes(SMALL - 2 * size - keep))
        assert numbers(reader.read(0)[0]) == [0, 1]
        path.write_bytes(whole[: 2 * size + keep])
        assert numbers(reader.read(0)[0]) == [0, 1]


def test_an_entry_that_is_too_large_or_no_plain_data_is_refused_and_harms_no_other(journal, reader):
    journal.append(note(0))
    with pytest.raises(JournalError, match="larger than a segment"):
        journal.append(note(1, segments.SEGMENT_BYTES))
    with pytest.raises(JournalError, match="plain data"):
        journal.append((records.EVENT, 1.0, object()))
    journal.append(note(2))
    assert numbers(reader.read(0)[0]) == [0, 2]


def test_a_closed_journal_refuses_entries_and_can_still_be_read(journal, reader):
    journal.append(note(0))
    assert reader.owner_alive()
    journal.close()
    journal.close()
    with pytest.raises(JournalError, match="closed"):
        journal.append(note(1))
    assert journal.retry()
    assert journal.control.read() is None
    assert not reader.owner_alive()
    assert numbers(reader.read(0)[0]) == [0]


def test_a_signal_handler_may_append_in_the_middle_of_an_append(small_segments, journal, reader, monkeypatch):
    allocate, count = segments.new_mapping, 0

    def interrupted(path, size):
        nonlocal count
        for _ in range(3 if count < 30 else 0):
            journal.append(note(1000 + count, 1500))
            count += 1
        return allocate(path, size)

    monkeypatch.setattr(segments, "new_mapping", interrupted)
    for number in range(20):
        journal.append(note(number, 1500))
    found = numbers(read_all(reader)[0])
    assert [number for number in found if number < 1000] == list(range(20))
    assert [number for number in found if number >= 1000] == list(range(1000, 1000 + count))


class Interrupted(BaseException):
    pass


class InterruptedMapping(mmap.mmap):
    """An interrupt comes when the entry is written, at the earliest moment at which the interpreter lets it in."""

    def write(self, data):
        super().write(data)
        raise Interrupted


def test_an_interrupt_with_the_return_of_a_write_neither_loses_nor_doubles_what_waited(small_segments, journal, reader, monkeypatch):
    with full_disk():
        for number in range(4):
            journal.append(note(number))
    allocate = segments.new_mapping

    def interrupted(path, size):
        allocate(path, size).close()
        with path.open("r+b") as file:
            return InterruptedMapping(file.fileno(), size)

    with monkeypatch.context() as patch:
        patch.setattr(segments, "new_mapping", interrupted)
        for _ in range(2):
            with pytest.raises(Interrupted):
                journal.retry()
    journal.append(note(4))
    assert journal.retry()
    assert numbers(read_all(reader)[0]) == list(range(5))


class InterruptedWaiting(deque):
    """An interrupt comes when the first entry waits."""

    def append(self, record):
        super().append(record)
        if len(self) == 1:
            raise Interrupted


def test_what_follows_an_interrupted_entry_does_not_go_before_it(small_segments, journal, reader):
    """The first does not fit into the rest of its segment, the second would."""
    journal.append((records.EVENT, 0.0, "x" * (segments.SEGMENT_BYTES - 300)))
    journal._waiting = InterruptedWaiting()
    with pytest.raises(Interrupted):
        journal.append((records.EVENT, 1.0, "x" * 400))
    journal.append((records.EVENT, 2.0, ""))
    assert [entry[1] for entry in read_all(reader)[0]] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("function", [each for each in vars(Journal).values() if callable(each)], ids=lambda each: each.__name__)
def test_an_interrupt_at_the_end_of_a_turn_of_a_loop_is_inside_of_what_is_around_the_loop(function):
    entries = dis.Bytecode(function).exception_entries

    def handlers(offset):
        return {entry.target for entry in entries if entry.start <= offset < entry.end}

    for step in dis.get_instructions(function):
        if "JUMP_BACKWARD" in step.opname and not step.opname.endswith("NO_INTERRUPT"):
            assert handlers(step.argval) <= handlers(step.offset), f"line {step.positions.lineno}: move the loop out of the try"


# The full disk


def test_while_the_disk_is_full_entries_wait_in_memory_and_samples_are_dropped(small_segments, journal, reader, caplog):
    journal.append(note(0, SMALL // 2))
    with full_disk():
        for number in range(1, 30, 3):
            journal.append(note(number, SMALL // 2))
            journal.append(note(number + 1))  # it would still fit into the segment, but it is not its turn
            journal.append(note(number + 2, kind=records.SAMPLED))
        assert not journal.retry()
        assert numbers(read_all(reader)[0]) == [0]
        assert journal.dropped == {"Sampled": 10}
    assert journal.retry()
    assert journal.dropped == {}
    journal.append(note(100))
    found, _ = read_all(reader)
    lost = [entry for entry in found if entry[0] == records.DROPPED]
    assert [entry[2:] for entry in lost] == [("Sampled", 10)]
    found.remove(lost[0])
    assert numbers(found) == [0, *(n for n in range(1, 31) if n % 3), 100]
    said = [record.levelno for record in caplog.records]
    assert said == [logging.ERROR, logging.WARNING]


def test_append_leaves_a_full_disk_alone_for_a_while_and_then_finds_room_itself(small_segments, journal, reader, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(owner.time, "monotonic", lambda: now)
    with full_disk():
        for number in range(5):
            journal.append(note(number, SMALL // 2))
        assert journal._number == 0, "it was tried more than once"
    journal.append(note(5))
    assert reader.read(0)[0] == []
    now += owner.RETRY_S
    journal.append(note(6))
    assert numbers(read_all(reader)[0]) == list(range(7))


def test_what_does_not_fit_into_memory_is_dropped_and_counted(small_segments, journal, reader, monkeypatch):
    monkeypatch.setattr(owner, "OVERFLOW_BYTES", 3 * SMALL)
    with full_disk():
        for number in range(10):
            journal.append(note(number, SMALL // 2))
        assert journal.dropped == {"StoredEvent": 5}
    assert journal.retry()
    journal.append(note(10))
    assert [entry[1] if entry[0] == records.EVENT else entry[2:] for entry in read_all(reader)[0]] == [
        0, 1, 2, 3, 4, ("StoredEvent", 5), 10,
    ]  # fmt: skip


def test_a_journal_that_ends_while_the_disk_is_full_says_what_is_lost(small_segments, journal, reader, caplog):
    journal.append(note(0, SMALL // 2))
    with full_disk():
        journal.append(note(1, SMALL // 2))
        journal.append(note(2, SMALL // 2))
        journal.close()
    assert "2 entries are lost" in caplog.text
    assert journal.retry()
    assert numbers(read_all(reader)[0]) == [0], "what is said to be lost is not written later, when another may have removed the journal"


def test_a_journal_that_ends_writes_what_waits(small_segments, journal, reader):
    with full_disk():
        journal.append(note(0))
    journal.close()
    assert numbers(read_all(reader)[0]) == [0]


def test_room_that_cannot_be_had_is_an_error_from_the_start_and_leaves_nothing_behind(tmp_path, monkeypatch):
    def refuse(path, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("dramatiq_chaperone.journal.control.new_mapping", refuse)
    with pytest.raises(JournalError, match="No space left"):
        Journal(tmp_path, origin())
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    Journal(tmp_path, origin()).close()


def test_a_file_system_that_cannot_allocate_gets_zeros(tmp_path, monkeypatch):
    def refuse(fd, offset, size):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with segments.new_mapping(tmp_path / "file", 3 * SMALL):
        assert (tmp_path / "file").stat().st_blocks * 512 >= 3 * SMALL


# Locks and folders


def test_one_has_it_at_a_time(journal, directory, reader):
    assert journal.has_writer()
    assert directory.take(reader.name) is None
    assert not directory.is_orphan(reader.name)
    reader.release()
    reader.release()
    assert not journal.has_writer()
    again = directory.take(reader.name)
    assert again.origin == journal.origin
    again.release()


def test_names_are_those_of_whole_journals(tmp_path, journal, directory):
    (directory.path / ".draft").mkdir()
    (directory.path / "file").touch()
    (directory.path / "a-folder").mkdir()
    assert directory.names() == ["a-folder", journal.origin.worker_id]
    assert directory.take("a-folder") is directory.take("file") is directory.take("nothing") is None
    assert not any(directory.is_orphan(name) for name in ("a-folder", "file", "nothing"))
    assert JournalDirectory(tmp_path / "nowhere").names() == []


def test_another_spelling_of_the_path_is_the_same_lock(tmp_path, journal, directory):
    (tmp_path / "link").symlink_to(directory.path)
    other = JournalDirectory(tmp_path / "link")
    assert not other.is_orphan(journal.origin.worker_id), "looking must not drop the owner's lock"
    reader = directory.take(journal.origin.worker_id)
    assert other.take(journal.origin.worker_id) is None
    reader.release()


def test_remove_needs_a_dead_owner_and_leaves_nothing(journal, directory, reader):
    with pytest.raises(JournalError, match="lives"):
        reader.remove()
    journal.close()
    assert directory.is_orphan(reader.name)
    assert directory.orphans() == [reader.name]
    reader.remove()
    assert not list(directory.path.iterdir())
    assert LockFile._open == {}


def test_a_lock_that_was_opened_before_its_journal_was_removed_takes_nothing(journal, directory, reader, monkeypatch):
    journal.close()
    late = LockFile.open(journal.path / "lock")
    reader.remove()
    monkeypatch.setattr(LockFile, "open", lambda path: late)
    assert directory.take(journal.origin.worker_id) is None


def test_the_remains_of_a_killed_process_are_swept_and_a_draft_in_the_making_is_not(tmp_path):
    (tmp_path / ".killed-before-its-lock.0").mkdir()
    (tmp_path / ".killed-in-the-making.0").mkdir()
    for name in ("lock", "control"):
        (tmp_path / ".killed-in-the-making.0" / name).touch()
    (tmp_path / ".killed-while-removing").mkdir()
    for name in ("lock", "00000003"):
        (tmp_path / ".killed-while-removing" / name).touch()
    making, lock = folders._make_draft(tmp_path / "living", b"{}")
    Journal(tmp_path, origin()).close()
    assert {path.name for path in tmp_path.iterdir()} == {making.name, "host-1-abc"}
    lock.release(OWNER)
    lock.close()


class Killed(BaseException):
    pass


@pytest.mark.parametrize("survives", range(4))
def test_a_journal_that_is_half_removed_is_no_journal_any_more(tmp_path, monkeypatch, survives):
    journal = Journal(tmp_path, origin())
    journal.append(note(0))
    journal.close()
    reader = JournalDirectory(tmp_path).take("host-1-abc")
    calls = []

    def killed(path, **options):
        calls.append(path)
        if len(calls) > survives:
            raise Killed
        os.unlink(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        patch.setattr(Path, "rmdir", killed)
        with pytest.raises(Killed):
            reader.remove()
    reader.release()
    assert JournalDirectory(tmp_path).names() == []
    Journal(tmp_path, origin("next")).close()
    assert [path.name for path in tmp_path.iterdir()] == ["next"]


def test_whoever_makes_a_journal_begins_again_when_a_sweeper_comes_between(tmp_path, monkeypatch):
    create, drafts = LockFile.create, []

    def swept_before(path, content):
        drafts.append(path)
        if len(drafts) < 4:
            folders.sweep(tmp_path)
        return create(path, content)

    monkeypatch.setattr(LockFile, "create", swept_before)
    journal = Journal(tmp_path, origin())
    assert len(drafts) == 4
    assert JournalDirectory(tmp_path).names() == ["host-1-abc"]
    assert not JournalDirectory(tmp_path).is_orphan("host-1-abc")
    journal.close()


def test_two_journals_never_have_one_name(tmp_path, journal):
    with pytest.raises(JournalError):
        Journal(journal.path.parent, origin())
    assert [path.name for path in journal.path.parent.iterdir()] == ["host-1-abc"]
    journal.append(note(0))


def test_a_lock_file_that_a_crash_of_the_machine_emptied_loses_no_entries(journal, directory, caplog):
    journal.append(note(0))
    journal.close()
    (journal.path / "lock").write_bytes(b"")
    reader = directory.take("host-1-abc")
    assert reader.origin.worker_id == "host-1-abc"
    assert reader.origin.host == "host"
    assert numbers(reader.read(0)[0]) == [0]
    assert "cannot be read" in caplog.text
    reader.remove()


def test_a_deleted_state_directory_is_no_error_for_those_who_look(journal, directory, reader):
    journal.append(note(0))
    for path in journal.path.iterdir():
        path.unlink()
    journal.path.rmdir()
    journal.append(note(1))
    assert journal.waiting_segments() == 0
    assert reader.read(0) == ([], 0)
    assert reader.backlog_bytes(0) == 0
    reader.free(1 << 20)
    with pytest.raises(JournalError, match="gone"):
        reader.tell({})
    journal.close()
    reader.remove()


def test_a_lock_that_is_closed_holds_nothing(journal, directory):
    journal.close()
    lock = LockFile.open(journal.path / "lock")
    assert lock.acquire(WRITER)
    assert not lock.acquire(WRITER)
    lock.release(WRITER)
    lock.close()
    assert not lock.acquire(WRITER)
    assert not lock.is_free(WRITER)
    lock.release(WRITER)


def in_a_fork(act):
    """What *act* returns, as JSON, in a forked child."""
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            os.write(write, json.dumps(act()).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        answer = pipe.read()
    assert os.waitpid(pid, 0)[1] == 0
    return json.loads(answer)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_neither_writes_nor_unlocks_what_is_its_parents(journal, directory, reader):
    journal.append(note(0))

    def in_the_child():
        with contextlib.suppress(JournalError):
            journal.append(note(99))
            return "it was written"
        other = JournalDirectory(journal.path.parent)
        seen = [other.is_orphan(reader.name), other.take(reader.name) is None, journal.retry(), journal.control.read()]
        reader.release()
        journal.close()
        return seen

    assert in_a_fork(in_the_child) == [False, True, True, None]
    assert in_a_fork(lambda: JournalDirectory(journal.path.parent).is_orphan(reader.name)) is False
    assert reader.owner_alive()
    journal.append(note(1))
    assert numbers(reader.read(0)[0]) == [0, 1]


# Compaction


def test_compaction_leaves_the_newest_and_the_read_segment_alone(small_segments, journal, reader):
    for number in range(24):
        journal.append(note(number, 1000))  # three in a segment
    _, position = reader.read(0, max_bytes=SMALL)
    assert position // SMALL == 1
    before = segments.segment_path(journal.path, 1).stat().st_ino, segments.segment_path(journal.path, 7).stat().st_ino
    gained = reader.compact(position, lambda entries: [entry for entry in entries if int(entry[1]) % 3 == 0])
    assert 0 < gained <= 5 * SMALL
    assert before == (segments.segment_path(journal.path, 1).stat().st_ino, segments.segment_path(journal.path, 7).stat().st_ino)
    journal.append(note(24, 1000))
    assert numbers(read_all(reader, SMALL, max_bytes=10)[0]) == [3, 4, 5, 6, 9, 12, 15, 18, 21, 22, 23, 24]
    reader.compact(position, list)
    assert reader.compact(position, list) == 0, "there is nothing more to gain"


def test_compaction_may_leave_nothing_of_a_segment(small_segments, journal, reader):
    for number in range(12):
        journal.append(note(number, 1000))
    assert reader.compact(0, lambda entries: []) == 2 * SMALL
    assert numbers(read_all(reader)[0]) == [0, 1, 2, 9, 10, 11]


def test_compaction_without_room_changes_nothing(small_segments, journal, reader, caplog):
    for number in range(12):
        journal.append(note(number, 1000))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        assert reader.compact(0, lambda entries: entries[:1] if len(entries) == 3 else entries) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "cannot be compacted" in caplog.text
    assert numbers(read_all(reader)[0]) == list(range(12))
    assert not (journal.path / ".draft").exists()


# The control block


def test_a_message_is_read_once_and_replaced_by_the_next(journal, reader):
    assert journal.control.read() is None
    reader.tell({"commands": [1, "é"]})
    assert journal.control.read() == {"commands": [1, "é"]}
    assert journal.control.read() is None
    reader.tell({"commands": []})
    reader.tell({"commands": [2]})
    assert journal.control.read() == {"commands": [2]}
    with pytest.raises(JournalError, match="does not fit"):
        reader.tell({"text": "x" * ControlBlock.BYTES})
    assert journal.control.read() is None
    reader.tell({"text": "x" * (ControlBlock.BYTES - 40)})
    assert len(journal.control.read()["text"]) == ControlBlock.BYTES - 40


def test_the_pulse_is_the_owners_and_no_message_touches_it(journal, reader):
    assert reader.pulse() == 0
    for beat in range(1, 4):
        journal.control.beat()
        assert reader.pulse() == beat
    reader.tell({"text": "x" * (ControlBlock.BYTES - 40)})
    assert reader.pulse() == 3
    assert journal.control.read() is not None
    journal.control.rest()
    assert reader.pulse() == 0
    journal.control.beat()
    assert reader.pulse() == 4
    journal.control.close()
    journal.control.beat()
    assert reader.pulse() == 4
    (journal.path / "control").unlink()
    assert reader.pulse() == 0


@pytest.mark.parametrize("length", [5, 500])
def test_a_half_written_message_is_not_read_and_the_whole_one_is(journal, reader, length):
    reader.tell({"old": "x" * 100})
    path = journal.path / "control"
    old = path.read_bytes()
    reader.tell({"new": "y" * length})
    new = path.read_bytes()
    message = {"new": "y" * length}
    first_difference = next(i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b)
    last_difference = max(i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b)
    for written in range(first_difference + 1, last_difference + 1):
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as block:
            block[:] = old
            journal.control._seen = struct.unpack_from("<Q", old)[0]
            block[:written] = new[:written]
            assert journal.control.read() is None, written
            block[:] = new
        assert journal.control.read() == message


def test_a_number_alone_does_not_make_an_old_message_new(journal, reader):
    reader.tell({"old": 1})
    assert journal.control.read() == {"old": 1}
    with (journal.path / "control").open("r+b") as file:
        number = struct.unpack("<Q", file.read(8))[0]
        file.seek(0)
        file.write(struct.pack("<Q", number + 1))
    assert journal.control.read() is None
    reader.tell({"new": 2})
    assert journal.control.read() == {"new": 2}


def test_the_checksum_is_the_one_of_zlib(journal):
    journal.append(note(0))
    data = segments.segment_path(journal.path, 0).read_bytes()
    length, checksum = struct.unpack_from("<II", data)
    assert crc32(data[8 : 8 + length]) == checksum


def test_no_signal_of_the_system_ends_a_process_whose_files_may_not_grow():
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN, "Python ignores it; the full-disk tests rely on that"


def test_a_journal_that_nobody_writes_to_the_store_has_a_ceiling(tmp_path):
    journal = Journal(tmp_path, origin("host-1-aaaa"), max_segments=4)
    entry = (records.EVENT, 0.0, "name", None, None, None, "x" * 100_000)
    for _ in range(100):
        journal.append(entry)
    assert journal.waiting_segments() == 4
    reader = JournalDirectory(tmp_path).take("host-1-aaaa")
    assert reader is not None
    position, found = 0, 0
    while (read := reader.read(position))[0] or not journal.retry():
        position, found = read[1], found + len(read[0])
        reader.free(position)
    found += len(reader.read(position)[0])
    assert found == 100
    reader.release()
    journal.close()
