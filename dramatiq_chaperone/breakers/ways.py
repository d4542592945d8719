"""What becomes of a call that is not let through, or fails."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from .errors import BreakerOpen

NO_FALLBACK: Final = object()


class Way(NamedTuple):
    """What becomes of a call that is not let through, or fails."""

    fallback: Any = NO_FALLBACK
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}  # noqa: RUF012 - never changed
    #: The fallback is for failing calls too.
    on_failure: bool = False

    def fallback_value(self) -> Any:
        """The fallback, called with what the call was made with."""
        return self.fallback(*self.args, **self.kwargs) if callable(self.fallback) else self.fallback

    @property
    def covers_failure(self) -> bool:
        """Whether the fallback stands in for a failing call."""
        return self.on_failure and self.fallback is not NO_FALLBACK

    def instead(self, error: BreakerOpen) -> Any:
        """What a call that was not let through gives, or *error*."""
        if self.fallback is NO_FALLBACK:
            raise error
        return self.fallback_value()

    def after(self, error: BaseException, *, is_failure: bool) -> Any:
        """What a call that raised *error* gives, or that."""
        if not (is_failure and self.covers_failure):
            raise error
        return self.fallback_value()
