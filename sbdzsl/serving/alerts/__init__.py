"""Alerts: what an answer sends to people and machines, at least once, without ever slowing inspection.

An `Alert` is put into the `Outbox`, a file on disk, before the answer leaves. The `Dispatcher` takes it from there to
each sink, one thread a sink, for as long as it takes; what a sink did not take in the stated time stands in its
dead-letter file.
"""

from sbdzsl.serving.alerts.alert import Alert, make_alert
from sbdzsl.serving.alerts.dispatcher import Dispatcher, SinkStatistics
from sbdzsl.serving.alerts.outbox import Outbox
from sbdzsl.serving.alerts.settings import AlertSettings

__all__ = ["Alert", "AlertSettings", "Dispatcher", "Outbox", "SinkStatistics", "make_alert"]
