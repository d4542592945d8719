"""What a process knows of a circuit, how it learns of changes, and who hears of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..circuits import Altered, Circuit, events_of, order
from ..events import publish
from .face import Configuration, Face
from .storages import give_order


class Knowledge(Face):
    """The part of a breaker that follows its circuit."""

    _configure: Callable[[Any], Configuration]
    _trials: int
    _jobs: int
    _is_ahead: bool
    _is_plain: bool

    def _alone(self, operation: Callable[[Circuit, float], Any]) -> Altered:
        """The storage is away: the step is taken on what is known here."""
        configuration = self._configured()
        with self._lock:
            before = self._circuit
            now = configuration.storage.clock.now()
            step = operation(before, now)
            self._is_ahead = self._is_ahead or step.is_changed
            self._set(replace(step.circuit, version=before.version))
        altered = Altered(step, now)
        self._say(altered, before)
        return altered

    # -- what is known of the circuit

    def took(self, altered: Altered, *, is_said: bool = False) -> None:
        """A step was taken for this process.  *is_said*: its events were published before."""
        with self._lock:
            before = self._circuit
            circuit = altered.step.circuit
            is_news = circuit.version > before.version or (self._is_ahead and circuit.version >= before.version)
            if is_news:
                self._is_ahead = False
                self._set(circuit)
        self._say(altered if not is_said else altered._replace(step=altered.step._replace(entered=(), before=circuit)), before)

    def adopt(self, circuit: Circuit) -> None:
        """Another process has changed the circuit."""
        with self._lock:
            before = self._circuit
            if circuit.version <= before.version or (self._is_ahead and circuit.is_plain):
                return  # what was seen here, and is not told yet, counts for more than that all is well
            self._set(circuit)
        self._hear_of_change(before)

    def _set(self, circuit: Circuit) -> None:
        self._circuit = circuit
        self._refresh()

    def _refresh(self) -> None:
        configuration = self._configuration
        self._is_plain = (
            configuration is not None
            and configuration.is_enabled
            and configuration.verdicts.record_result is None
            and self._circuit.is_plain
            and not self._trials
            and not self._jobs
            and not self._listeners
        )

    def _configured(self) -> Configuration:
        configuration = self._configuration
        if configuration is None:
            configuration = self._configure(self)
            with self._lock:
                self._configuration = configuration
                known = configuration.storage.read(self._name)
                if known is not None and known.version > self._circuit.version:
                    self._circuit = known
                self._refresh()
        return configuration

    def _say(self, altered: Altered, before: Circuit) -> None:
        step = altered.step
        if step.entered or step.circuit.mode != step.before.mode:
            for event in events_of(self._name, step, altered.now):
                publish(event)
        self._hear_of_change(before)

    def reconfigure(self) -> None:
        """Options have changed."""
        with self._lock:
            self._configuration = None
            self._is_plain = False

    def _order(self, what: str) -> bool:
        """Whether it changed anything."""
        configuration = self._configured()
        self.tally.take_successes()
        altered = give_order(configuration.storage, self._name, configuration.policy, what)
        if altered is None:
            altered = self._alone(lambda circuit, now: order(circuit, configuration.policy, what, now))
        return altered.step.is_changed
