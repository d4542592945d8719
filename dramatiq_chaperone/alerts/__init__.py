"""Alerts: the few events that need somebody become one message on the right channel, and one when it is over.

``@alert_rule`` adds a rule, ``@alert_channel`` a channel; all else stands in the settings, see docs/alerting.md.
"""

from __future__ import annotations

from .channels import alert_channel
from .kinds import Finding, Over
from .messages import Message
from .rules import alert_rule

__all__ = ["Finding", "Message", "Over", "alert_channel", "alert_rule"]
