from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dramatiq_chaperone import records
from dramatiq_chaperone.journal import segments, thin

#: What a run, and then its job, may come to.
ENDS = [("succeeded", "completed"), ("succeeded", None), ("failed", "failed"), ("failed", None), ("interrupted", None), ("lost", None)]
ERROR = ("ValueError", "no", "Traceback", "{}")


def enqueued(at, job_id, *, retries=0, actor="index", queue="default"):
    return (records.ENQUEUED, at, job_id, actor, queue, retries, 0, at, None, None, None, True, None, None, None, None)


def started(at, job_id, *, retries=0, run="r", actor="index", queue="default"):
    return (records.STARTED, at, job_id, f"{job_id}-{run}", retries, actor, queue, "t", 0, at, 0.1, None, None, None)


def ended(at, job_id, *, retries=0, run="r", end=ENDS[0], duration=0.5, actor="index", queue="default"):
    error = None if end[0] == "succeeded" else ERROR
    names = (actor, queue)
    return (records.ENDED, at, job_id, f"{job_id}-{run}", retries, *names, *end, duration, 0.1, 1, "exact", error, at, "t")


def plain_job(at, job_id, **options):
    return [enqueued(at, job_id), started(at + 1, job_id), ended(at + 2, job_id, **options)]


def sampled(at, job_id):
    return (records.SAMPLED, at, job_id, f"{job_id}-r", 1, 1, "exact", 1.0, 1.0, False, None)


def heartbeat(at, job_id):
    return (records.HEARTBEAT, at, job_id, f"{job_id}-r", "h", "manual", None, None, None, None, True)


def beat(at):
    return (records.BEAT, at, 1, 1, 1.0, 1, 1, None)


def deferred(at, job_id):
    return (records.DEFERRED, at, job_id, 0, "index", "default", at, at + 30)


def event(at, job_id):
    return (records.EVENT, at, "JobStuck", job_id, "w", None, "{}")


def dead(at, job_id):
    return (records.DEAD, at, job_id, 0, "index", "default", at, "rejected", None, None, None, None, True)


def violated(at, job_id):
    run = None if job_id is None else f"{job_id}-r"
    return (records.VIOLATED, at, job_id, run, "memory", 1.0, 2.0, "exact", None, "index", "default", False)


def checked(at, job_id, is_change):
    return (records.HEALTH_CHECKED, at, job_id, f"{job_id}-r", "unhealthy" if is_change else "healthy", None, None, is_change)


def dropped(at, what, number):
    return (records.DROPPED, at, what, number)


def counted(at, number, duration, *, actor="index", queue="default"):
    return (records.COUNTED, at, queue, actor, "succeeded", "completed", number, duration)


def test_samples_go_first_and_are_counted():
    job = plain_job(1.0, "a")
    entries = [beat(0.0), *job[:2], sampled(2.5, "a"), heartbeat(2.6, "a"), sampled(2.7, "a"), job[2], beat(4.0), dropped(5.0, "Beat", 3)]
    assert thin(entries, drop_successes=False) == [
        *job,
        dropped(5.0, "Beat", 5),
        dropped(2.6, "HeartbeatMade", 1),
        dropped(2.7, "Sampled", 2),
    ]


def test_verdicts_stay_and_what_is_said_again_goes():
    job = plain_job(1.0, "a")
    verdicts = [violated(2.0, "a"), checked(2.5, "a", True), violated(3.0, None)]
    said_again = [checked(2.6, "a", False), checked(2.7, "a", False)]
    entries = [*job[:2], *verdicts, *said_again, job[2]]
    assert thin(entries, drop_successes=True) == [*job[:2], *verdicts, job[2], dropped(2.7, "HealthChecked", 2)]
    assert thin([*plain_job(1.0, "a"), *said_again], drop_successes=True) == [dropped(2.7, "HealthChecked", 2), counted(3.0, 1, 0.5)]


def test_that_a_job_was_put_off_is_a_sample_and_the_job_stays():
    job = [enqueued(1.0, "a"), enqueued(31.0, "a"), *plain_job(1.0, "a")[1:]]
    entries = [job[0], deferred(1.5, "a"), *job[1:]]
    assert thin(entries, drop_successes=True) == [*job, dropped(1.5, "Deferred", 1)]


def test_of_plain_successes_the_number_and_the_durations_stay():
    entries = [*plain_job(1.0, "a", duration=0.25), *plain_job(7.0, "b", duration=0.5), counted(2.0, 10, 4.0)]
    assert thin(entries, drop_successes=True) == [counted(9.0, 12, 4.75)]
    assert thin(entries, drop_successes=False) == [*entries[:6], counted(2.0, 10, 4.0)]


def test_actors_and_queues_are_counted_apart():
    entries = [
        entry
        for number, (actor, queue) in enumerate([("a", "x"), ("a", "y"), ("b", "x"), ("a", "x")])
        for entry in (
            enqueued(1.0, str(number), actor=actor, queue=queue),
            started(1.0, str(number), actor=actor, queue=queue),
            ended(1.0, str(number), actor=actor, queue=queue),
        )
    ]
    thinned = thin(entries, drop_successes=True)
    assert [(entry[2:4], entry[6]) for entry in thinned] == [(("x", "a"), 2), (("x", "b"), 1), (("y", "a"), 1)]


@pytest.mark.parametrize(
    "entries",
    [
        plain_job(1.0, "a")[:2],
        plain_job(1.0, "a")[1:],
        plain_job(1.0, "a")[::2],
        [*plain_job(1.0, "a", end=("succeeded", None))],
        [*plain_job(1.0, "a", end=("failed", "failed"))],
        [*plain_job(1.0, "a"), event(4.0, "a")],
        [*plain_job(1.0, "a"), dead(4.0, "a")],
        [*plain_job(1.0, "a"), violated(4.0, "a")],
        [*plain_job(1.0, "a"), checked(4.0, "a", True)],
        [*plain_job(1.0, "a"), started(5.0, "a", run="again")],
        [*plain_job(1.0, "a"), enqueued(5.0, "a")],
        [enqueued(1.0, "a", retries=1), started(2.0, "a", retries=1), ended(3.0, "a", retries=1)],
        [enqueued(1.0, "a"), started(2.0, "a", run="one"), ended(3.0, "a", run="other")],
    ],
)
def test_a_job_with_more_to_tell_stays(entries):
    assert thin(entries, drop_successes=True) == entries


JOBS = st.sampled_from("abcdef")
TIMES = st.floats(0, 1e9)
ENTRIES = st.one_of(
    st.builds(enqueued, TIMES, JOBS, retries=st.integers(0, 1)),
    st.builds(started, TIMES, JOBS, retries=st.integers(0, 1), run=st.sampled_from("rs")),
    st.builds(
        ended, TIMES, JOBS, retries=st.integers(0, 1), run=st.sampled_from("rs"), end=st.sampled_from(ENDS), duration=st.integers(0, 9)
    ),
    st.builds(sampled, TIMES, JOBS),
    st.builds(heartbeat, TIMES, JOBS),
    st.builds(beat, TIMES),
    st.builds(event, TIMES, st.none() | JOBS),
    st.builds(dead, TIMES, JOBS),
    st.builds(violated, TIMES, st.none() | JOBS),
    st.builds(checked, TIMES, JOBS, st.booleans()),
    st.builds(dropped, TIMES, st.sampled_from(["Beat", "StoredEvent"]), st.integers(1, 9)),
    st.builds(counted, TIMES, st.integers(1, 9), st.integers(0, 9), actor=st.sampled_from(["index", "other"])),
    st.just((records.WORKER_STOPPED, 1.0)),
    st.just((records.SKIPPED, 1.0, "a", 0, "index", "default", 1.0)),
)
#: Plain successes are rare among random entries, so some are put in, torn apart by what is around them.
HISTORIES = st.lists(
    st.one_of(ENTRIES.map(lambda entry: [entry]), st.builds(plain_job, TIMES, st.uuids().map(str), duration=st.integers(0, 9)))
).flatmap(lambda groups: st.permutations([entry for group in groups for entry in group]))

SAMPLES = {records.SAMPLED: "Sampled", records.BEAT: "Beat", records.HEARTBEAT: "HeartbeatMade"}
TOTALS = {*SAMPLES, records.DROPPED, records.COUNTED}


def is_total(entry):
    return entry[0] in TOTALS or (entry[0] == records.HEALTH_CHECKED and not entry[7])


def sums(entries):
    """Everything that a counter of the store counts, dropped or not."""
    total = Counter()
    for entry in entries:
        match entry[0]:
            case kind if kind in SAMPLES:
                total["seen", SAMPLES[kind]] += 1
            case records.HEALTH_CHECKED if not entry[7]:
                total["seen", "HealthChecked"] += 1
            case records.DROPPED:
                total["seen", entry[2]] += entry[3]
            case records.ENQUEUED:
                total["sent", entry[4], entry[3]] += 1
            case records.STARTED:
                total["started", entry[6], entry[5]] += 1
            case records.ENDED:
                total["ended", entry[6], entry[5], *entry[7:9]] += 1
                total["seconds", entry[6], entry[5], *entry[7:9]] += entry[9]
            case records.COUNTED:
                _, _, queue, actor, outcome, status, number, seconds = entry
                total["sent", queue, actor] += number
                total["started", queue, actor] += number
                total["ended", queue, actor, outcome, status] += number
                total["seconds", queue, actor, outcome, status] += seconds
    return +total


@given(HISTORIES, st.booleans())
def test_thinning_never_changes_what_matters(entries, drop_successes):
    thinned = thin(entries, drop_successes=drop_successes)
    assert sums(thinned) == sums(entries)
    assert thin(thinned, drop_successes=drop_successes) == thinned
    assert thin(thin(entries, drop_successes=False), drop_successes=drop_successes) == thinned

    rest = iter(entries)
    kept = [entry for entry in thinned if not is_total(entry)]
    assert all(entry in rest for entry in kept), "what stays, stays in order"
    gone = Counter(entry for entry in entries if not is_total(entry)) - Counter(kept)
    assert drop_successes or not gone
    jobs = {entry[2] for entry in gone}
    assert len(gone) == sum(gone.values()) == 3 * len(jobs)
    assert jobs.isdisjoint(entry[3] if entry[0] == records.EVENT else entry[2] for entry in kept if len(entry) > 2)
    for entry in gone:
        assert entry[0] in (records.ENQUEUED, records.STARTED, records.ENDED)
        assert entry[0] != records.ENDED or entry[7:9] == ("succeeded", "completed")


@given(HISTORIES)
def test_thinned_entries_fit_where_the_entries_were_and_are_plain_data(entries):
    thinned = b"".join(map(segments.encode, thin(entries, drop_successes=True)))
    assert segments.decode(thinned, max_bytes=1 << 20)[1] == len(thinned)


def test_a_job_that_was_stuck_is_no_plain_success():
    stuck = [(records.STUCK, 1.5, "j1", "j1-r", 3, True), (records.STUCK, 1.7, "j1", "j1-r", 0, False)]
    sent, begun, over = plain_job(0, "j1")
    entries = [sent, begun, *stuck, over]
    assert thin(entries, drop_successes=True) == entries
