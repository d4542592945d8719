"""Guards around what runs after it was called: coroutines and generators.  The gate is passed when they begin to run."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from time import monotonic
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any, Final

from .errors import BreakerOpen
from .gate import Gate
from .ways import Way

#: What a call gives that has yet to run.
LAZY: Final = frozenset({GeneratorType, CoroutineType, AsyncGeneratorType})

Function = Callable[..., Any]


def is_lazy(function: Function) -> bool:
    """Whether a call of it only makes something that has yet to run."""
    return inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def decorated(gate: Gate, function: Function, way: Way) -> Function:
    """*function* under the guard of *gate*, and of the same kind: asyncio, Dramatiq and inspect look at that.

    Raises:
      TypeError: it is a generator function, and *way* wants the fallback for failures.
    """
    if inspect.iscoroutinefunction(function):
        return _coroutine_function(gate, function, way)
    _check(_name_of(function), way)
    if inspect.isgeneratorfunction(function):
        return _generator_function(gate, function, way)
    return _async_generator_function(gate, function, way)


def guarded(gate: Gate, made: Any, way: Way) -> Any:
    """*made*, a coroutine or generator that was not started, under the guard of *gate*; listeners have heard of the call.

    Raises:
      TypeError: as above.
    """
    if not isinstance(made, CoroutineType):
        _check(made.__qualname__, way)

    def give(*args: Any, **kwargs: Any) -> Any:
        return made

    give.__name__, give.__qualname__ = made.__name__, made.__qualname__
    if isinstance(made, CoroutineType):
        give_guarded = _coroutine_function(gate, give, way, is_heard=True, refused=made.close)
    elif isinstance(made, GeneratorType):
        give_guarded = _generator_function(gate, give, way, is_heard=True)
    else:
        give_guarded = _async_generator_function(gate, give, way, is_heard=True)
    return give_guarded(*way.args, **way.kwargs)


def _name_of(function: Function) -> str:
    return getattr(function, "__qualname__", None) or repr(function)


def _check(name: str, way: Way) -> None:
    if way.on_failure:
        raise TypeError(f"fallback_on_failure is not for the generator {name}: what it has given before it fails cannot be taken back")


def _coroutine_function(
    gate: Gate, function: Function, way: Way, *, is_heard: bool = False, refused: Callable[[], None] = lambda: None
) -> Function:
    @functools.wraps(function)
    async def coroutine(*args: Any, **kwargs: Any) -> Any:
        call = way._replace(args=args, kwargs=kwargs)
        try:
            admission = await gate._admit_async()
        except BreakerOpen as error:
            refused()
            return await _awaited(call.instead(error))
        if not is_heard:
            gate._hear("before_call", function, *args, **kwargs)
        began = monotonic()
        with gate._around(admission):
            try:
                value = await function(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - it is judged, and raised there
                is_failure = await gate._settle_async(admission, error, took_s=monotonic() - began)
                return await _awaited(call.after(error, is_failure=is_failure))
        is_failure = await gate._settle_async(admission, None, value, took_s=monotonic() - began)
        return await _awaited(call.fallback_value()) if is_failure and call.covers_failure else value

    return coroutine


async def _awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def _generator_function(gate: Gate, function: Function, way: Way, *, is_heard: bool = False) -> Function:
    @functools.wraps(function)
    def generator(*args: Any, **kwargs: Any) -> Any:
        try:
            admission = gate._admit()
        except BreakerOpen as error:
            return (yield from _iterator(gate, function, way._replace(args=args, kwargs=kwargs).instead(error)))
        if not is_heard:
            gate._hear("before_call", function, *args, **kwargs)
        began = monotonic()
        try:
            value = yield from function(*args, **kwargs)
        except BaseException as error:
            gate._settle(admission, error, took_s=monotonic() - began)
            raise
        gate._settle(admission, None, took_s=monotonic() - began)
        return value

    return generator


def _iterator(gate: Gate, function: Function, instead: Any) -> Iterator[Any]:
    try:
        return iter(instead)
    except TypeError as error:
        found = f"{_name_of(function)} a fallback that cannot be iterated: {instead!r:.200}"
        raise TypeError(f"The breaker {gate.service!r} has for the generator {found}") from error


async def _iterated(gate: Gate, function: Function, instead: Any) -> AsyncIterator[Any]:
    if hasattr(instead, "__aiter__"):
        async for value in instead:
            yield value
    else:
        for value in _iterator(gate, function, instead):
            yield value


def _async_generator_function(gate: Gate, function: Function, way: Way, *, is_heard: bool = False) -> Function:
    @functools.wraps(function)
    async def generator(*args: Any, **kwargs: Any) -> Any:
        try:
            admission = await gate._admit_async()
        except BreakerOpen as error:
            async for value in _iterated(gate, function, await _awaited(way._replace(args=args, kwargs=kwargs).instead(error))):
                yield value
            return
        if not is_heard:
            gate._hear("before_call", function, *args, **kwargs)
        began = monotonic()
        made = function(*args, **kwargs)
        try:
            value = await made.__anext__()
            while True:
                try:
                    sent = yield value
                except GeneratorExit:
                    await made.aclose()
                    raise
                except BaseException as thrown:  # noqa: BLE001 - it is the generator's
                    value = await made.athrow(thrown)
                else:
                    value = await made.asend(sent)
        except StopAsyncIteration:
            await gate._settle_async(admission, None, took_s=monotonic() - began)
        except BaseException as error:
            took_s = monotonic() - began
            if isinstance(error, GeneratorExit):  # nothing can be awaited any more
                gate._settle(admission, error, took_s=took_s)
            else:
                await gate._settle_async(admission, error, took_s=took_s)
            raise

    return generator
