"""Dead letters."""

from __future__ import annotations

from typing import Any

from ...errors import CommandRefused
from .. import commands
from . import fields
from .binding import current
from .evidence import of_job
from .records import Record


class DeadLetterJob(Record):
    """A message that was dead-lettered.  ``DeadLetterJob.delete().where(…).execute()`` deletes such rows."""

    job: Any = of_job("dead_letters")
    job_id: Any = fields.text("Dramatiq's message_id; it outlives the job's row")
    created_at: Any = fields.time()
    actor_name: Any = fields.text()
    queue: Any = fields.text()
    reason: Any = fields.text("retries exhausted, rejected, poison, unknown actor, age or not kept")
    exception: Any = fields.text("class of the exception")
    message: Any = fields.long_text()
    trace: Any = fields.long_text()
    payload: Any = fields.data("args, kwargs, options; redacted")
    payload_complete: Any = fields.flag()
    failed_at: Any = fields.time()
    retried_at: Any = fields.time()
    retried_as: Any = fields.text("job_id of the retry")

    @classmethod
    def all(cls) -> Any:
        """Every dead letter, newest first."""
        return cls.select().order_by(cls.failed_at.desc())

    @classmethod
    def find(cls, key: Any) -> DeadLetterJob | None:
        """The dead letter with this key, None if there is none."""
        return cls.get_or_none(cls.id == key)

    def retry(self, *, issued_by: str = "models") -> str:
        """Ask the fleet to send this message again, as a new job; once: ``retried_as`` is its id.

        Any worker that has the actor carries it out, within an hour.  What becomes of it is the command's row in ``commands``.

        Parameters:
          issued_by: who asks, for the record.

        Returns the id of the command.

        Raises:
          CommandRefused: it was retried before, by this row.
          StoreUnavailable, SchemaError: the command could not be written.
        """
        if self.retried_at is not None:
            raise CommandRefused(f"The dead letter {self.id} was retried already, as job {self.retried_as}.")
        arguments = {"job_id": self.job_id, "dead_letter": str(self.id), "queue": self.queue, "by": issued_by, "origin": "models"}
        return commands.issue(current(), commands.FLEET, "retry", arguments, issued_by=issued_by, seconds=commands.RETRY_S)
