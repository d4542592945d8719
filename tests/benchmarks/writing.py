"""How fast a journal goes into the store: ``python -m tests.benchmarks.writing JOBS``; the store is that of the environment.

The journal holds whole jobs, sent, started and ended, as a fleet leaves them that ran while the store was away.
"""

from __future__ import annotations

import json
import os
import sys
import time
from uuid import uuid4

from dramatiq_chaperone import host, records
from dramatiq_chaperone.journal import Journal, JournalDirectory
from dramatiq_chaperone.settings import Settings
from dramatiq_chaperone.store import open_store
from dramatiq_chaperone.store.writer import WriteBehind

PAYLOAD = '{"args":[%d,"name@example.org"],"kwargs":{},"options":{}}'


def fill(journal: Journal, jobs: int) -> None:
    at = time.time()
    for number in range(jobs):
        job, run, actor = str(uuid4()), f"8b41ebf-{number:x}", f"actor_{number % 20}"
        at += 0.001
        for entry in (
            (records.ENQUEUED, at, job, actor, "default", 0, 0, at, None, None, PAYLOAD % number, True, None, None, None, None),
            (records.STARTED, at + 0.1, job, run, 0, actor, "default", "Thread-5", 0, at, 0.1, None, None, None),
            (
                records.ENDED,
                at + 0.2,
                job,
                run,
                0,
                actor,
                "default",
                "succeeded",
                "completed",
                0.1,
                0.01,
                None,
                None,
                None,
                at + 0.1,
                "Thread-5",
            ),
        ):
            journal.append(entry)


def main(jobs: int) -> None:
    settings = Settings.load()
    open_store(settings, create=True).close()
    pid = os.getpid()
    origin = records.Origin(
        host.new_worker_id(), host.host_name(), host.host_identity(), pid, host.process_started_at(pid) or 0.0, "worker"
    )
    journal = Journal(settings.journal_dir, origin)
    fill(journal, jobs)
    writer = WriteBehind(JournalDirectory(settings.journal_dir), settings, takes=lambda name: True)
    began, cpu = time.monotonic(), time.process_time()
    assert writer.finish(timeout_s=300)
    print(json.dumps({"seconds": time.monotonic() - began, "cpu": time.process_time() - cpu}))
    journal.close()


if __name__ == "__main__":
    main(int(sys.argv[1]))
