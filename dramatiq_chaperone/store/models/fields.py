"""The columns' types, and what they look like in Python."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import peewee

from ..times import aware
from .binding import current

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID


class TimeField(peewee.Field):
    """A time: an aware datetime in UTC."""

    field_type = "DATETIME"

    def db_value(self, value: Any) -> Any:
        """What stands in the column.  A naive datetime is taken as UTC."""
        moment = aware(value)
        if moment is None:
            return None
        kind = current().kind
        if kind == "sqlite":
            return moment.strftime("%Y-%m-%d %H:%M:%S.%f+00:00")
        return moment if kind == "postgres" else moment.replace(tzinfo=None)

    def python_value(self, value: Any) -> datetime | None:
        """What Python sees."""
        return aware(value)


class JSONField(peewee.Field):
    """A JSON column: Python values."""

    field_type = "TEXT"

    def db_value(self, value: Any) -> str | None:
        """What stands in the column."""
        return None if value is None else json.dumps(value)

    def python_value(self, value: Any) -> Any:
        """What Python sees."""
        return json.loads(value) if isinstance(value, str) else value


class KeyField(peewee.CharField):
    """A ULID or UUID key, as text."""

    def python_value(self, value: str | UUID | None) -> str | None:
        """What Python sees."""
        return None if value is None else str(value)


class _JobAccessor(peewee.ForeignKeyAccessor):
    def get_rel_instance(self, instance: Any) -> Any:
        try:
            return super().get_rel_instance(instance)  # type: ignore[no-untyped-call]  # has no annotations
        except self.rel_model.DoesNotExist:
            return None


class JobField(peewee.ForeignKeyField):
    """The job that a row belongs to; None once that was pruned."""

    accessor_class = _JobAccessor


def time(help_: str = "") -> Any:
    """A time, aware and in UTC."""
    return TimeField(null=True, help_text=help_)


def text(help_: str = "") -> Any:
    """A short text."""
    return peewee.CharField(null=True, help_text=help_)


def long_text(help_: str = "") -> Any:
    """A text of any length."""
    return peewee.TextField(null=True, help_text=help_)


def count(help_: str = "", *, default: int | None = None) -> Any:
    """A whole number."""
    options: Any = {"null": True} if default is None else {"default": default}
    return peewee.BigIntegerField(**options, help_text=help_)


def number(help_: str = "") -> Any:
    """A number."""
    return peewee.DoubleField(null=True, help_text=help_)


def flag(help_: str = "") -> Any:
    """A yes or no."""
    return peewee.BooleanField(null=True, help_text=help_)


def data(help_: str = "") -> Any:
    """Any JSON."""
    return JSONField(null=True, help_text=help_)


def unique(help_: str = "") -> Any:
    """A text that names the row."""
    return peewee.CharField(unique=True, help_text=help_)
