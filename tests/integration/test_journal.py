"""The journal, its owner and its readers: threads that are interrupted, and processes that are killed at any moment."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import random
import resource
import shutil
import sqlite3
import struct
import subprocess
import sys
import threading
from collections import defaultdict
from pathlib import Path

import pytest

from dramatiq_chaperone import records
from dramatiq_chaperone.journal import Journal, JournalDirectory, segments
from tests.scaling import scaled
from tests.waiting import wait_until

SMALL = 1 << 13


def origin(worker_id="owner"):
    return records.Origin(worker_id, "host", "boot:ns", os.getpid(), 1.5, "worker")


def read_all(reader, position=0, **options):
    found = []
    while True:
        entries, position = reader.read(position, **options)
        if not entries:
            return found
        found += entries


def by_writer(entries):
    """The numbers that each writer wrote, in the order in which they are read."""
    written = defaultdict(list)
    for kind, number, writer, *_ in entries:
        if kind != records.DROPPED:
            written[writer].append(int(number))
    return written


# kill -9 of the owner

WRITERS = """
import mmap, sys, threading
from pathlib import Path
from dramatiq_chaperone import records
from dramatiq_chaperone.journal import Journal

directory, worker_id, counts_path = sys.argv[1:]
journal = Journal(Path(directory), records.Origin(worker_id, "host", "boot:ns", 1, 1.5, "worker"))
with open(counts_path, "r+b") as file:
    acknowledged = memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")  # written in one go, where struct would put zeros first

def write(writer):
    number = 0
    while True:
        journal.append((records.EVENT, float(number), writer, "x" * (number * 37 % 300)))
        number += 1
        acknowledged[writer] = number

for writer in range(4):
    threading.Thread(target=write, args=(writer,)).start()
"""


@pytest.mark.soak
def test_what_was_acknowledged_survives_kill_9_amid_four_threads(tmp_path, start_process):
    directory = JournalDirectory(tmp_path / "journal")
    counts = tmp_path / "counts"
    for turn in range(scaled(60, at_least=4)):
        counts.write_bytes(bytes(32))
        process = start_process(sys.executable, "-c", WRITERS, directory.path, f"owner-{turn}", counts)
        enough = random.randrange(40_000)
        wait_until(lambda enough=enough: sum(struct.unpack("4Q", counts.read_bytes())) > enough, interval_s=0.001)
        process.kill()
        acknowledged = struct.unpack("4Q", counts.read_bytes())

        assert directory.is_orphan(f"owner-{turn}")
        reader = directory.take(f"owner-{turn}")
        assert not reader.owner_alive()
        written = by_writer(read_all(reader))
        for writer, count in enumerate(acknowledged):
            assert written[writer] == list(range(len(written[writer])))
            assert len(written[writer]) - count in (0, 1), "an entry may be whole before that is known, but only the last one"
        reader.remove()
    assert directory.names() == []


# Hand-over between readers

OWNER = """
import sys, time
from pathlib import Path
from dramatiq_chaperone import records
from dramatiq_chaperone.journal import Journal, segments

segments.SEGMENT_BYTES = 1 << 13
directory, stop = map(Path, sys.argv[1:])
journal = Journal(directory, records.Origin("owner", "host", "boot:ns", 1, 1.5, "worker"), max_segments=1 << 20)
number = 0
while not stop.exists():
    for _ in range(50):
        journal.append((records.EVENT, float(number), "x" * (number * 37 % 500)))
        number += 1
    time.sleep(0.001)
journal.close()
print("wrote", number, flush=True)
"""

READER = """
import contextlib, random, sqlite3, sys, time
from pathlib import Path
from dramatiq_chaperone.journal import JournalDirectory, segments

segments.SEGMENT_BYTES = 1 << 13
directory, database = JournalDirectory(Path(sys.argv[1])), sqlite3.connect(sys.argv[2], timeout=30, isolation_level=None)
database.execute("pragma synchronous = off")

def hold(reader):
    position = database.execute("select position from progress").fetchone()[0]
    for _ in range(random.randrange(1, 40)):
        is_last = not reader.owner_alive()
        entries, after = reader.read(position, max_bytes=random.choice([1, 3_000, 1 << 20]))
        database.execute("begin immediate")
        database.executemany("insert into entries values (?)", [(entry[1],) for entry in entries])
        database.execute("update progress set position = ?", (after,))
        database.execute("commit")
        position = after
        if random.random() < 0.3:
            reader.compact(position, list)
        if random.random() < 0.5:
            reader.free(position)
        if is_last and not entries:
            reader.remove()
            return
    reader.release()

while "owner" in directory.names():
    if (reader := directory.take("owner")) is not None:
        hold(reader)
    time.sleep(random.random() * 0.003)
"""


@pytest.mark.soak
def test_a_hand_over_at_any_moment_loses_and_doubles_nothing(tmp_path, start_process):
    directory, stop, path = tmp_path / "journal", tmp_path / "stop", tmp_path / "store.sqlite3"
    database = sqlite3.connect(path, timeout=30, isolation_level=None)
    database.execute("pragma journal_mode = wal")
    database.execute("create table entries (number integer)")
    database.execute("create table progress (position integer)")
    database.execute("insert into progress values (0)")

    def progress():
        return database.execute("select position from progress").fetchone()[0]

    owner = start_process(sys.executable, "-c", OWNER, directory, stop)
    wait_until(lambda: JournalDirectory(directory).names())
    readers = [start_process(sys.executable, "-c", READER, directory, path) for _ in range(2)]
    for turn in range(scaled(60, at_least=4)):
        goal = progress() + random.randrange(20 * SMALL)
        wait_until(lambda goal=goal: progress() > goal, interval_s=0.001, timeout_s=30)
        readers[turn % 2].kill()
        readers[turn % 2] = start_process(sys.executable, "-c", READER, directory, path)
    stop.touch()
    assert owner.wait() == 0
    for reader in readers:
        assert reader.wait() == 0, reader.tail()

    total = int(owner.log().split()[-1])
    assert total > 1000
    assert [row[0] for row in database.execute("select number from entries order by rowid")] == list(range(total))
    assert list(directory.iterdir()) == []
    database.close()


# The owner's death

PARENT = """
import os, signal, subprocess, sys
from pathlib import Path
from dramatiq_chaperone import records
from dramatiq_chaperone.journal import Journal, JournalDirectory

directory = Path(sys.argv[1])
journal = Journal(directory, records.Origin("owner", "host", "boot:ns", 1, 1.5, "worker"))
journal.append((records.EVENT, 0.0, ""))
def fork(act):
    if (pid := os.fork()) == 0:
        act()
        os._exit(0)
    return pid
def look():
    assert not JournalDirectory(directory).is_orphan("owner")
    journal.close()
os.waitpid(fork(look), 0)
os.waitpid(fork(lambda: None), 0)
subprocess.Popen(["sleep", "600"], close_fds=False)
heir = fork(signal.pause)
journal.append((records.EVENT, 1.0, ""))
print("heir", heir, flush=True)
signal.pause()
"""


def test_the_owners_death_is_seen_though_its_children_live_and_not_before(tmp_path, start_process):
    directory = JournalDirectory(tmp_path / "journal")
    process = start_process(sys.executable, "-c", PARENT, directory.path)
    process.wait_for_log("heir")
    heir = int(process.log().split()[-1])
    assert not directory.is_orphan("owner")
    reader = directory.take("owner")
    assert reader.owner_alive(), "children have come and gone, which must not unlock it"
    assert not directory.is_orphan("owner")
    process.kill()
    assert not reader.owner_alive()
    assert directory.is_orphan("owner")
    assert os.path.exists(f"/proc/{heir}") or sys.platform != "linux"
    assert [entry[1] for entry in read_all(reader)] == [0.0, 1.0]
    reader.remove()


LIVES = """
import itertools, sys
from pathlib import Path
from dramatiq_chaperone import records
from dramatiq_chaperone.journal import Journal, JournalDirectory

directory = Path(sys.argv[1])
for life in itertools.count():
    worker_id = f"{sys.argv[2]}-{life}"
    journal = Journal(directory, records.Origin(worker_id, "host", "boot:ns", 1, 1.5, "worker"))
    journal.append((records.EVENT, 0.0, ""))
    journal.close()
    JournalDirectory(directory).take(worker_id).remove()
    Path(sys.argv[3]).write_text(str(life))
"""


@pytest.mark.soak
def test_kill_9_while_journals_come_and_go_leaves_whole_journals_and_nothing_else(tmp_path, start_process):
    directory, lives = JournalDirectory(tmp_path / "journal"), tmp_path / "lives"
    for turn in range(scaled(60, at_least=4)):
        lives.write_text("")
        # Two at a time: each sweeps what it takes for the other's remains.
        processes = [start_process(sys.executable, "-c", LIVES, directory.path, f"{turn}-{side}", lives) for side in "ab"]
        enough = random.randrange(1, 60)
        wait_until(lambda enough=enough: int(lives.read_text() or 0) >= enough, interval_s=0.001)
        for process in processes:
            assert process.is_running, process.tail()
            process.kill()
        Journal(directory.path, origin("next")).close()
        directory.take("next").remove()
        names = directory.names()
        assert sorted(path.name for path in directory.path.iterdir()) == names
        for name in names:
            reader = directory.take(name)
            assert reader.origin.worker_id == name
            assert len(read_all(reader)) <= 1
            reader.remove()


# Interrupts


def interrupt(thread, exception):
    return ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(exception))


class Interrupted(BaseException):
    """As Dramatiq's TimeLimit raises them."""


@pytest.fixture
def eager_threads():
    """Threads change places at every step, so that an interrupt may come at every one."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.soak
def test_an_interrupt_in_the_middle_of_an_append_loses_and_garbles_nothing(tmp_path, monkeypatch, eager_threads):
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 1 << 12)
    journal = Journal(tmp_path, origin(), max_segments=1 << 20)  # nobody reads it, and a slow machine interrupts slowly
    is_over = threading.Event()
    acknowledged = defaultdict(list)
    caught = []

    def write(writer):
        numbers = itertools.count()

        def go_on():
            for number in numbers:
                journal.append((records.EVENT, float(number), writer, "x" * (number * 37 % 900)))
                acknowledged[writer].append(number)
                if is_over.is_set():
                    return

        while not is_over.is_set():
            try:
                # The loop is not in here: from Python 3.12 on, an interrupt at its jump back would be outside of the try.
                go_on()
            except Interrupted:
                caught.append(writer)

    threads = [threading.Thread(target=write, args=(writer,)) for writer in ("interrupted", "left alone")]
    for thread in threads:
        thread.start()
    target = scaled(10_000, at_least=300)
    try:
        for turn in range(target):
            # Only while it writes again: none comes while another is being caught.
            seen = len(acknowledged["interrupted"])
            wait_until(lambda seen=seen: len(acknowledged["interrupted"]) > seen, interval_s=0.0001)
            assert interrupt(threads[0], Interrupted) == 1
            wait_until(lambda turn=turn: len(caught) > turn, interval_s=0.0001)
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
        journal.close()

    reader = JournalDirectory(tmp_path).take("owner")
    written = by_writer(read_all(reader))
    assert written["left alone"] == acknowledged["left alone"] == list(range(len(written["left alone"])))
    numbers = written["interrupted"]
    assert all(before < after for before, after in itertools.pairwise(numbers)), "something is doubled, or out of order"
    assert set(acknowledged["interrupted"]) <= set(numbers)
    assert len(numbers) - len(acknowledged["interrupted"]) <= target
    reader.remove()


# The full disk


class LimitedDisk:
    """A limit that the system puts on the size of files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (segments.SEGMENT_BYTES // 2, self._before[1]))

    def make_room(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._before)

    close = make_room


class SmallDisk:
    """A file system in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "chaperone-test", str(path)], check=True)

    def fill(self) -> None:
        with contextlib.suppress(OSError), (self.path / "filler").open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        assert shutil.disk_usage(self.path).free < 4096

    def make_room(self) -> None:
        (self.path / "filler").unlink()

    def close(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.path)], check=True)


def may_mount() -> bool:
    status = Path("/proc/self/status")
    capabilities = [line.split()[1] for line in (status.read_text().splitlines() if status.exists() else []) if line.startswith("CapEff")]
    return bool(capabilities) and bool(int(capabilities[0], 16) >> 21 & 1) and shutil.which("mount") is not None


@pytest.fixture(params=[LimitedDisk, *([SmallDisk] if may_mount() else [])])
def disk(request, tmp_path):
    path = tmp_path / "disk"
    path.mkdir()
    it = request.param(path)
    yield it
    it.close()


def test_a_full_disk_costs_nothing_but_samples_and_their_number_is_known(disk, caplog):
    journal = Journal(disk.path, origin())
    threads, each, samples = 3, 6000, 0
    starts = [threading.Barrier(threads + 1) for _ in range(3)]

    def write(writer):
        for number in range(each):
            if number % (each // 3) == 0:
                starts[number // (each // 3)].wait(30)
            journal.append((records.EVENT, float(number), writer, "x" * (number % 700)))
            if number % 10 == 0:
                journal.append((records.BEAT, float(number), writer))

    def wait_for(number):
        starts[number].wait(30)

    workers = [threading.Thread(target=write, args=(writer,)) for writer in range(threads)]
    for thread in workers:
        thread.start()
    wait_for(0)
    disk_was_filled = wait_until(lambda: journal.waiting_segments() and (disk.fill() or True))
    assert disk_was_filled
    wait_for(1)
    wait_until(lambda: starts[2].n_waiting == threads, timeout_s=30)
    assert not journal.retry(), "the disk is not full"
    disk.make_room()
    assert journal.retry()
    wait_for(2)
    for thread in workers:
        thread.join()
    journal.close()

    reader = JournalDirectory(disk.path).take("owner")
    entries = read_all(reader)
    for writer in range(threads):
        written = by_writer(entry for entry in entries if entry[0] == records.EVENT)
        assert written[writer] == list(range(each))
    samples = sum(entry[0] == records.BEAT for entry in entries)
    lost = [entry[2:] for entry in entries if entry[0] == records.DROPPED]
    assert [what for what, _ in lost] == ["Beat"]
    assert samples + lost[0][1] == threads * each // 10
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    reader.remove()
