"""What people read: a title, and a text whose first line stays the same as long as an alert fires.  Pure."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from .kinds import Alert, kind_of
from .routing import runbook_of, worst
from .rules import duration

if TYPE_CHECKING:
    from ..settings import Settings

PREFIX: Final = "[Chaperone Alert]"
#: Alerts of a message that are named; of the others it says how many there are.
MOST_NAMED: Final = 10
MOST_RESOLVED: Final = 5
_VALUE: Final = 500
_EVIDENCE: Final = 6000
#: What closes a text that was cut.
_CUT: Final = "…"


class Block(NamedTuple):
    """A part of a text: a line, pairs of name and value, code, or a link."""

    kind: str
    text: str = ""
    pairs: Sequence[tuple[str, str]] = ()


class Message(NamedTuple):
    """One message to one channel.

    Attributes:
      title: without an emoji.
      severity: the worst of its alerts, 'resolved' where all are over.
      dedup: ``type:key`` where it is about one alert; else empty.
      url: where to look.
    """

    title: str
    severity: str
    blocks: tuple[Block, ...]
    emoji: str = ""
    dedup: str = ""
    url: str = ""
    details: tuple[tuple[str, str], ...] = ()
    alerts: tuple[Alert, ...] = ()

    def text(self, format_: str, limit: int = 0) -> str:
        """As 'text', 'markdown' or 'html', at most *limit* characters long; 0: any length.  What is cut is cut at the end."""
        write = {"markdown": _markdown, "html": _html}.get(format_, _text)
        blocks = [block._replace(text=_tame(block.text), pairs=[(_tame(a), _tame(b)) for a, b in block.pairs]) for block in self.blocks]
        written = "\n".join(write(each) for each in blocks)
        while limit and len(written) > limit and len(blocks) > 1:
            blocks.pop()
            written = "\n".join([*(write(each) for each in blocks), _CUT])
        return written if not limit or len(written) <= limit else written[: max(0, limit - 1)] + _CUT


def make(
    alerts: Sequence[tuple[Alert, str]],
    settings: Settings,
    *,
    now: float,
    notice: str = "new",
    may_repeat: bool = False,
    flooded: tuple[int, int] = (0, 0),
    is_test: bool = False,
) -> Message:
    """The message of a delivery.

    Parameters:
      alerts: each with 'firing' or 'resolved'.
      notice: 'new', 'repeat' or 'escalation'.
      may_repeat: it was perhaps delivered before.
      flooded: messages, and alerts in them, that the channel did not get before this one.
    """
    firing = [alert for alert, status in alerts if status == "firing"]
    over = [alert for alert, status in alerts if status != "firing"]
    every = [*firing, *over]
    blocks = [Block("line", _first_line(every))]
    blocks += [Block("line", line) for line in _remarks(notice, firing, may_repeat=may_repeat, flooded=flooded, is_test=is_test)]
    if len(every) == 1:
        blocks += _one(every[0], settings, now, is_over=not firing)
    else:
        blocks += _several(firing, over, now)
    single = every[0] if len(every) == 1 else None
    url = _url(single, settings)
    if url:
        blocks.insert(min(len(blocks), 2), Block("link", "Open", [("", url)]))
    return Message(
        title=_title(firing, over, is_test=is_test),
        severity=worst(firing) if firing else "resolved",
        blocks=tuple(blocks),
        emoji=kind_of(every[0].type).emoji if firing else "✅",
        dedup=f"{single.type}:{single.key}" if single else "",
        url=url,
        details=tuple(_pairs(single, now, is_over=not firing)) if single else (),
        alerts=tuple(every),
    )


def _names(alerts: Sequence[Alert]) -> Counter[str]:
    return Counter(each.evidence.get("title") or kind_of(each.type).title for each in alerts)


def _first_line(alerts: Sequence[Alert]) -> str:
    if len(alerts) == 1:
        return alerts[0].headline
    return ", ".join(sorted(_names(alerts)))


def _title(firing: Sequence[Alert], over: Sequence[Alert], *, is_test: bool) -> str:
    every = firing or over
    what = every[0].headline if len(every) == 1 else ", ".join(f"{name} ({number})" for name, number in sorted(_names(every).items()))
    return _tame(f"{PREFIX} {'TEST: ' if is_test else ''}{'' if firing else 'Resolved: '}{' '.join(what.split())}")


def _remarks(notice: str, firing: Sequence[Alert], *, may_repeat: bool, flooded: tuple[int, int], is_test: bool) -> list[str]:
    remarks = []
    if is_test:
        remarks.append("This is a test. Nothing is wrong.")
    if firing and notice == "repeat":
        remarks.append("Still so; it was told before.")
    if firing and notice == "escalation":
        remarks.append("Nobody has said that they look after it: chaperone alerts ack ID")
    if may_repeat:
        remarks.append("This message may be a repeat: whether it arrived before is not known.")
    if flooded[0]:
        remarks.append(f"{flooded[0]} messages with {flooded[1]} alerts before this one were held back here: chaperone alerts")
    return remarks


def _pairs(alert: Alert, now: float, *, is_over: bool) -> list[tuple[str, str]]:
    given = [(str(name), _shortened(str(value), _VALUE)) for name, value in alert.evidence.get("details", ())]
    if alert.number > 1:
        given.append(("Seen", f"{alert.number} times in {duration(max(0.0, alert.last_seen_at - alert.first_seen_at))}"))
    if is_over and not alert.is_point:
        given.append(("Over after", duration(max(0.0, (alert.resolved_at or now) - alert.first_seen_at))))
    return [
        ("Severity", alert.severity),
        *([("Priority", alert.priority)] if alert.priority != "normal" else []),
        *given,
        ("Alert", alert.id),
    ]


def _one(alert: Alert, settings: Settings, now: float, *, is_over: bool) -> list[Block]:
    blocks = [Block("pairs", pairs=_pairs(alert, now, is_over=is_over))]
    meaning = alert.evidence.get("meaning") or kind_of(alert.type).meaning
    if meaning and not is_over:
        blocks.append(Block("line", meaning))
    runbook = alert.evidence.get("runbook") or runbook_of(alert.type, alert.labels.get("actor", ""), settings)
    if runbook:
        blocks.append(Block("link", "Runbook", [("", runbook)]))
    if alert.evidence.get("text") and not is_over:
        blocks.append(Block("code", _shortened(str(alert.evidence["text"]), _EVIDENCE)))
    return blocks


def _several(firing: Sequence[Alert], over: Sequence[Alert], now: float) -> list[Block]:
    blocks = []
    for alerts, most, word in ((firing, MOST_NAMED, "fire"), (over, MOST_RESOLVED, "are over")):
        if not alerts:
            continue
        named = f", the first {most}" if len(alerts) > most else ""
        blocks.append(Block("line", f"{len(alerts)} {word}{named}:"))
        blocks.append(Block("pairs", pairs=[_in_short(each, now) for each in alerts[:most]]))
    return blocks


def _in_short(alert: Alert, now: float) -> tuple[str, str]:
    facts = [f"{name}: {value}" for name, value in alert.evidence.get("details", ()) if name not in {"Actor", "Queue", "Worker"}]
    return alert.headline, _shortened("; ".join(facts), _VALUE)


def _url(alert: Alert | None, settings: Settings) -> str:
    if not settings.dashboard_url:
        return ""
    base = settings.dashboard_url.rstrip("/")
    job = alert.labels.get("job_id") if alert else None
    return f"{base}/chaperone/jobs/{job}" if job else f"{base}/chaperone/alerts"


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + _CUT


#: What some chat services take for a call to everybody, wherever it comes from: an exception's text, an argument.
_CALLS: Final = re.compile(r"<(?=[!@#])|@(?=everyone|here|channel)")


def _tame(text: str) -> str:
    return _CALLS.sub("\\g<0>\u200b", text)


def _text(block: Block) -> str:
    match block.kind:
        case "pairs":
            return "\n".join(f"{name}: {value}" for name, value in block.pairs)
        case "link":
            return f"{block.text}: {block.pairs[0][1]}"
        case "code":
            return f"\n{block.text}\n"
    return block.text


#: What would begin a mark; an underscore inside of a name does not, and not every service knows escapes.
_MARKS: Final = re.compile(r"[\\`*\[\]~|<>]|(?<!\w)_|_(?!\w)")


def _escaped(text: str) -> str:
    return _MARKS.sub(r"\\\g<0>", text).replace("\n", " ")


def _markdown(block: Block) -> str:
    match block.kind:
        case "pairs":
            return "\n".join(f"- **{_escaped(name)}**: {_escaped(value)}" for name, value in block.pairs) + "\n"
        case "link":
            return f"[{_escaped(block.text)}]({block.pairs[0][1]})"
        case "code":
            return "```\n" + block.text.replace("```", "'''") + "\n```"
    return _escaped(block.text) + "\n"


def _html(block: Block) -> str:
    match block.kind:
        case "pairs":
            rows = (f"<tr><th align='left'>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in block.pairs)
            return f"<table>{''.join(rows)}</table>"
        case "link":
            return f"<p><a href='{html.escape(block.pairs[0][1])}'>{html.escape(block.text)}</a></p>"
        case "code":
            return f"<pre>{html.escape(block.text)}</pre>"
    return f"<p>{html.escape(block.text)}</p>"
