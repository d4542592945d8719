"""What all the models have in common."""

from __future__ import annotations

from types import MethodType
from typing import TYPE_CHECKING, Any, Final

import peewee

from .binding import DATABASE, SETTINGS, current
from .fields import KeyField

if TYPE_CHECKING:
    from collections.abc import Callable

_TABLES: Final = {
    "SupervisedJob": "supervised_jobs",
    "SupervisedJobError": "supervised_job_errors",
    "Heartbeat": "heartbeats",
    "ResourceViolation": "resource_violations",
    "JobHealthCheck": "job_health_checks",
    "CircuitBreaker": "circuit_breakers",
    "DeadLetterJob": "dead_letter_jobs",
    "Worker": "workers",
}


def _table_name(model: type[peewee.Model]) -> str:
    return SETTINGS.table_names[_TABLES[model.__name__]] if model.__name__ in _TABLES else "none"


def _new_key() -> str | None:
    return current().new_key()


class Record(peewee.Model):
    """A row of one of Chaperone's tables."""

    id: Any = peewee.BigAutoField() if SETTINGS.primary_key_type == "id" else KeyField(primary_key=True, default=_new_key)

    class Meta:
        database = DATABASE
        table_function = _table_name


class Scope:
    """One name, two questions: ``SupervisedJob.failed()`` is the query of such rows, ``job.failed()`` whether *job* is one.

    Parameters:
      help_: what the rows are.
      condition: gives the condition for a class.
      holds: gives the same for a row.
    """

    def __init__(self, help_: str, condition: Callable[[Any], Any], holds: Callable[[Any], bool]) -> None:
        self.__doc__ = help_

        def rows(model: Any) -> Any:
            return model.select().where(condition(model))

        def is_one(record: Any) -> bool:
            return holds(record)

        rows.__doc__ = is_one.__doc__ = help_
        self._rows, self._is_one = rows, is_one

    def __get__(self, record: Any, model: Any) -> Any:
        return MethodType(self._rows, model) if record is None else MethodType(self._is_one, record)


def in_status(help_: str, *statuses: str) -> Any:
    """The scope of the rows in one of these states."""
    return Scope(help_, lambda model: model.status.in_(statuses), lambda record: record.status in statuses)
