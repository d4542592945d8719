"""What happens to a message in a worker, from its arrival to its verdict.

The observer calls :meth:`Execution.received`, :meth:`Execution.ended`, :meth:`Execution.skipped` and
:meth:`Execution.nacked`; between the first two, the wrapper around ``actor.fn`` runs the job.  All of it is the hot
path: a few flat tuples, two clocks, one append each to the journal.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from inspect import iscoroutinefunction
from itertools import count
from math import inf
from time import monotonic, thread_time, time
from typing import Any, Final

from dramatiq import Actor, Broker
from dramatiq.common import q_name
from dramatiq.middleware import AgeLimit
from dramatiq.threading import Interrupt, is_gevent_active

from .. import records
from ..events import JobMovedToDeadLetterQueue, JobSupervisionEnded, JobSupervisionStarted, has_subscribers, publish
from ..payload import redact_text
from ..service import internal_error
from .jobs import Job, entered, left
from .policy import Policy
from .recorder import Recorder, to_json
from .slots import RunningJobs, Slot
from .stopping import settle

#: Frames of a traceback that are kept, the innermost ones.
TRACE_FRAMES: Final = 60

Error = tuple[str, str, str, str]


class Execution:
    """Watches the messages of one worker process.

    Attributes:
      jobs_processed, jobs_failed: runs that ended in this process, and those of them that did not succeed.
    """

    def __init__(self, recorder: Recorder, running: RunningJobs) -> None:
        self._recorder = recorder
        self._append = recorder.append
        self._running = running
        self._policy = recorder.policy
        self._numbers = count(1)
        self._prefix = recorder.origin.worker_id[-8:]
        self._originals: dict[str, Callable[..., Any]] = {}
        self.jobs_processed = 0
        self.jobs_failed = 0

    def wrap(self, actor: Actor[Any, Any]) -> None:
        """Put the wrapper around ``actor.fn``; :meth:`unwrap` takes it off.  Each actor has one, for a message may ask for supervision."""
        if actor.actor_name in self._originals:
            return
        fn = self._originals[actor.actor_name] = actor.fn
        # Greenlets share one thread as coroutines do: its CPU time is not that of the job.
        is_async = is_gevent_active() or iscoroutinefunction(getattr(fn, "__wrapped__", fn))
        find, run, name = self._running.find, self._run, actor.actor_name

        @functools.wraps(fn)
        def supervised(*args: Any, **kwargs: Any) -> Any:
            slot = find()
            # Outside of a worker thread, or called from inside another actor: nothing was received for it.
            if slot is None or slot.message is None or slot.message.actor_name != name:
                return fn(*args, **kwargs)
            return run(slot, fn, args, kwargs, is_async)

        actor.fn = supervised

    def unwrap(self, broker: Broker) -> None:
        """Give every actor its own function back."""
        for name, fn in self._originals.items():
            if name in broker.actors:
                broker.actors[name].fn = fn
        self._originals.clear()

    def received(self, proxy: Any) -> None:
        """A worker thread has taken a message."""
        slot = self._running.slot()
        message = getattr(proxy, "_message", proxy)
        policy = self._policy(message.actor_name, message.queue_name)
        slot.finished = None
        if message.options.get("supervised", policy.supervised):
            slot.message, slot.policy, slot.is_requeued = message, policy, False
        else:
            slot.message = None

    def _run(self, slot: Slot, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], is_async: bool) -> Any:
        job = self._begin(slot, is_async)
        if job is None:
            return fn(*args, **kwargs)
        token = entered(job)
        has_returned = False
        result = None
        try:
            try:
                slot.job = job  # inside the try: an interrupt that came between would leave it there for good
                result = fn(*args, **kwargs)
                has_returned = True
            finally:
                try:
                    settle(slot)
                except Interrupt:  # it came with the call, before settle could catch it; there is never a second one
                    settle(slot)
        except Interrupt:
            if not has_returned:
                raise
        finally:
            job.cpu_exact = None if is_async else thread_time() - job.cpu_started
            job.ended = monotonic()
            slot.finished = job
            left(token)
        return result

    def _begin(self, slot: Slot, is_async: bool) -> Job | None:
        message, policy, slot.message = slot.message, slot.policy, None
        try:
            assert policy is not None
            options = message.options
            job = self._job(slot, message, is_async=is_async)
            due_at = max(message.message_timestamp, options.get("requeue_timestamp", 0)) / 1000
            timeout_s = self._arm(slot, policy, options, job.started)
            self._append(
                (
                    records.STARTED,
                    job.started_at,
                    job.job_id,
                    job.run_id,
                    job.retries,
                    job.actor_name,
                    job.queue,
                    slot.name,
                    policy.priority,
                    message.message_timestamp / 1000,
                    max(0.0, job.started_at - due_at),
                    None if timeout_s is None else job.started_at + timeout_s,
                    policy.heartbeat_interval_s(options),
                    policy.limits_of(options),
                )
            )
            if has_subscribers(JobSupervisionStarted):
                publish(
                    JobSupervisionStarted(
                        job_id=job.job_id,
                        actor_name=job.actor_name,
                        queue=job.queue,
                        worker_id=self._recorder.origin.worker_id,
                        started_at=datetime.fromtimestamp(job.started_at, UTC),
                    )
                )
            return job
        except Exception as error:  # noqa: BLE001 - supervision may fail, the job must not notice
            internal_error("wrapper", error, job_id=getattr(message, "message_id", None))
            return None

    @staticmethod
    def _arm(slot: Slot, policy: Policy, options: dict[str, Any], now: float) -> float | None:
        """Set the deadline of the run; returns its timeout in seconds, None if it has none."""
        slot.deadline = None
        timeout = policy.timeout_s(options)
        if timeout is None:
            timeout = inf if slot.time_limit_ms is None else slot.time_limit_ms / 1000
        if timeout == inf:
            return None
        slot.deadline = now + timeout
        return timeout

    def ended(self, proxy: Any, exception: BaseException | None) -> None:
        """The verdict about a message that was run, or that a middleware refused with an exception, is known."""
        slot = self._running.slot()
        job, slot.finished = slot.finished, None
        if job is None:
            if exception is None or slot.message is None:
                return
            job = self._refused(slot)
        if exception is None:
            self._append_end(job, "succeeded", "failed" if proxy.failed else "completed", None)
            return
        error = self._error_of(exception, proxy)
        has_retried = slot.is_requeued and not proxy.failed
        is_exhausted = proxy.options.get("retries", 0) > job.retries
        slot.last_end = (job.job_id, error, "retries exhausted" if is_exhausted else "rejected")
        outcome = "interrupted" if isinstance(exception, Interrupt) else "failed"
        self._append_end(job, outcome, None if has_retried else "failed", error)

    def skipped(self, proxy: Any) -> None:
        """A middleware, or the actor itself, raised SkipMessage."""
        slot = self._running.slot()
        job, slot.finished = slot.finished, None
        message, slot.message = slot.message, None
        if job is not None:
            self._append_end(job, "succeeded", "failed" if proxy.failed else "skipped", None)
        elif message is not None and not proxy.failed:
            options = message.options
            queue, sent_at = q_name(message.queue_name), message.message_timestamp / 1000
            self._append((records.SKIPPED, time(), message.message_id, options.get("retries", 0), message.actor_name, queue, sent_at))

    def nacked(self, broker: Broker, proxy: Any) -> None:
        """The broker has dead-lettered a message."""
        message = getattr(proxy, "_message", proxy)
        settings = self._recorder.settings
        policy = self._policy(message.actor_name, message.queue_name)
        if not settings.dlq_enabled or not message.options.get("supervised", policy.supervised):
            return
        slot = self._running.find()
        last = slot.last_end if slot is not None else None
        _, error, reason = last if last is not None and last[0] == message.message_id else ("", None, _reason(broker, message))
        exception, text, trace = error[:3] if error is not None else (None, None, message.options.get("traceback"))
        payload, is_complete = self._recorder.encode_payload(message, policy)
        now = time()
        retries, queue, sent_at = message.options.get("retries", 0), q_name(message.queue_name), message.message_timestamp / 1000
        self._append(
            (
                records.DEAD,
                now,
                message.message_id,
                retries,
                message.actor_name,
                queue,
                sent_at,
                reason,
                exception,
                text,
                trace,
                payload,
                is_complete,
            )
        )
        self._recorder.emit(
            JobMovedToDeadLetterQueue(
                job_id=message.message_id,
                actor_name=message.actor_name,
                queue=queue,
                exception=exception,
                reason=reason,
                failed_at=datetime.fromtimestamp(now, UTC),
            )
        )

    def _append_end(self, job: Job, outcome: str, status: str | None, error: Error | None) -> None:
        if job.is_dirty:
            job.flush()
        self._append(
            (
                records.ENDED,
                time(),
                job.job_id,
                job.run_id,
                job.retries,
                job.actor_name,
                job.queue,
                outcome,
                status,
                job.elapsed_s,
                job.cpu_exact,
                job.memory_peak,
                None if job.memory_peak is None else "shared" if job.is_shared else "exact",
                error,
                job.started_at,
                job.thread,
            )
        )
        self.jobs_processed += 1
        if outcome != "succeeded":
            self.jobs_failed += 1
        if has_subscribers(JobSupervisionEnded):
            publish(
                JobSupervisionEnded(
                    job_id=job.job_id,
                    actor_name=job.actor_name,
                    queue=job.queue,
                    worker_id=self._recorder.origin.worker_id,
                    completed_at=datetime.now(UTC),
                    duration=job.elapsed_s,
                    outcome=outcome,
                )
            )

    def _refused(self, slot: Slot) -> Job:
        """A run that never began: a middleware before the actor raised."""
        message, slot.message = slot.message, None
        job = self._job(slot, message, is_async=False)
        job.ended = job.started
        return job

    def _job(self, slot: Slot, message: Any, *, is_async: bool) -> Job:
        run_id = f"{self._prefix}-{next(self._numbers):x}"
        retries = message.options.get("retries", 0)
        return Job(
            self._recorder,
            message.message_id,
            run_id,
            message.actor_name,
            message.queue_name,
            retries,
            slot.name,
            slot.ident,
            is_async or slot.clock_id is None,
        )

    def _error_of(self, exception: BaseException, message: Any) -> Error | None:
        if not self._recorder.settings.record_errors:
            return None
        try:
            policy = self._policy(message.actor_name, message.queue_name)
            return error_of(exception, self._recorder.settings.error_max_bytes, self._recorder.secrets_of(message, policy))
        except Exception as error:  # noqa: BLE001 - an exception may have a __str__ that raises anything
            internal_error("errors", error, job_id=message.message_id)
            return (type(exception).__name__, "", "", "{}")


def hide_wrapper(exception: BaseException) -> None:
    """Take the frames of the wrapper out of a traceback, so that it reads, and is sent on with a retry, as it would without."""
    previous, entry = None, exception.__traceback__
    while entry is not None:
        if entry.tb_frame.f_code.co_filename != __file__:
            previous = entry
        elif previous is None:
            exception.__traceback__ = entry.tb_next
        else:
            previous.tb_next = entry.tb_next
        entry = entry.tb_next


def error_of(exception: BaseException, max_bytes: int, secrets: tuple[str, ...]) -> Error:
    """(class, message, traceback, context as JSON {file, line, code}) of *exception*, each text capped and without *secrets*."""
    kind = type(exception)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    trace = "".join(traceback.format_exception(exception, limit=-TRACE_FRAMES))
    frames = traceback.extract_tb(exception.__traceback__, limit=-1)
    context = {"file": frames[-1].filename, "line": frames[-1].lineno, "code": frames[-1].line or ""} if frames else {}
    return name, _cap(redact_text(str(exception), secrets), max_bytes), _cap_start(redact_text(trace, secrets), max_bytes), to_json(context)


def _cap(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[:limit] + "… (cut)"


def _cap_start(text: str, limit: int) -> str:
    """The end of a traceback says more than its start."""
    return text if len(text) <= limit else "(cut) …" + text[-limit:]


def _reason(broker: Broker, message: Any) -> str:
    """Why a message that did not run was dead-lettered."""
    actor = broker.actors.get(message.actor_name)
    if actor is None:
        return "unknown actor"
    limit = next((entry.max_age for entry in broker.middleware if isinstance(entry, AgeLimit)), None)
    max_age = message.options.get("max_age") or actor.options.get("max_age", limit)
    return "age" if max_age and time() * 1000 - message.message_timestamp >= max_age else "rejected"
