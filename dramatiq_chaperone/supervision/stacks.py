"""Where the threads of this process are in their code, and which locks they wait for.

It reads frames of threads that run on: each answer is right for the moment of the look, under the GIL.  No code of the
user's is run: names are looked up in dictionaries alone.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import itertools
import linecache
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from opcode import opname
from types import CodeType, FrameType
from typing import Any, Final

from ..diagnosis import Frame, Link, Stack, is_library, own_frame

#: Frames that are looked at, the innermost ones.
_DEPTH: Final = 60
_CALL_CHARS: Final = 120
#: A source file that is larger is not searched for ``with`` statements.
_SOURCE_LINES: Final = 20_000
_LOCKS: Final = (type(threading.Lock()), type(threading.RLock()))
_OWNER: Final = re.compile(r"owner=(\d+)")
_MISSING: Final = object()
#: Where a thread that runs Python lets others run: it evaluates nothing then.
_JUMPS: Final = ("JUMP", "POP_JUMP", "RESUME")


def stack_of(frame: FrameType | None) -> Stack:
    """The calls of a thread, the innermost last and with the source of what it evaluates."""
    found: list[Frame] = []
    inner = frame
    while frame is not None and len(found) < _DEPTH:
        code = frame.f_code
        found.append(Frame(_name(code), code.co_filename, frame.f_lineno or 0, frame.f_lasti))
        frame = frame.f_back
    if inner is not None:
        found[0] = found[0]._replace(call=expression(inner)[:_CALL_CHARS])
    return tuple(reversed(found))


def coroutine_stack(ident: int) -> tuple[Stack, bool]:
    """The calls of the coroutine that a thread waits for, as an AsyncIO actor's does, and whether it runs right now.

    A coroutine that runs is in the way of all others of its event loop.  Empty where the thread waits for none.
    """
    frames = sys._current_frames()
    frame = frames.get(ident)
    while frame is not None and frame.f_code.co_name != "run_coroutine":
        frame = frame.f_back
    if frame is None:
        return (), False
    coroutine, loop_thread = frame.f_locals.get("coro"), frame.f_locals.get("self")
    found: list[Frame] = []
    inner: FrameType | None = None
    while inspect.iscoroutine(coroutine) and coroutine.cr_frame is not None and len(found) < _DEPTH:
        if coroutine.cr_running and coroutine.cr_await is None:
            return stack_of(frames.get(getattr(loop_thread, "ident", None) or 0)), True
        inner = coroutine.cr_frame
        found.append(Frame(_name(inner.f_code), inner.f_code.co_filename, inner.f_lineno or 0, inner.f_lasti))
        coroutine = coroutine.cr_await
    if inner is not None:
        found[-1] = found[-1]._replace(call=expression(inner)[:_CALL_CHARS])
    return tuple(found), False


def _name(code: CodeType) -> str:
    return code.co_qualname.replace(".<locals>", "")


def expression(frame: FrameType) -> str:
    """The source of the expression that *frame* evaluates now; empty where there is none, as at the jump back of a loop."""
    if 0 <= frame.f_lasti < len(code := frame.f_code.co_code) and opname[code[frame.f_lasti]].startswith(_JUMPS):
        return ""
    position = next(itertools.islice(frame.f_code.co_positions(), frame.f_lasti // 2, None), None)
    if position is None or None in position:
        return ""
    first, last, start, end = position
    assert first is not None and last is not None and start is not None and end is not None  # noqa: PT018 - told above
    lines = [linecache.getline(frame.f_code.co_filename, n, frame.f_globals).encode() for n in range(first, min(last, first + 5) + 1)]
    if not lines or not lines[0]:
        return ""
    text = lines[0][start:end] if first == last else b" ".join([lines[0][start:], *lines[1:-1], lines[-1][:end]])
    return _managers(" ".join(text.decode("utf-8", "replace").split()))


def _managers(text: str) -> str:
    """Of a ``with`` statement, whose entry Python 3.11 gives as the whole of it, what is entered."""
    if not text.startswith(("with ", "async with ")):
        return text
    for colon in re.finditer(":", text):
        try:
            tree = ast.parse(text[: colon.start()].removeprefix("async ") + ": pass").body[0]
        except SyntaxError:
            continue
        assert isinstance(tree, ast.With)
        return ", ".join(ast.unparse(item.context_expr) for item in tree.items)
    return text


def lock_chain(ident: int, names: Mapping[int, tuple[str, str | None]]) -> list[Link]:
    """The lock that a thread waits for and who holds it, what that one waits for, and so on, until a ring closes.

    Parameters:
      ident: of the thread.
      names: the name, and the job, of each thread of which these are known.

    Returns nothing where the thread waits for no lock, or nobody can be told to hold it.
    """
    frames = sys._current_frames()
    frames.pop(threading.get_ident(), None)  # this very frame: it would refer to itself, and keep all the others
    known = {each.ident: each.name for each in threading.enumerate()}
    sources: dict[str, ast.Module | None] = {}

    def name(of: int) -> tuple[str, str | None]:
        return names.get(of) or (known.get(of) or f"{of:#x}", None)

    chain: list[Link] = []
    visited: set[int] = set()
    while ident not in visited and ident in frames:
        visited.add(ident)
        wanted = _waited_lock(frames[ident])
        if wanted is None:
            break
        lock, text = wanted
        holder = _holder(lock, ident, frames, sources)
        if holder is None or holder not in frames:
            break
        place, at = (own_frame(stack_of(frames[each])).place() for each in (ident, holder))
        chain.append(Link(*name(ident), place, text, *name(holder), at))
        ident = holder
    return chain


def _waited_lock(frame: FrameType) -> tuple[Any, str] | None:
    """The lock that this frame, the innermost of its thread, is about to take, and its name in the source."""
    if is_library(frame.f_code.co_filename):  # the locks of a condition or a queue are signals, which nobody holds
        return None
    text = expression(frame)
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if isinstance(tree, ast.Call):
        if not isinstance(tree.func, ast.Attribute) or tree.func.attr not in {"acquire", "__enter__"}:
            return None
        tree = tree.func.value
    for each in tree.elts if isinstance(tree, ast.Tuple) else [tree]:
        lock = _resolve(each, frame)
        if isinstance(lock, _LOCKS) and _is_locked(lock):
            return lock, ast.unparse(each)
    return None


def _is_locked(lock: Any) -> bool:
    return repr(lock).startswith("<locked")


def _holder(lock: Any, waiter: int, frames: Mapping[int, FrameType], sources: dict[str, ast.Module | None]) -> int | None:
    """The thread that holds *lock*: a reentrant one knows it; of another one it is the thread that is inside of a ``with``, or past
    an ``acquire()``, of that very lock."""
    if (owner := _OWNER.search(repr(lock))) is not None:
        return int(owner[1]) or None
    for ident, innermost in frames.items():
        frame: FrameType | None = innermost
        is_innermost = True
        while frame is not None:
            if any(_resolve(each, frame) is lock for each in _held(frame, sources, is_innermost=is_innermost and ident == waiter)):
                return ident
            frame, is_innermost = frame.f_back, False
    return None


def _held(frame: FrameType, sources: dict[str, ast.Module | None], *, is_innermost: bool) -> Iterator[ast.expr]:
    """The expressions whose locks this frame may hold at its line.  *is_innermost*: it waits in this line itself."""
    code, line = frame.f_code, frame.f_lineno or 0
    function = _function(code, _tree(code.co_filename, sources, frame.f_globals))
    if function is None:
        return
    taken: dict[str, ast.expr] = {}
    for node in _within(function):
        if isinstance(node, (ast.With, ast.AsyncWith)) and node.body[0].lineno <= line <= (node.end_lineno or 0):
            yield from (item.context_expr for item in node.items)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.lineno <= line:
            target, name = node.func.value, node.func.attr
            if name == "acquire" and not (is_innermost and node.lineno == line):
                taken[ast.unparse(target)] = target
            elif name == "release" and node.lineno < line:
                taken.pop(ast.unparse(target), None)
    yield from taken.values()


def _within(function: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function in the order of the source, without those of the functions in it."""
    for node in ast.iter_child_nodes(function):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
            yield node
            yield from _within(node)


def _tree(file: str, sources: dict[str, ast.Module | None], module: dict[str, Any]) -> ast.Module | None:
    if file not in sources:
        sources[file] = None
        lines = linecache.getlines(file, module)
        if 0 < len(lines) <= _SOURCE_LINES:
            try:
                sources[file] = ast.parse("".join(lines))
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                return None
    return sources[file]


def _function(code: CodeType, tree: ast.Module | None) -> ast.AST | None:
    if tree is None:
        return None
    if code.co_name == "<module>":
        return tree
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == code.co_name:
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            if first <= code.co_firstlineno <= node.lineno:
                return node
    return None


def _resolve(node: ast.expr, frame: FrameType) -> Any:
    """What a name, an attribute or a constant subscript is in *frame*; _MISSING where that takes more than a look."""
    if isinstance(node, ast.Name):
        for scope in (frame.f_locals, frame.f_globals, vars(builtins)):
            if node.id in scope:
                return scope[node.id]
    elif isinstance(node, ast.Attribute):
        owner = _resolve(node.value, frame)
        if owner is not _MISSING:
            try:
                return inspect.getattr_static(owner, node.attr)
            except AttributeError:
                return _MISSING
    elif isinstance(node, ast.Subscript):
        owner, key = _resolve(node.value, frame), _key(node.slice, frame)
        if type(owner) in {list, tuple, dict}:
            try:
                return owner[key]
            except (LookupError, TypeError):
                return _MISSING
    return _MISSING


def _key(node: ast.expr, frame: FrameType) -> Any:
    key = node.value if isinstance(node, ast.Constant) else _resolve(node, frame)
    return key if type(key) in {int, str} else _MISSING
