"""From alerts to messages: each group's turn, and what it has to tell, as rows of deliveries that wait."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from ..service import internal_error
from ..store import alerts as rows
from ..store import deliveries
from . import lifecycle, routing
from .channels import Channels
from .judging import unsettled
from .kinds import Alert
from .lifecycle import Group
from .routing import Route, Silence

if TYPE_CHECKING:
    from ..settings import Settings
    from ..store import Store

#: Seconds between two looks at what people said of alerts.
LOOK_EVERY_S: Final = 5.0


class Teller:
    """Tells what there is to tell."""

    def __init__(self, settings: Settings, channels: Channels, routes: Sequence[Route]) -> None:
        self._settings, self._channels, self._routes = settings, channels, routes

    def flush(self, store: Store, now: float, waits_for: Mapping[str, frozenset[str]]) -> float:
        """Take each group's turn, and put what it has to tell into the row of deliveries.  For the inside of a transaction.

        Parameters:
          waits_for: queue to what its jobs wait for, in words.

        Returns when it has to be called again at the latest.
        """
        every, known = unsettled(store), rows.groups(store)
        muted = self._muted(store, every, now, waits_for)
        members: dict[str, tuple[Route, dict[str, str], list[Alert]]] = {}
        places: dict[str, list[str]] = {}
        for alert in every:
            for route, labels in routing.routed(alert, self._routes):
                name = routing.series(route.name, labels)
                members.setdefault(name, (route, labels, []))[2].append(alert)
                places.setdefault(alert.id, []).append(name)
        by_name = {route.name: route for route in self._routes}
        for name, facts in known.items():
            if name not in members and facts["route"] in by_name:
                members[name] = (by_name[facts["route"]], facts["labels"], [])
        told: dict[str, Mapping[str, str]] = {}
        over: dict[str, Mapping[str, str]] = {}
        due = [now + LOOK_EVERY_S] if every else []
        for name, (route, labels, alerts) in members.items():
            before = known.get(name)
            try:
                turn = lifecycle.turn(route, Group(**before["state"]) if before else _begun(alerts), alerts, muted, now)
                self._queue(store, route, turn, every, now)
            except (TypeError, ValueError, KeyError, AttributeError) as error:  # of this group alone
                internal_error("alerts", error)
                told[name], over[name] = {}, {}
                continue
            told[name], over[name] = (turn.group.told if turn.group else {}), turn.over
            state = (
                None if turn.group is None else {"route": route.name, "labels": labels, "state": asdict(turn.group), "due_at": turn.due_at}
            )
            if state is not None or before is not None:
                changed = state is None or before is None or (state["state"], turn.due_at) != (before["state"], before["due_at"])
                if changed:
                    rows.write_group(store, name, state, now)
            due += [turn.due_at] if turn.due_at is not None else []
        for name in known.keys() - members.keys():
            rows.write_group(store, name, None, now)  # its route is gone
        self._settle(store, every, places, told, over, muted, now)
        return min(due, default=float("inf"))

    def _settle(
        self,
        store: Store,
        every: Sequence[Alert],
        places: Mapping[str, Sequence[str]],
        told: Mapping[str, Mapping[str, str]],
        over: Mapping[str, Mapping[str, str]],
        muted: Mapping[str, str],
        now: float,
    ) -> None:
        quiet = {
            each.id: muted[each.id] for each in every if each.id in muted and each.suppressed != muted[each.id] and each.told_at is None
        }
        done = []
        for alert in every:
            reasons = [over[name][alert.id] for name in places[alert.id] if alert.id in over[name]]
            if lifecycle.settled(alert, [told[name] for name in places[alert.id] if alert.id not in over[name]]):
                done.append(alert.id)
                if len(reasons) == len(places[alert.id]):
                    quiet[alert.id] = reasons[0]
        rows.suppress(store, quiet, now)
        rows.settle(store, done, now)

    def _muted(self, store: Store, every: Sequence[Alert], now: float, waits_for: Mapping[str, frozenset[str]]) -> dict[str, str]:
        """Alerts that nobody is to hear of now, to the reason."""
        silences = [Silence(**each) for each in rows.silences(store, now=now)] + routing.windows_of(self._settings)
        firing = [each for each in every if each.is_firing and each.type in {"worker_lost", "circuit_breaker"}]
        untold = [each for each in every if each.told_at is None]
        limited = rows.limited_from(store, [each.fingerprint for each in untold])
        found = {}
        for each in every:
            if routing.silenced(each, silences, now) is not None:
                found[each.id] = "silenced"
            elif routing.inhibited(each, firing, waits_for) is not None:
                found[each.id] = "inhibited"
        for each in untold:
            at = limited.get(each.fingerprint)
            if at is not None and now - at < routing.limit_s(each.type, self._settings):
                found.setdefault(each.id, "limited")
        return found

    def _queue(self, store: Store, route: Route, turn: lifecycle.Turn, every: Sequence[Alert], now: float) -> None:
        """One message a channel; on call one an alert, and no end of an incident that another alert keeps open."""
        told = [*((each, "firing" if each.is_firing or each.is_point else "resolved") for each in turn.firing)]
        told += [(each, "resolved") for each in turn.resolved]
        if not told:
            return
        names = list(route.escalate_to) if turn.notice == "escalation" else list(route.channels)
        if turn.notice != "escalation" and turn.group is not None and turn.group.is_escalated:
            names += route.escalate_to
        channels = [self._channels.by_name[name] for name in dict.fromkeys(self._channels.expanded(names))]
        for channel in channels or [self._channels.by_name["log"]]:
            mine = [(each.id, status) for each, status in told if status == "firing" or channel.sends_resolved]
            if channel.is_on_call:
                fires = {each.fingerprint for each in every if each.is_firing}
                ends = [each.id for each in turn.resolved if each.fingerprint not in fires]
                mine = [pair for pair in mine if pair[1] == "firing" or pair[0] in ends]
                parts = [[pair] for pair in mine] if turn.notice != "repeat" else []
            else:
                parts = [mine] if mine else []
            for part in parts:
                deliveries.add(store, channel.name, part, now, route=route.name, notice=turn.notice)


def _begun(alerts: Sequence[Alert]) -> Group:
    """A group that is not known.  Its alerts may have been told of by another one, before the routes were changed."""
    told = [each for each in alerts if each.is_firing and each.told_at is not None]
    if not told:
        return Group()
    at = max(each.told_at or 0.0 for each in told)
    return Group(told={each.id: lifecycle.FIRING for each in told}, told_at=at, repeated_at=at, first_told_at=at, repeats=1)
