"""Alerting: from events to alerts, from alerts to messages, from messages to people.  For the holder of the monitor's lease.

Everything that it knows stands in rows, and each step is one transaction under the lease: whoever takes over goes on
where the last one stopped.  A message is claimed before it is sent.
"""

from __future__ import annotations

import importlib
import json
import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from ..errors import SettingsError
from ..events import NotificationFailed, NotificationSent, publish
from ..service import Service, internal_error
from ..store import alerts as rows
from ..store import deliveries, leases
from ..store.deliveries import Delivery
from ..store.rows import put_events
from . import messages, routing
from .channels import Channel, Channels, LogChannel, Sent, channels_of, refuse_unknown
from .judging import Judge
from .kinds import Alert
from .sender import Result, Senders
from .telling import Teller
from .watchdog import Watchdog

if TYPE_CHECKING:
    from ..settings import Settings
    from ..store import Store
    from ..store.leases import Lease

logger = logging.getLogger("dramatiq_chaperone.alerts")

#: After a failed attempt the next one, in seconds; then the fallback, or every ten minutes, for a day.
BACKOFF_S: Final = (5.0, 15.0, 45.0, 135.0)
RARELY_S: Final = 600.0
#: Channels are asked for what they took in so many seconds.
FLOOD_S: Final = 60.0
#: The health of deliveries is that of the last hour; it is looked at so often while there is a watchdog.
HEALTH_S: Final = 3600.0
HEALTH_EVERY_S: Final = 15.0
#: The answer of a server that did not take the message.
_REFUSED: Final = re.compile(r"error=[45]\d\d")


class Alerting:
    """One turn of it is a duty of the :class:`~dramatiq_chaperone.monitor.Monitor`.

    Parameters:
      holder: unique for this process and start.
      wake: has the next turn taken at once: a delivery is over.
      modules: those that have the user's rules and channels; imported when the lease is taken.
      clock: Unix seconds.
    """

    def __init__(
        self,
        settings: Settings,
        holder: str,
        *,
        wake: Callable[[], None] = lambda: None,
        modules: Sequence[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._holder, self._wake, self._clock = settings, holder, wake, clock
        self._judge = Judge(settings)
        self._loading = _Loading(settings, modules, wake)
        self._begun: _Begun | None = None

    def turn(self, store: Store, lease: Lease) -> None:
        """Do what is due.  Raises StoreError and LeaseLost."""
        if not self._settings.alerting_enabled:
            self._judge.judge(store, lease, self._clock())
            return
        if self._begun is None or self._begun.lease != lease:
            self.let_go()
            channels = self._loading.channels()
            if channels is None:
                return  # what happens meanwhile waits for the rules that are being imported
            self._begun = _Begun(self._settings, self._holder, lease, self._judge, channels, Senders(self._wake))
        self._begun.turn(store, self._clock())

    def let_go(self) -> None:
        """The lease is another's: what is on its way is his to send again."""
        begun, self._begun = self._begun, None
        if begun is not None:
            begun.stop()
            self._judge = Judge(self._settings)

    def finish(self, store: Store, *, timeout_s: float) -> None:
        """Before the lease is given up: wait for the answers to what is on its way.  Raises StoreError and LeaseLost."""
        if self._begun is None:
            return
        until = time.monotonic() + timeout_s
        while self._begun.senders.in_flight() and time.monotonic() < until:
            time.sleep(0.05)
        self._begun.collect(store, self._clock())


class _Loading(Service):
    """Imports what the rules and channels of users are in, and Apprise: that takes seconds, in which others have their turns."""

    name = "alerts"

    def __init__(self, settings: Settings, modules: Sequence[str], wake: Callable[[], None]) -> None:
        super().__init__(interval_s=60.0)
        self._settings, self._modules, self._woken = settings, modules, wake
        self._channels: Channels | None = None

    def channels(self) -> Channels | None:
        """All channels; None: they are being loaded."""
        if self._channels is None:
            self.start()
        return self._channels

    def run_once(self) -> None:
        """Load them, once."""
        self.stop()
        for module in self._modules:
            try:
                importlib.import_module(module)
            except BaseException as error:  # noqa: BLE001 - the others work on
                internal_error(f"alerts: import of {module}", error)
        try:
            channels = channels_of(self._settings, check=True)
        except Exception as error:  # noqa: BLE001 - the log is always there
            internal_error("alerts: channels", error)
            channels = Channels({"log": LogChannel()}, {}, {})
        for name, channel in channels.by_name.items():
            if channel.fallback and channel.fallback not in channels.by_name:
                logger.error("The fallback %s of the alert channel %s is not there.", channel.fallback, name)
        for name, problem in channels.wrong.items():
            logger.error("The alert channel %s is of no use: %s. The others work on.", name, problem)
        self._channels = channels
        self._woken()


class _Begun:
    """Alerting under one lease."""

    def __init__(self, settings: Settings, holder: str, lease: Lease, judge: Judge, channels: Channels, senders: Senders) -> None:
        self._settings, self.lease, self._channels, self.senders = settings, lease, channels, senders
        self.claimant = f"{holder}:{lease.epoch}"[:191]
        routes = routing.routes_of(settings, channels.default, channels.tags)
        for route in routes:
            try:
                refuse_unknown([*route.channels, *route.escalate_to], channels)
            except SettingsError as error:
                logger.error("The route %s of alerts: %s", route.name, error)
        self._judge = judge
        self._teller = Teller(settings, channels, routes)
        #: Channels that did not take the last message that they were given.
        self._down: set[str] = set()
        self._next_flush = self._next_health = 0.0
        url = settings.alerts.get("watchdog_url", "")
        self._watchdog = Watchdog(url) if url.startswith(("http://", "https://")) else None

    def turn(self, store: Store, now: float) -> None:
        """Collect, judge, tell, send."""
        self.collect(store, now)
        # Whatever is interrupted by an error on the way, nothing of it waits for the next event.
        due_at, self._next_flush = self._next_flush, 0.0
        if self._judge.turn(store, self.lease, now) or now >= due_at:
            due_at = leases.under(store, self.lease, lambda: self._teller.flush(store, now, self._judge.waits_for))
        self._next_flush = due_at
        self._send(store, now)
        if self._watchdog is not None and now >= self._next_health:
            self._next_health = now + HEALTH_EVERY_S
            if not deliveries.fail(deliveries.statistics(store, since=now - HEALTH_S, now=now)):
                self._watchdog.well()

    def stop(self) -> None:
        self.senders.stop()
        if self._watchdog is not None:
            self._watchdog.stop(timeout_s=0.1)

    def _send(self, store: Store, now: float) -> None:
        """Have the oldest message sent that is due on each channel, unless the channel has one."""
        for name in deliveries.channels_that_wait(store):
            channel = self._channels.by_name.get(name)
            if channel is not None and self.senders.is_busy(name) and not self.senders.hangs(name):
                continue
            delivery = deliveries.next_of(store, name, now)
            if delivery is None:
                continue
            if channel is None:
                self._misdirected(store, delivery, now)
            elif self.senders.hangs(name):
                self._fail(store, delivery, "the channel still hangs in a delivery before this one", now)
            else:
                self._give(store, channel, delivery, now)

    def _give(self, store: Store, channel: Channel, delivery: Delivery, now: float) -> None:
        """Have one sent that is due, unless its channel has had enough of what is not critical."""
        told = {row["id"]: Alert(**row) for row in rows.by_ids(store, [key for key, _ in delivery.alerts])}
        alerts = [(told[key], status) for key, status in delivery.alerts if key in told]
        if self._is_flooded(store, channel, alerts, now):
            leases.under(store, self.lease, lambda: deliveries.flood(store, delivery, now))
            return
        flooded = deliveries.flooded(store, channel.name, now)
        more: dict[str, Any] = {"notice": delivery.notice, "may_repeat": delivery.may_repeat, "flooded": flooded}
        try:
            message = messages.make(alerts, self._settings, now=now, **more)
        except Exception as error:  # noqa: BLE001 - of this message alone
            internal_error("alerts", error)
            self._fail(store, delivery, f"it cannot be written: {type(error).__name__}", now)
            return
        if leases.under(store, self.lease, lambda: deliveries.claim(store, delivery.id, self.claimant, now)):
            self.senders.send(channel, delivery, message)

    @staticmethod
    def _is_flooded(store: Store, channel: Channel, alerts: Sequence[tuple[Alert, str]], now: float) -> bool:
        """Never what is critical, the end of something, or an incident."""
        if not channel.limit or channel.is_on_call or any(alert.severity == "critical" or status != "firing" for alert, status in alerts):
            return False
        return deliveries.sent_since(store, channel.name, now - FLOOD_S) >= channel.limit

    def _fail(self, store: Store, delivery: Delivery, error: str, now: float) -> None:
        """It was not even tried."""

        def fail() -> None:
            if deliveries.claim(store, delivery.id, self.claimant, now):
                self._over(store, Result(delivery, Sent(False, error), 0.0), now)

        leases.under(store, self.lease, fail)

    def _misdirected(self, store: Store, delivery: Delivery, now: float) -> None:
        """Its channel is not in the settings any more: the log has it."""

        def move() -> None:
            deliveries.claim(store, delivery.id, self.claimant, now)
            deliveries.finish(store, delivery, "failed", now, seconds=0.0, error="there is no such channel any more")
            deliveries.add(store, "log", delivery.alerts, now, route=delivery.route, notice=delivery.notice)

        leases.under(store, self.lease, move)

    def collect(self, store: Store, now: float) -> None:
        """Keep what came of deliveries since the last call; what was claimed and is not on its way waits again."""
        self.senders.look()
        while self.senders.results:
            result = self.senders.results[0]
            leases.under(store, self.lease, lambda result=result: self._over(store, result, now))  # type: ignore[misc]
            self.senders.results.popleft()
        lost = [key for key in deliveries.sending(store) if not self.senders.has(key)]
        if lost:
            leases.under(store, self.lease, lambda: deliveries.give_back(store, lost, now))
            logger.warning("%d messages of alerts were on their way when their sender ended: they are sent again.", len(lost))

    def _over(self, store: Store, result: Result, now: float) -> None:
        """Keep what came of a delivery, and what follows.  For the inside of a transaction."""
        delivery, sent = result.delivery, result.sent
        if sent.is_sent:
            self._down.discard(delivery.channel)
            if not deliveries.finish(store, delivery, "sent", now, seconds=result.took_s, title=sent.title):
                deliveries.drop_waiting(store, delivery.message, delivery.channel)  # it was given up, and has arrived
            rows.told(store, [key for key, status in delivery.alerts if status == "firing"], now)
        elif deliveries.finish(store, delivery, "failed", now, seconds=result.took_s, error=sent.error, title=sent.title):
            logger.warning("An alert did not reach %s (attempt %d): %s", delivery.channel, delivery.attempt, sent.error)
            self._again(store, result, now)
        else:
            return
        about: dict[str, Any] = {"channel": delivery.channel, "notification": sent.title, "data": {"alerts": len(delivery.alerts)}}
        event = NotificationSent(**about) if sent.is_sent else NotificationFailed(**about, error=sent.error)
        put_events(store, [[now, type(event).__name__, None, None, None, json.dumps(asdict(event))]])
        publish(event)

    def _again(self, store: Store, result: Result, now: float) -> None:
        delivery, sent = result.delivery, result.sent
        channel = self._channels.by_name.get(delivery.channel)
        fallback = channel.fallback if channel is not None and channel.fallback in self._channels.by_name else ""
        is_last = sent.is_misconfigured or delivery.attempt > len(BACKOFF_S) or delivery.channel in self._down
        is_refused = sent.is_misconfigured or _REFUSED.search(sent.error) is not None
        is_hopeless = sent.is_misconfigured or now - delivery.created_at > deliveries.LIFE_S
        if is_last:
            self._down.add(delivery.channel)  # what comes after it need not wait as long for the fallback
        if (is_last and fallback) or is_hopeless:
            more: dict[str, Any] = {"route": delivery.route, "notice": delivery.notice, "may_repeat": delivery.may_repeat or not is_refused}
            deliveries.add(store, fallback or "log", delivery.alerts, now, **more)
            return
        wait_s = BACKOFF_S[delivery.attempt - 1] if delivery.attempt <= len(BACKOFF_S) else RARELY_S
        deliveries.add(
            store,
            delivery.channel,
            delivery.alerts,
            delivery.created_at,
            route=delivery.route,
            notice=delivery.notice,
            message=delivery.message,
            attempt=delivery.attempt + 1,
            next_at=now + wait_s,
            may_repeat=delivery.may_repeat or not is_refused,
        )
