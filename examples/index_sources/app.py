"""Index Python sources with Dramatiq, under the eyes of Chaperone.

What it does is real: it reads the files of this Python installation, parses, counts, hashes and compresses them.  Some
of its actors are in trouble on purpose, so that there is something to see.

Run it by hand, with a Redis or Valkey at REDIS_URL (default: redis://127.0.0.1:6379):

    dramatiq app --processes 2 --threads 4    # the workers
    python feed.py                            # the one who sends, in a second terminal
    chaperone jobs                            # what is on record, in a third
"""

from __future__ import annotations

import ast
import difflib
import gzip
import hashlib
import json
import lzma
import os
import tokenize
from collections import Counter
from pathlib import Path

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from dramatiq_chaperone import Chaperone, heartbeat, report_progress, track

broker = RedisBroker(url=os.environ.get("REDIS_URL", "redis://127.0.0.1:6379"))
broker.add_middleware(Chaperone())
dramatiq.set_broker(broker)

INDEX = Path(os.environ.get("INDEX_DIR", "index"))
#: The leak ends after so many files, some 150 MB a process, so that your machine survives it.
LEAKED_FILES = 80


# Short: a file in some milliseconds, hundreds of them in a row.


@dramatiq.actor
def index_file(path: str) -> None:
    """One entry of the index: what is defined in a file."""
    source = Path(path).read_bytes()
    write_entry(path, {"sha256": hashlib.sha256(source).hexdigest(), **counts(source)})


# Long, with progress: a whole package.


@dramatiq.actor(queue_name="packages", time_limit=300_000, notify_shutdown=True)
def index_package(name: str, folder: str) -> None:
    """Count a package file by file, then compress it as one archive."""
    files = sorted(Path(folder).rglob("*.py"))
    total: Counter[str] = Counter()
    for file in track(files, phase="count"):
        total.update(counts(file.read_bytes()))
    archive = lzma.LZMACompressor(preset=6)
    packed = 0
    for file in track(files, phase="compress"):
        packed += len(archive.compress(file.read_bytes()))
    packed += len(archive.flush())
    write_entry(folder, {"package": name, "packed_bytes": packed, **total})


# A pipeline: each step gets what the one before it found.


@dramatiq.actor(queue_name="packages")
def list_sources(folder: str) -> list[str]:
    return [str(path) for path in sorted(Path(folder).rglob("*.py"))][:300]


@dramatiq.actor(queue_name="packages")
def count_words(paths: list[str]) -> dict[str, int]:
    words: Counter[str] = Counter()
    for path in paths:
        words.update(Path(path).read_text(errors="replace").split())
        heartbeat(words=len(words))
    return dict(words.most_common(50))


@dramatiq.actor(queue_name="packages")
def store_words(words: dict[str, int], *, name: str) -> None:
    write_entry(f"words of {name}", words)


# In trouble: one leaks, one fails, one is slow.

_remembered: list[list[tokenize.TokenInfo]] = []


@dramatiq.actor(queue_name="trouble")
def remember_tokens(path: str) -> None:
    """Leaks: it keeps the tokens of every file for a later that never comes."""
    if len(_remembered) < LEAKED_FILES:
        with tokenize.open(path) as source:
            _remembered.append(list(tokenize.generate_tokens(source.readline)))


@dramatiq.actor(queue_name="trouble", max_retries=2, min_backoff=500, max_backoff=2_000)
def read_stub(path: str) -> int:
    """Fails: few modules have a stub beside them.  Two retries, then the dead letters."""
    stub = Path(path).with_suffix(".pyi")
    if not stub.exists():
        raise FileNotFoundError(f"{stub.name} is missing")
    return len(ast.parse(stub.read_bytes()).body)


@dramatiq.actor(queue_name="trouble", time_limit=120_000, notify_shutdown=True)
def find_look_alikes(folder: str) -> None:
    """Slow: it compares each file with each other one."""
    files = sorted(Path(folder).rglob("*.py"), key=lambda file: file.stat().st_size)[-24:]
    lines = [file.read_text(errors="replace").splitlines()[:400] for file in files]
    pairs = [(one, other) for one in range(len(files)) for other in range(one)]
    alike = {}
    for done, (one, other) in enumerate(pairs):
        report_progress(done + 1, len(pairs), phase="compare", file=files[one].name)
        ratio = difflib.SequenceMatcher(None, lines[one], lines[other], autojunk=False).ratio()
        if ratio > 0.5:
            alike[f"{files[one].name} {files[other].name}"] = round(ratio, 2)
    write_entry(f"look-alikes in {folder}", alike)


def counts(source: bytes) -> dict[str, int]:
    """What is in a file; one that Python cannot parse counts as broken."""
    found = {"files": 1, "bytes": len(source), "lines": source.count(b"\n")}
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return {**found, "broken": 1}
    for node in ast.walk(tree):
        kind = type(node).__name__
        if kind in {"ClassDef", "FunctionDef", "AsyncFunctionDef", "Import", "ImportFrom"}:
            found[kind] = found.get(kind, 0) + 1
    return found


def write_entry(key: str, entry: dict[str, object] | dict[str, int]) -> None:
    """A file of the index, renamed into place, so that a run that is cut off leaves no half of it."""
    INDEX.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(key.encode()).hexdigest()[:24]
    new = INDEX / f"{name}.{os.getpid()}.new"
    new.write_bytes(gzip.compress(json.dumps({"of": key, **entry}).encode()))
    new.replace(INDEX / f"{name}.json.gz")
