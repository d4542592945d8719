"""Channels: where messages go.  Apprise is at home here, and imported when the first message is sent.

A channel with several addresses is several: ``ops``, ``ops-2``; so each delivery has one result.
"""

from __future__ import annotations

import inspect
import logging
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol
from urllib.parse import quote, unquote, urlencode, urlsplit

from ..errors import SettingsError
from ..settings import mask_url
from .messages import Message

if TYPE_CHECKING:
    from ..settings import Settings

logger = logging.getLogger("dramatiq_chaperone.alerts")

#: A delivery may take so long, in seconds.
DELIVERY_S: Final = 30.0
#: Messages that a channel takes in a minute before it is a flood.
FLOOD_LIMIT: Final = 20
#: Services that want one incident an alert, with its key, and hear of its end.
_ON_CALL: Final = frozenset({"pagerduty", "opsgenie"})
_PLAIN_TITLES: Final = frozenset({"mailto", "mailtos", "pagerduty", "opsgenie", "json", "jsons", "xml", "xmls", "form", "forms"})
_TYPES: Final = {"critical": "failure", "error": "failure", "warning": "warning", "info": "info", "resolved": "success"}
_PAGERDUTY: Final = {"critical": "critical", "error": "error", "warning": "warning", "info": "info"}
_OPSGENIE: Final = {"critical": "1", "error": "2", "warning": "3", "info": "5"}


class Sent(NamedTuple):
    """What came of a delivery; *error* says what went wrong, without a secret."""

    is_sent: bool
    error: str = ""
    title: str = ""
    #: It goes nowhere, now and later: an address that no service knows.
    is_misconfigured: bool = False


class Channel(Protocol):
    """Where messages go."""

    name: str
    #: One message for each alert, not for a group of them.
    is_on_call: bool
    fallback: str
    #: Messages in a minute; 0: any number.
    limit: int
    sends_resolved: bool

    def send(self, message: Message) -> Sent:
        """Deliver *message*; may take its time.  What it raises is a failure."""


class AppriseChannel:
    """One Apprise URL."""

    def __init__(
        self, name: str, url: str, *, storage: Path | None = None, fallback: str = "", limit: int = FLOOD_LIMIT, sends_resolved: bool = True
    ) -> None:
        self.name, self.fallback, self.limit, self.sends_resolved = name, fallback, limit, sends_resolved
        self._url, self._storage = url, storage
        self._scheme = url.partition("://")[0].lower()
        self.is_on_call = self._scheme in _ON_CALL

    @property
    def shown(self) -> str:
        """The address without its secrets."""
        return f"{self._scheme}://***" if "://" in self._url else "***"

    def check(self) -> str | None:
        """What is wrong with the address; None: nothing that can be seen without sending."""
        return None if self._plugin(self._url) is not None else f"{self.shown} is no address that Apprise knows"

    def send(self, message: Message) -> Sent:
        """Deliver it through Apprise."""
        plugin = self._plugin(self._addressed(message))
        if plugin is None:
            return Sent(False, f"{self.shown} is no address that Apprise knows", is_misconfigured=True)
        title = message.title if self._scheme in _PLAIN_TITLES else f"{message.emoji} {message.title}".strip()
        format_ = plugin.notify_format[0] if isinstance(plugin.notify_format, tuple | list) else plugin.notify_format
        format_ = str(getattr(format_, "value", format_))
        limit = int(plugin.body_maxlen) - (0 if plugin.title_maxlen else len(title) + 2)
        apprise = _apprise()
        sender = apprise.Apprise(asset=plugin.asset)
        sender.add(plugin)
        result = sender.notify(
            body=message.text(format_, limit), title=title, notify_type=_TYPES.get(message.severity, "failure"), body_format=format_,
            timeout=DELIVERY_S,
        )  # fmt: skip
        if result:
            return Sent(True, title=title)
        if result.status == apprise.AppriseResultStatus.NOMATCH:
            return Sent(False, f"{self.shown}: no service takes it", title, is_misconfigured=True)
        said = [str(getattr(entry, "message", entry)) for each in result.results for entry in each.logs()]
        return Sent(False, self._masked(said[-1] if said else str(getattr(result.status, "name", "FAILURE")).lower()), title)

    def _addressed(self, message: Message) -> str:
        """On call: the incident of this alert, its severity and its details."""
        if not self.is_on_call or not message.dedup:
            return self._url
        options = {"action": "map"}
        if self._scheme == "pagerduty":
            options |= {"dedup": message.dedup, "severity": _PAGERDUTY.get(message.severity, "error"), "image": "no"}
            options |= {"click": message.url} if message.url else {}
        else:
            options |= {"alias": message.dedup, "priority": _OPSGENIE.get(message.severity, "3"), "tags": "chaperone,queue-jobs"}
        given = [*options.items(), *((f"+{name}", value) for name, value in message.details)]
        return f"{self._url}{'&' if '?' in self._url else '?'}{urlencode(given, quote_via=quote)}"

    def _plugin(self, url: str) -> Any:
        apprise = _apprise()
        _guard_log(secrets_of(self._url))
        asset = apprise.AppriseAsset(async_mode=False, app_id="Chaperone", app_desc="Chaperone Job Supervision", service_timeout=DELIVERY_S)
        if self._storage is not None and self._scheme == "opsgenie":  # it closes by ids that it was given
            asset = apprise.AppriseAsset(
                async_mode=False, app_id="Chaperone", app_desc="Chaperone Job Supervision", service_timeout=DELIVERY_S,
                storage_path=str(self._storage), storage_mode="auto",
            )  # fmt: skip
        return apprise.Apprise.instantiate(url, asset=asset, suppress_exceptions=True)

    def _masked(self, text: str) -> str:
        return masked(text, secrets_of(self._url))[:500]


def _apprise() -> Any:
    """Apprise, with its services loaded.  Some of them import what Python has deprecated: whoever made warnings errors is not hit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import apprise

        apprise.Apprise.instantiate("json://localhost")
    return apprise


class LogChannel:
    """A line in the log."""

    is_on_call = False
    fallback = ""
    limit = 0
    sends_resolved = True
    name = "log"

    def send(self, message: Message) -> Sent:
        """Log it: what fires as an error or a warning, what is over as information."""
        level = {"resolved": logging.INFO, "info": logging.INFO, "warning": logging.WARNING}.get(message.severity, logging.ERROR)
        logger.log(level, "%s\n%s", message.title, message.text("text"))
        return Sent(True, title=message.title)


class DatabaseChannel:
    """Nothing but the row in the store, which is there anyway."""

    is_on_call = False
    fallback = ""
    limit = 0
    sends_resolved = True
    name = "database"

    def send(self, message: Message) -> Sent:
        """It is on record."""
        return Sent(True, title=message.title)


class CallableChannel:
    """A function of the user's, which gets the :class:`~.messages.Message`.  None or anything true: it was sent."""

    is_on_call = False
    sends_resolved = True

    def __init__(self, name: str, function: Callable[[Message], Any], *, fallback: str = "", limit: int = FLOOD_LIMIT) -> None:
        self.name, self._function, self.fallback, self.limit = name, function, fallback, limit

    def send(self, message: Message) -> Sent:
        """Call it; a coroutine is run to its end."""
        given = self._function(message)
        if inspect.isawaitable(given):
            import asyncio

            async def wait() -> Any:
                return await given

            given = asyncio.run(wait())
        return Sent(given is None or bool(given), "" if given is None or given else f"{self.name} gave {given!r:.100}", message.title)


#: Functions that were registered as channels, by name.
_registered: dict[str, Callable[[Message], Any]] = {}


def alert_channel(name: str) -> Callable[[Callable[[Message], Any]], Callable[[Message], Any]]:
    """Make a function a channel: ``@alert_channel("pager")`` gets each :class:`~.messages.Message` that is routed there.

    It runs in the process that sends alerts, which imports the function's module for it; a coroutine function will do.
    Give a false value, or raise, where the message could not be delivered: it is tried again.
    """

    def register(function: Callable[[Message], Any]) -> Callable[[Message], Any]:
        _registered[name] = function
        return function

    return register


def channel_modules() -> list[str]:
    """The modules that a process has to import to have the registered channels."""
    return sorted({function.__module__ for function in _registered.values()})


class Channels(NamedTuple):
    """All channels of the settings.

    Attributes:
      wrong: the name of each that is of no use to what is wrong with it; the others work.
      tags: tag to the names of channels.
    """

    by_name: Mapping[str, Channel]
    tags: Mapping[str, Sequence[str]]
    wrong: Mapping[str, str]

    @property
    def default(self) -> list[str]:
        """Where an alert goes that no route says anything of."""
        return [name for name in self.by_name if name not in {"log", "database"}] or ["log"]

    def expanded(self, names: Sequence[str]) -> list[str]:
        """The channels that *names* mean: one with several addresses is several."""
        return [
            each
            for name in names
            for each in self.by_name
            if each == name or (each.rpartition("-")[0] == name and each in self.tags.get(name, ()))
        ]


def channels_of(settings: Settings, *, check: bool = False) -> Channels:
    """The channels of the settings, and those that were registered.

    Parameters:
      check: look at every address now; it loads Apprise.
    """
    found: dict[str, Channel] = {}
    tags: dict[str, list[str]] = {}
    wrong: dict[str, str] = {}
    storage = settings.state_dir / "apprise"

    def add(name: str, urls: Sequence[str], **more: Any) -> None:
        for number, url in enumerate(urls, 1):
            others = (f"{name}-{other}" for other in range(max(2, number), len(found) + len(urls) + 3))
            each = name if number == 1 and name not in found else next(it for it in others if it not in found)
            channel = AppriseChannel(each, url, storage=storage, **more)
            problem = channel.check() if check else None if "://" in url else f"{each}: there is no scheme:// in its address"
            if problem is not None:
                wrong[each] = problem
            else:
                found[each] = channel
                tags.setdefault(name, []).append(each)

    for name, table in settings.alerts.get("channels", {}).items():
        more = {"fallback": table.get("fallback", ""), "limit": int(table.get("limit", FLOOD_LIMIT))}
        add(name, table.get("urls", ()), sends_resolved=table.get("send_resolved", True), **more)
        if name in _registered:
            found[name] = CallableChannel(name, _registered[name], **more)
        for tag in table.get("tags", ()):
            tags.setdefault(tag, []).extend(each for each in tags.get(name, [name]) if each in found)
    named = _named(settings)
    for name, url in named.items():
        if name not in found:
            add(name, [url], fallback="mail" if name == "slack" and "mail" in named else "")
    for url in settings.alert_urls:
        add({"mailto": "mail", "mailtos": "mail"}.get(scheme := url.partition("://")[0].lower(), scheme or "address"), [url])
    for name, function in _registered.items():
        found.setdefault(name, CallableChannel(name, function))
    if settings.alert_channels:
        chosen = {each for name in settings.alert_channels for each in (name, *tags.get(name, ()))}
        found = {name: channel for name, channel in found.items() if name in chosen}
    for builtin in (LogChannel(), DatabaseChannel()):
        found.setdefault(builtin.name, builtin)
    return Channels(found, tags, wrong)


def _named(settings: Settings) -> dict[str, str]:
    """The specification's own settings, as Apprise URLs."""
    urls = {}
    if settings.slack_webhook_url:
        urls["slack"] = settings.slack_webhook_url
    if settings.discord_webhook_url:
        urls["discord"] = settings.discord_webhook_url
    if settings.pagerduty_routing_key:
        urls["pagerduty"] = f"pagerduty://{quote(settings.pagerduty_routing_key, safe='')}@chaperone/chaperone/queue-jobs"
    if settings.opsgenie_api_key:
        urls["opsgenie"] = f"opsgenie://{quote(settings.opsgenie_api_key, safe='')}"
    if settings.alert_recipients and settings.mail_host:
        urls["mail"] = mail_url(settings)
    return urls


def mail_url(settings: Settings) -> str:
    """The settings of e-mail as an Apprise URL."""
    host = settings.mail_host or ""
    is_name = re.fullmatch(r"[\w-]+(\.[\w-]+)*\.[a-zA-Z]{2,}", host) is not None
    sender = settings.mail_from_address or (f"alerts@{host}" if is_name else settings.alert_recipients[0])
    login = ""
    if settings.mail_username:
        login = (
            quote(settings.mail_username, safe="") + (f":{quote(settings.mail_password, safe='')}" if settings.mail_password else "") + "@"
        )
    mode = {"tls": "starttls", "ssl": "ssl", "none": "insecure"}[settings.mail_encryption]
    query = {"smtp": host, "from": sender, "name": settings.mail_from_name, "to": ",".join(settings.alert_recipients), "mode": mode}
    scheme = "mailto" if mode == "insecure" else "mailtos"
    return f"{scheme}://{login}{host}:{settings.mail_port}/?{urlencode(query, quote_via=quote)}"


def refuse_unknown(names: Sequence[str], channels: Channels) -> None:
    """Raise SettingsError where a route names a channel that is not there, and is not of no use either."""
    known = {*channels.by_name, *channels.tags, *channels.wrong}
    for name in names:
        if name not in known:
            message = f"There is no channel {name!r}; there are {', '.join(sorted(known))}"
            raise SettingsError(message, field="alerts.routes", value=name, origin="alerts")


def secrets_of(url: str) -> tuple[str, ...]:
    """The parts of *url* that nobody may read: all but its scheme, and short words."""
    parts = urlsplit(url)
    words = [*re.split(r"[/?&=#]", f"{parts.path}/{parts.query}"), *(parts.netloc.replace(":", "@").split("@"))]
    local = {"localhost", "127.0.0.1"}
    return tuple(
        sorted({each for word in words for each in (word, unquote(word)) if len(each) >= 6 and each not in local}, key=len, reverse=True)
    )


def masked(text: str, secrets: Sequence[str]) -> str:
    """*text* without what is secret."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return mask_url(re.sub(r"\b([a-z][\w+.-]*)://[^\s'\"]+", r"\1://***", text))


class _Masking(logging.Filter):
    """Apprise logs addresses as they are, and what is below it their paths."""

    def __init__(self) -> None:
        super().__init__()
        self.secrets: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record; it is passed on."""
        record.msg, record.args = masked(record.getMessage(), sorted(self.secrets, key=len, reverse=True)), ()
        return True


_masking: Final = _Masking()


def _guard_log(secrets: Sequence[str]) -> None:
    _masking.secrets.update(secrets)
    for name in ("apprise", "urllib3.connectionpool", "requests"):
        log = logging.getLogger(name)
        if _masking not in log.filters:
            log.addFilter(_masking)
