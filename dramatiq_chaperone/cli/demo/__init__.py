"""`chaperone demo`."""

from __future__ import annotations

import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from dramatiq_chaperone.cli.options import OK
from dramatiq_chaperone.cli.output import is_terminal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .processes import Stage
    from .reading import Reader
    from .screen import Snapshot, Throughput

#: Seconds between two looks at the store.
REFRESH_S: Final = 0.5
#: Seconds between two lines where there is no terminal.
LINE_S: Final = 5.0
_EPILOG = """\b
Examples:
  chaperone demo                 until Ctrl-C
  chaperone demo --for 30        half a minute, then a summary
  chaperone demo --keep          leaves its folder, where `chaperone jobs` works
"""


@click.command(epilog=_EPILOG)
@click.option("--for", "for_s", type=click.FloatRange(min=1), metavar="SECONDS", help="End by itself after so long.")
@click.option("--processes", type=click.IntRange(1, 64), default=3, show_default=True, help="Worker processes.")
@click.option("--threads", type=click.IntRange(1, 64), default=4, show_default=True, help="Threads of each.")
@click.option("--keep", is_flag=True, help="Keep the temporary folder: store, logs, index.")
@click.option("--picture", type=click.Path(path_type=Path, dir_okay=False), hidden=True, help="Write the last screen there, as SVG.")
def demo(for_s: float | None, processes: int, threads: int, keep: bool, picture: Path | None) -> int:
    """Watch a real worker at work, in this terminal.

    Starts a Valkey, a Dramatiq worker with several processes, and an app that indexes the Python sources of this
    installation; all of it in a temporary folder, which is removed at the end. Some of its jobs are long, one actor is
    slow, one leaks memory, one fails. Needs: pip install 'dramatiq-chaperone[demo]'
    """
    from .processes import Stage

    asked = _Asked()
    with asked, Stage(processes=processes, threads=threads, keep=keep) as stage:
        asked.hurry = stage.hurry
        _Demo(stage, asked, for_s, picture).run()
    if keep:
        click.echo(f"\nKept in {stage.folder}; look around there:\n  cd {stage.folder} && chaperone jobs --status failed")
    return OK


class _Asked:
    """Takes note of Ctrl-C and of SIGTERM and SIGHUP; the second one kills what still runs."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.hurry: Any = lambda: None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._before[number] = signal.signal(number, self._take_note)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take_note(self, number: int, _frame: object) -> None:
        if self.number is not None:
            self.hurry()
        self.number = number


class _Demo:
    """One demo: it boots, is watched, ends."""

    def __init__(self, stage: Stage, asked: _Asked, for_s: float | None, picture: Path | None) -> None:
        from .reading import Reader
        from .screen import Throughput

        self._stage, self._asked, self._for_s, self._picture = stage, asked, for_s, picture
        self._reader: Reader = Reader(stage.settings)
        self._throughput: Throughput = Throughput()
        self._began = time.monotonic()

    def run(self) -> None:
        """Until it is over."""
        try:
            if self._boot():
                self._watch()
        finally:
            self._reader.close()

    def _watch(self) -> None:
        from .processes import DemoError
        from .screen import summary

        self._began = time.monotonic()
        if is_terminal():
            self._watch_on_screen()
        else:
            self._watch_in_lines()
        if self._picture is not None:
            self._save_picture(self._picture)
        elapsed_s = self._elapsed_s
        click.echo("Ending what runs ...")
        self._stage.stop()
        snapshot = self._look()
        if self._reader.error is not None and self._asked.number is None:
            raise DemoError(f"The workers wrote nothing to their store: {self._reader.error}{self._stage.tail('worker')}")
        for text in summary(snapshot, elapsed_s=elapsed_s):
            click.echo(text)

    def _boot(self) -> bool:
        for step in self._stage.boot():
            if step:
                click.echo(f"{step} ...")
            if self._asked.number is not None:
                return False
            time.sleep(0 if step else REFRESH_S / 5)
        return True

    @property
    def _elapsed_s(self) -> float:
        return time.monotonic() - self._began

    def _goes_on(self) -> bool:
        return self._asked.number is None and (self._for_s is None or self._elapsed_s < self._for_s)

    def _look(self) -> Snapshot:
        snapshot = self._reader.snapshot(datetime.now(UTC))
        self._throughput.add(time.monotonic(), snapshot.ended)
        return snapshot

    def _snapshots(self) -> Iterator[Snapshot]:
        """A look at the store every now and then, until the demo is over."""
        while self._goes_on():
            self._stage.check()
            yield self._look()
            until = time.monotonic() + REFRESH_S
            while self._goes_on() and time.monotonic() < until:
                time.sleep(0.05)

    def _watch_on_screen(self) -> None:
        from rich.console import Console
        from rich.live import Live

        console = Console(highlight=False, markup=False, emoji=False)
        with Live(console=console, screen=True, auto_refresh=False) as live:
            for snapshot in self._snapshots():
                live.update(self._screen(snapshot, console.size.height), refresh=True)

    def _watch_in_lines(self) -> None:
        from .screen import line

        next_s = min(LINE_S, (self._for_s or LINE_S) / 2)
        for snapshot in self._snapshots():
            if self._elapsed_s >= next_s:
                next_s += LINE_S
                click.echo(line(snapshot, self._throughput, elapsed_s=self._elapsed_s))

    def _screen(self, snapshot: Snapshot, rows: int) -> Any:
        from .screen import screen

        left_s = None if self._for_s is None else self._for_s - self._elapsed_s
        return screen(snapshot, self._throughput, elapsed_s=self._elapsed_s, left_s=left_s, rows=rows)

    def _save_picture(self, path: Path) -> None:
        from . import picture

        self._for_s = None
        picture.save(self._screen(self._look(), picture.ROWS), path)
        click.echo(f"A picture is in {path}.", file=sys.stderr)
