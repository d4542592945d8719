"""Send the packages of this Python installation to the workers of app.py, over and over, never too many at once."""

from __future__ import annotations

import contextlib
import itertools
import random
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

from app import (
    broker,
    count_words,
    find_look_alikes,
    index_file,
    index_package,
    list_sources,
    read_stub,
    remember_tokens,
    store_words,
)
from dramatiq import pipeline

from dramatiq_chaperone import initiated_by

#: Nothing is sent while more messages than this wait.
BACKLOG = 150
QUEUES = ("default", "packages", "trouble")


def packages() -> list[Path]:
    """Folders with an __init__.py and more than a handful of files, in the standard library and in site-packages."""
    paths = sysconfig.get_paths()
    roots = [Path(paths["stdlib"]), Path(paths["purelib"])]
    folders = [init.parent for root in roots for init in sorted(root.glob("*/__init__.py"))]
    return [folder for folder in folders if len(list(itertools.islice(folder.rglob("*.py"), 6))) > 5]


def send(folder: Path, number: int) -> None:
    """All the work that one package gives."""
    with initiated_by("package", folder.name):
        index_package.send(folder.name, str(folder))
        pipeline([list_sources.message(str(folder)), count_words.message(), store_words.message(name=folder.name)]).run()
        if number % 4 == 0:
            find_look_alikes.send(str(folder))
        for place, path in enumerate(sorted(folder.rglob("*.py"))):
            index_file.send(str(path))
            if place % 25 == 0:
                remember_tokens.send(str(path))
                read_stub.send(str(path))
            if place % 20 == 19:
                wait_for_room()


def wait_for_room() -> None:
    while sum(broker.client.llen(f"{broker.namespace}:{queue}") for queue in QUEUES) > BACKLOG:
        time.sleep(0.1)


def main() -> None:
    found = packages()
    print(f"{len(found)} packages", flush=True)
    for number, folder in enumerate(endless(found)):
        wait_for_room()
        send(folder, number)


def endless(folders: list[Path]) -> Iterator[Path]:
    while True:
        yield from random.sample(folders, len(folders))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
