"""What happens to a message in a worker, from its arrival to its verdict.

The observer calls :meth:`Execution.received`, :meth:`Execution.ended`, :meth:`Execution.skipped` and
:meth:`Execution.nacked`; between the first two, the wrapper around ``actor.fn`` runs the job.  All of it is the hot
path: a few flat tuples, two clocks, one append each to the journal.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from inspect import iscoroutinefunction
from itertools import count
from math import inf
from time import monotonic, thread_time, time
from typing import TYPE_CHECKING, Any

from dramatiq import Actor, Broker
from dramatiq.common import q_name
from dramatiq.middleware import AgeLimit, SkipMessage
from dramatiq.threading import Interrupt, is_gevent_active

from .. import events, records
from ..errors import JobCancelled
from ..events import JobKilled, JobMovedToDeadLetterQueue, JobSupervisionEnded, JobSupervisionStarted, has_subscribers, publish
from ..limits import JobLimits
from ..service import internal_error, unforkable
from .jobs import Job, entered, left
from .recorder import Recorder
from .resources import quick_rss_bytes
from .slots import RunningJobs, Slot
from .stopping import Stop, settle
from .tracebacks import Error, error_of, hide_ours

if TYPE_CHECKING:
    from .gaps import Gaps
    from .isolation import Isolation
    from .needs import Needs


class Execution:
    """Watches the messages of one worker process.

    Attributes:
      gaps: knows which runs another worker has taken, while this process was stopped.
      needs: knows the circuit breakers that jobs need.
      memory_exceeded: told of an isolated job that is past its memory_limit: what it uses, and the limit, in bytes.
      jobs_processed, jobs_failed: runs that ended in this process, and those of them that did not succeed.
    """

    def __init__(self, recorder: Recorder, running: RunningJobs, gaps: Gaps | None = None) -> None:
        self._recorder = recorder
        self.gaps = gaps
        self.needs: Needs | None = None
        self._append = recorder.append
        self._running = running
        self._policy = recorder.policy
        self._numbers = count(1)
        self._prefix = recorder.origin.worker_id[-8:]
        self._originals: dict[str, Callable[..., Any]] = {}
        self._isolation: Isolation | None = None
        self.memory_exceeded: Callable[[Slot, Job, int, int], None] | None = None
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
        is_isolated = bool(actor.options.get("isolate"))

        @functools.wraps(fn)
        def supervised(*args: Any, **kwargs: Any) -> Any:
            slot = find()
            # Outside of a worker thread, or called from inside another actor: nothing was received for it.
            if slot is None or slot.message is None or slot.message.actor_name != name:
                return fn(*args, **kwargs)
            call = run if slot.held is None else self._run_holding
            if slot.message.options.get("isolate", is_isolated):
                return call(slot, self._isolated(slot, actor, fn), args, kwargs, True)
            return call(slot, fn, args, kwargs, is_async)

        actor.fn = supervised
        if is_isolated:
            self._isolate().expect(actor)

    def _isolate(self) -> Isolation:
        if self._isolation is None:
            with unforkable:
                from .isolation import Isolation

            self._isolation = Isolation(self._recorder)
            self._isolation.memory_exceeded = self.memory_exceeded
        return self._isolation

    def _isolated(self, slot: Slot, actor: Actor[Any, Any], fn: Callable[..., Any]) -> Callable[..., Any]:
        """Runs the job in a process of its own, in the place of *fn*."""
        message, isolation = slot.message, self._isolate()

        def isolated(*args: Any, **kwargs: Any) -> Any:
            if slot.job is None:  # it could not be registered: as any other it runs all the same
                return fn(*args, **kwargs)
            return isolation.run(slot, actor, message, args, kwargs)

        return isolated

    @property
    def zygote_pid(self) -> int | None:
        """The process that forks the isolated jobs, None where there is none."""
        return None if self._isolation is None else self._isolation.pid

    def start(self) -> None:
        """Prepare for the isolated actors that are there."""
        if self._isolation is not None:
            self._isolation.start()

    def stop(self) -> None:
        """End what isolated actors needed."""
        if self._isolation is not None:
            self._isolation.stop()

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
        slot.finished, slot.proxy = None, proxy
        if message.options.get("supervised", policy.supervised):
            slot.message, slot.policy, slot.is_requeued = message, policy, False
        else:
            slot.message = None

    def _run_holding(self, slot: Slot, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], is_async: bool) -> Any:
        """Run a job that needs services: how it ends says how they are."""
        held, needs, error = slot.held, self.needs, None
        if needs is None or held is None:
            return self._run(slot, fn, args, kwargs, is_async)
        needs.hold(held)
        try:
            return self._run(slot, fn, args, kwargs, is_async)
        except BaseException as caught:
            error = caught
            raise
        finally:  # no interrupt comes here any more
            slot.held = None
            needs.settle(held, error)
            error = None  # it holds this frame

    def _run(self, slot: Slot, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], is_async: bool) -> Any:
        message, gaps = slot.message, self.gaps
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
                except Interrupt:  # it came with the call, before settle could catch it
                    try:
                        settle(slot)
                    except Interrupt:  # an operator's, after that of a limit; there is never a third one, see MOST_SENDS
                        settle(slot)
        except BaseException as error:
            if has_returned and isinstance(error, Interrupt):
                return result
            if job.stop is not None and job.stop.is_final and not has_returned:
                raise self.cancelled(slot, job, error) from error
            if job.is_to_rerun and self._run_again(slot, job, error):
                raise SkipMessage(f"Job {job.job_id} was stopped, and is run again.") from None
            raise
        finally:
            if not is_async:
                job.cpu_exact = thread_time() - job.cpu_started
            job.ended = ended = monotonic()
            slot.finished = job
            left(token)
            if gaps is not None and (ended > gaps.due_at or job.started < gaps.last_at) and gaps.has_lost(message, job.started):
                self._give_up(slot, job, message)
        return result

    @staticmethod
    def _give_up(slot: Slot, job: Job, message: Any) -> None:
        """Another worker has the message: no acknowledgement, no retry, no result, nothing sent after it, no dead letter.

        What an operator has ended stays so: whoever has the message is told, and ends it too, or does not begin it.
        """
        job.is_taken, job.exception = True, sys.exception()
        if job.stop is not None and job.stop.is_final and slot.proxy.failed:
            slot.proxy.failed, slot.last_end = False, None
            job.exception = None if job.exception is None else job.exception.__cause__
        message.options["store_results"] = False
        raise SkipMessage("This process was stopped for so long that another worker has the message.")

    def _run_again(self, slot: Slot, job: Job, error: BaseException) -> bool:
        """Send the message of a run that was stopped for it once more; whether that was done.

        It counts as a retry, whatever max_retries is.  Should the process die before the broker has its ack, the broker
        delivers the stopped run's message too: then, and only then, it runs once too often.
        """
        message = job.message
        job.ended, slot.finished = monotonic(), job  # whoever records what is sent sees by it that this is a retry
        try:
            options = {"retries": job.retries + 1, "requeue_timestamp": int(time() * 1000)}
            self._recorder.broker.enqueue(message.copy(options=options))
        except Exception as failure:  # noqa: BLE001 - without a broker it ends as any other run that fails
            internal_error("requeue", failure, job_id=job.job_id)
            return False
        message.options["store_results"] = False  # the run that is to come has the result
        job.rerun_for = error
        return True

    def _begin(self, slot: Slot, is_async: bool) -> Job | None:
        message, policy, slot.message = slot.message, slot.policy, None
        try:
            assert policy is not None
            options = message.options
            job = self._job(slot, message, is_async=is_async)
            job.message = message
            due_at = max(message.message_timestamp, options.get("requeue_timestamp", 0)) / 1000
            limits = job.limits = policy.limits_for(options)
            if limits.has_memory_limit:
                job.memory_before = quick_rss_bytes()
            timeout_s = self._arm(slot, limits, job.started)
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
                publish(JobSupervisionStarted(**job.about, started_at=datetime.fromtimestamp(job.started_at, UTC)))
            return job
        except Exception as error:  # noqa: BLE001 - supervision may fail, the job must not notice
            internal_error("wrapper", error, job_id=getattr(message, "message_id", None))
            return None

    @staticmethod
    def _arm(slot: Slot, limits: JobLimits, now: float) -> float | None:
        """Set the deadline of the run; returns its timeout in seconds, None if it has none."""
        slot.deadline = None
        timeout, time_limit_ms = limits.timeout_s, slot.time_limit_ms
        if timeout is None:
            timeout = inf if time_limit_ms is None else time_limit_ms / 1000
        if timeout == inf:
            return None
        slot.deadline = now + timeout
        if limits.on_timeout == "record" and limits.timeout_s is not None and time_limit_ms is not None:
            slot.deadline = now + min(timeout, time_limit_ms / 1000)  # which interrupts as ever
        return timeout

    def cancelled(self, slot: Slot, job: Job, exception: BaseException) -> SkipMessage:
        """An operator has ended the job for good, with whatever exception it went: one nack, and no retry."""
        text = cancellation(job)
        hide_ours(exception)
        error = self._error_of(exception, slot.proxy)
        slot.last_end = (job.job_id, error and (error[0], error[1] or text, *error[2:]), "cancelled")
        slot.proxy.fail()
        return SkipMessage(text)

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
        if job.rung == "process" or (job.child is not None and job.child.was_killed):
            outcome = "killed"
        self._append_end(job, outcome, None if has_retried else "failed", error)
        if job.stop is not None and (outcome == "killed" or isinstance(exception, job.stop.exception)):
            self._stopped(job, job.stop)

    def skipped(self, proxy: Any) -> None:
        """A middleware, or the actor itself, raised SkipMessage."""
        slot = self._running.slot()
        job, slot.finished = slot.finished, None
        message, slot.message = slot.message, None
        last = slot.last_end
        if job is not None and job.is_taken:
            self._taken(job, proxy)
        elif job is not None and job.rerun_for is not None:
            self._append_end(job, "interrupted", None, self._error_of(job.rerun_for, proxy))
            job.rerun_for = None  # it holds the frames of the run
        elif job is not None and job.stop is not None and last is not None and last[0] == job.job_id and last[2] == "cancelled":
            proxy.stuff_exception(JobCancelled(cancellation(job)))  # who waits for its result learns of that, not of a skip
            self._append_end(job, "killed", "cancelled", last[1])
            self._stopped(job, job.stop)
        elif job is not None:
            self._append_end(job, "succeeded", "failed" if proxy.failed else "skipped", None)
        elif message is not None and not proxy.failed:
            options = message.options
            queue, sent_at = q_name(message.queue_name), message.message_timestamp / 1000
            self._append((records.SKIPPED, time(), message.message_id, options.get("retries", 0), message.actor_name, queue, sent_at))

    def _taken(self, job: Job, proxy: Any) -> None:
        """The work of this run is done all the same, or it has failed; then what becomes of the job lies with the other run."""
        exception, job.exception = job.exception, None
        if exception is None:
            self._append_end(job, "succeeded", "completed", None)
            return
        error = self._error_of(exception, proxy)
        if job.stop is not None and job.stop.is_final:
            self._append_end(job, "killed", "cancelled", error)
            self._stopped(job, job.stop)
        else:
            self._append_end(job, "interrupted" if isinstance(exception, Interrupt) else "failed", "lost", error)

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
        if reason is None:
            return
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

    def _stopped(self, job: Job, stop: Stop) -> None:
        """A stop has ended the run."""
        now = datetime.now(UTC)
        self._recorder.emit(JobKilled(**job.about, killed_at=now, means=job.rung or "ask", killed_by=stop.by, reason=stop.why))
        if stop.is_final:
            self._recorder.emit(events.JobCancelled(**job.about, cancelled_at=now, cancelled_by=stop.by, reason=stop.why))

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
                    **job.about,
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
            recorder = self._recorder
            return error_of(exception, recorder.settings.error_max_bytes, recorder.secrets_of(message, policy), recorder.redactor)
        except Exception as error:  # noqa: BLE001 - an exception may have a __str__ that raises anything
            internal_error("errors", error, job_id=message.message_id)
            return (type(exception).__name__, "", "", "{}")


def cancellation(job: Job) -> str:
    """Who has ended a job, and why, in a sentence."""
    stop = job.stop
    return "Cancelled." if stop is None else f"Cancelled by {stop.by}" + (f": {stop.detail}" if stop.detail else ".")


def _reason(broker: Broker, message: Any) -> str:
    """Why a message that did not run was dead-lettered."""
    actor = broker.actors.get(message.actor_name)
    if actor is None:
        return "unknown actor"
    limit = next((entry.max_age for entry in broker.middleware if isinstance(entry, AgeLimit)), None)
    max_age = message.options.get("max_age") or actor.options.get("max_age", limit)
    return "age" if max_age and time() * 1000 - message.message_timestamp >= max_age else "rejected"
