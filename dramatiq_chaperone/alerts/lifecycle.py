"""The life of a group of alerts, in Alertmanager's words: when it is told, what of it, and when again.  Pure.

A group waits ``group_wait`` for others, then one message tells what fires.  From then on at most one message in
``group_interval`` tells what is new or over, and one after each time of ``repeat`` tells again what still fires.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from .kinds import Alert, kind_of
from .routing import Route

FIRING: Final = "firing"
RESOLVED: Final = "resolved"
#: While alerts of a group are muted, it is looked at again after so many seconds.
LOOK_AGAIN_S: Final = 5.0


@dataclass(frozen=True, kw_only=True)
class Group:
    """What is known of a group; times are Unix seconds.

    Attributes:
      told: what each alert was told as: id to FIRING or RESOLVED.
      began_at: when the first alert came that has yet to be told.
      told_at: the last message.
      repeated_at: the last message that told all that fires: the first, and each repeat.
      repeats: such messages since the group began to fire.
      first_told_at: the first message of those.
      is_escalated: the next channels know.
    """

    told: Mapping[str, str] = field(default_factory=dict)
    began_at: float | None = None
    told_at: float | None = None
    repeated_at: float | None = None
    first_told_at: float | None = None
    repeats: int = 0
    is_escalated: bool = False


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What is to be done now.

    Attributes:
      group: as it is afterwards; None: nothing is left of it.
      firing, resolved: what a message tells; both empty: none.
      notice: why: 'new', 'repeat' or 'escalation'.
      over: ids of alerts that were over, or limited, before anybody was told, to the reason.
      due_at: when to look again.
    """

    group: Group | None
    firing: tuple[Alert, ...] = ()
    resolved: tuple[Alert, ...] = ()
    notice: str = "new"
    over: Mapping[str, str] = field(default_factory=dict)
    due_at: float | None = None


def turn(route: Route, group: Group, alerts: Sequence[Alert], muted: Mapping[str, str], now: float) -> Turn:
    """What a group does now: one message at most; what is due besides comes with the next turn, which is due at once then.

    Parameters:
      alerts: those of the group that need attention.
      muted: ids to the reason for which they are not told now: 'silenced', 'inhibited', 'limited'.
    """
    over = _over(group, alerts, muted)
    alive = [each for each in alerts if each.id not in over]
    fresh = [each for each in alive if each.id not in group.told and each.id not in muted]
    ended = [each for each in alive if not each.is_firing and group.told.get(each.id) == FIRING and not each.is_point]
    began_at = None if not fresh else group.began_at if group.began_at is not None else now
    group = replace(group, told={each.id: group.told[each.id] for each in alive if each.id in group.told}, began_at=began_at)
    open_ = [each for each in alive if each.is_firing and not each.is_point and group.told.get(each.id) == FIRING]
    waited_for = [each for each in open_ if each.acknowledged_at is None and each.id not in muted]
    escalates_at = _escalates_at(route, group) if waited_for else None
    repeats_at = _repeats_at(route, group) if waited_for else None
    news_at = _news_at(route, group, fresh, ended, now) if fresh or ended else None
    if escalates_at is not None and escalates_at <= now:
        return Turn(group=replace(group, is_escalated=True), firing=tuple(waited_for), notice="escalation", over=over, due_at=now)
    if news_at is not None and news_at <= now:
        return Turn(group=_told(group, open_, fresh, ended, now), firing=tuple(fresh), resolved=tuple(ended), over=over, due_at=now)
    if repeats_at is not None and repeats_at <= now:
        repeated = replace(group, told_at=now, repeated_at=now, repeats=group.repeats + 1)
        return Turn(group=repeated, firing=tuple(waited_for), notice="repeat", over=over, due_at=now)
    times = [at for at in (escalates_at, news_at, repeats_at) if at is not None]
    if any(each.id in muted for each in alive if each.id not in group.told):
        times.append(now + LOOK_AGAIN_S)
    if not alive:
        # Kept until its interval is over, so that the next alert does not come at once.
        rests_until = (group.told_at or 0.0) + route.group_interval
        if rests_until <= now:
            return Turn(group=None, over=over)
        times.append(rests_until)
        group = replace(group, repeats=0, first_told_at=None, repeated_at=None)
    return Turn(group=group, over=over, due_at=min(times, default=None))


def _over(group: Group, alerts: Sequence[Alert], muted: Mapping[str, str]) -> dict[str, str]:
    """What nobody need be told of any more."""
    found = {}
    for each in alerts:
        if each.id in group.told:
            continue
        if each.is_point and each.id in muted:
            found[each.id] = muted[each.id]
        elif not each.is_firing and not each.is_point and (each.id in muted or not kind_of(each.type).is_told_late):
            found[each.id] = muted.get(each.id, "resolved")
    return found


def _news_at(route: Route, group: Group, fresh: Sequence[Alert], ended: Sequence[Alert], now: float) -> float:
    """When the news may be told."""
    if any(each.severity == "critical" for each in fresh):
        return now
    if route.group_limit and len(fresh) >= route.group_limit:
        return now
    waited = (group.began_at if group.began_at is not None else now) + route.group_wait
    if group.told_at is None:
        return waited
    return max(group.told_at + route.group_interval, waited if fresh and not group.told else 0.0)


def _escalates_at(route: Route, group: Group) -> float | None:
    if group.is_escalated or group.first_told_at is None or not (route.escalate_after and route.escalate_to):
        return None
    return group.first_told_at + route.escalate_after


def _repeats_at(route: Route, group: Group) -> float | None:
    if group.repeated_at is None or not route.repeat or route.repeat[-1] <= 0:
        return None
    return group.repeated_at + route.repeat[min(max(group.repeats, 1), len(route.repeat)) - 1]


def _told(group: Group, open_: Sequence[Alert], fresh: Sequence[Alert], ended: Sequence[Alert], now: float) -> Group:
    """The group after a message with its news."""
    told = dict(group.told)
    told.update({each.id: FIRING for each in fresh if each.is_firing or each.is_point})
    told.update({each.id: RESOLVED for each in (*ended, *(it for it in fresh if not it.is_firing and not it.is_point))})
    group = replace(group, told=told, began_at=None, told_at=now)
    is_first = not open_ or group.first_told_at is None
    return replace(group, first_told_at=now, repeated_at=now, repeats=1, is_escalated=False) if is_first else group


def settled(alert: Alert, groups: Collection[Mapping[str, str]]) -> bool:
    """Whether everybody who has to know of *alert* does: nothing comes of it any more.

    Parameters:
      groups: what each of its groups has told.
    """
    if alert.is_point:
        return all(alert.id in told for told in groups)
    return not alert.is_firing and all(told.get(alert.id) == RESOLVED for told in groups)
