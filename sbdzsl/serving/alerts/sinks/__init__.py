"""The sinks: one module a kind, all behind `Sink`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from sbdzsl.serving.alerts.alert import Alert
from sbdzsl.serving.alerts.settings import AnySink, FileSettings, MqttSettings, WebhookSettings


class Sink(Protocol):
    """Takes alerts to one receiver. Used by one thread, which may block in it for as long as its time-outs say.

    A constructor reads secrets and finds packages, and raises `ConfigError`; it connects to nothing.
    """

    def open(self) -> None:
        """Connect, as far as that is needed before the first alert. Raises `AlertError`, and may be called again."""

    def deliver(self, alert: Alert) -> bool:
        """True once the receiver has the alert; False where it has been offered and the receipt will follow.

        Raises `AlertError`: sink-unreachable where another attempt may succeed, alert-refused where it is this alert
        that the receiver does not take, sink-gone where the receiver wants no more of them.
        """

    def close(self) -> None:
        """Part from the receiver in good order."""


class History(Protocol):
    """What a sink may ask of the outbox: the last so many alerts that it has delivered, oldest first."""

    def __call__(self, count: int) -> list[Alert]: ...  # noqa: D102


#: Tells the dispatcher that an alert of this id was received; False if none waited. It may block.
Receipt = Callable[[str], bool]


def make_sink(settings: AnySink, history: History, receipt: Receipt) -> Sink:
    """The sink of some settings. Raises `ConfigError`: a secret that is not there, a package that is not installed."""
    if isinstance(settings, FileSettings):
        from sbdzsl.serving.alerts.sinks.file import FileSink

        return FileSink(settings)
    if isinstance(settings, WebhookSettings):
        from sbdzsl.serving.alerts.sinks.webhook import WebhookSink

        return WebhookSink(settings)
    if isinstance(settings, MqttSettings):
        from sbdzsl.serving.alerts.sinks.mqtt import MqttSink

        return MqttSink(settings)
    from sbdzsl.serving.alerts.sinks.opcua import OpcUaSink

    return OpcUaSink(settings, history, receipt)
