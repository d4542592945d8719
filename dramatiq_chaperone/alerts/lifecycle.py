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
      repeats: messages since the group began to fire.
      first_told_at: the first message of those.
      is_escalated: the next channels know.
    """

    told: Mapping[str, str] = field(default_factory=dict)
    began_at: float | None = None
    told_at: float | None = None
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
    """What a group does now.

    Parameters:
      alerts: those of the group that need attention.
      muted: ids to the reason for which they are not told now: 'silenced', 'inhibited', 'limited'.
    """
    over = _over(group, alerts, muted)
    alive = [each for each in alerts if each.id not in over]
    fresh = [each for each in alive if each.id not in group.told and each.id not in muted]
    ended = [each for each in alive if not each.is_firing and group.told.get(each.id) == FIRING and not each.is_point]
    told = {each.id: group.told[each.id] for each in alive if each.id in group.told}
    group = replace(group, told=told)
    if fresh or ended:
        due_at = _due(route, group, fresh, ended, now)
        if due_at <= now:
            return _tell(route, group, alive, fresh, ended, over, muted, now)
        began_at = group.began_at if group.began_at is not None else now
        return Turn(group=replace(group, began_at=began_at), over=over, due_at=due_at)
    return _again(route, group, alive, over, muted, now)


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


def _due(route: Route, group: Group, fresh: Sequence[Alert], ended: Sequence[Alert], now: float) -> float:
    """When the news may be told."""
    if any(each.severity == "critical" for each in fresh):
        return now
    if route.group_limit and len(fresh) >= route.group_limit:
        return now
    wait_until = (group.began_at if group.began_at is not None else now) + route.group_wait
    if group.told_at is None:
        return wait_until
    return max(group.told_at + route.group_interval, wait_until if fresh and not group.told else 0.0)


def _tell(
    route: Route,
    group: Group,
    alive: Sequence[Alert],
    fresh: Sequence[Alert],
    ended: Sequence[Alert],
    over: Mapping[str, str],
    muted: Mapping[str, str],
    now: float,
) -> Turn:
    told = dict(group.told)
    told.update({each.id: FIRING for each in fresh if each.is_firing or each.is_point})
    told.update({each.id: RESOLVED for each in (*ended, *(it for it in fresh if not it.is_firing and not it.is_point))})
    is_first = not any(each.id in group.told and group.told[each.id] == FIRING for each in alive if not each.is_point)
    new = replace(
        group,
        told=told,
        began_at=None,
        told_at=now,
        first_told_at=now if is_first or group.first_told_at is None else group.first_told_at,
        repeats=1 if is_first else group.repeats,
        is_escalated=False if is_first else group.is_escalated,
    )
    after = _again(route, new, alive, {}, muted, now)
    # What was told is kept at least until it is settled: a group that is through goes with a later turn.
    return replace(after, group=after.group or new, due_at=after.due_at or now, firing=tuple(fresh), resolved=tuple(ended), over=over)


def _again(route: Route, group: Group, alive: Sequence[Alert], over: Mapping[str, str], muted: Mapping[str, str], now: float) -> Turn:
    """Nothing is new: repeat, escalate, or wait."""
    firing = [each for each in alive if each.is_firing and not each.is_point and group.told.get(each.id) == FIRING]
    waiting = [each for each in alive if each.id not in group.told]
    open_ = [each for each in firing if each.acknowledged_at is None and each.id not in muted]
    times = []
    if open_ and route.escalate_after and route.escalate_to and not group.is_escalated and group.first_told_at is not None:
        due_at = group.first_told_at + route.escalate_after
        if due_at <= now:
            escalated = replace(group, is_escalated=True)
            return replace(_again(route, escalated, alive, over, muted, now), firing=tuple(open_), notice="escalation")
        times.append(due_at)
    if open_ and route.repeat and route.repeat[-1] > 0 and group.told_at is not None:
        due_at = group.told_at + route.repeat[min(max(group.repeats, 1), len(route.repeat)) - 1]
        if due_at <= now:
            repeated = replace(group, told_at=now, repeats=group.repeats + 1)
            return replace(_again(route, repeated, alive, over, muted, now), firing=tuple(open_), notice="repeat")
        times.append(due_at)
    if waiting:
        times.append(now + LOOK_AGAIN_S)
    elif not firing:
        # Kept until its interval is over, so that the next alert does not come at once.
        rest_until = (group.told_at or 0.0) + route.group_interval
        if rest_until <= now:
            return Turn(group=None, over=over)
        times.append(rest_until)
        group = replace(group, repeats=0, first_told_at=None)
    return Turn(group=group, over=over, due_at=min(times, default=None))


def settled(alert: Alert, groups: Collection[Mapping[str, str]]) -> bool:
    """Whether everybody who has to know of *alert* does: nothing comes of it any more.

    Parameters:
      groups: what each of its groups has told.
    """
    if alert.is_point:
        return all(alert.id in told for told in groups)
    return not alert.is_firing and all(told.get(alert.id) == RESOLVED for told in groups)
