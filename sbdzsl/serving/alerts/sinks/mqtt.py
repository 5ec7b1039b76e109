"""Alerts over MQTT at QoS 1: delivered when the broker has acknowledged them."""

from __future__ import annotations

import contextlib
import re
import ssl
import threading
import time
from typing import Any

from sbdzsl.errors import AlertError, ConfigError
from sbdzsl.runtime import require
from sbdzsl.serving.alerts.alert import Alert
from sbdzsl.serving.alerts.settings import MqttSettings

_QOS = 1


class MqttSink:
    """Publishes each alert below the topic and keeps a connection, so that the last will says when it is gone.

    `{topic}/{camera}/{surface}/alert` carries alerts, `{topic}/{camera}/last` the latest of a camera, retained, and
    `{topic}/{client_id}/status` the word online or offline, retained. See `Sink`.
    """

    def __init__(self, settings: MqttSettings) -> None:
        self._mqtt = require("paho.mqtt.client")
        self._settings = settings
        self._password = settings.password.read() if settings.password else None
        self._tls = _tls(settings) if settings.tls else None
        self._port = settings.port or (8883 if settings.tls else 1883)
        self._status = f"{settings.topic}/{settings.client_id}/status"
        self._connection: _Connection | None = None
        self._newest: dict[str, float] = {}

    def open(self) -> None:
        """Connect and say online. Raises `AlertError` sink-unreachable."""
        if self._connection is None:
            self._connection = self._connect()

    def deliver(self, alert: Alert) -> bool:
        """See `Sink.deliver`."""
        self.open()
        assert self._connection is not None
        body, camera = alert.to_json(), level(alert.document.get("camera") or "unknown")
        surface = level(alert.document.get("surface") or _without_surface(alert.document["verdict"]))
        created = alert.created_at.timestamp()
        try:
            self._connection.publish(f"{self._settings.topic}/{camera}/{surface}/alert", body)
            # An alert that had to wait must not replace a later one.
            if created >= self._newest.get(camera, 0.0):
                self._connection.publish(f"{self._settings.topic}/{camera}/last", body, retain=True)
                self._newest[camera] = created
        except AlertError:
            # What the client may still hold of it would be sent twice.
            self._drop()
            raise
        return True

    def close(self) -> None:
        """Say offline and disconnect: the last will is for those who cannot say so themselves."""
        if self._connection is not None:
            # Where the connection is lost, the broker has said so by the last will.
            if self._connection.is_up():
                with contextlib.suppress(AlertError):
                    self._connection.publish(self._status, b"offline", retain=True)
            self._drop()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connect(self) -> _Connection:
        settings = self._settings
        client = self._mqtt.Client(
            self._mqtt.CallbackAPIVersion.VERSION2,
            client_id=settings.client_id,
            protocol=self._mqtt.MQTTv5 if settings.protocol == "5" else self._mqtt.MQTTv311,
        )
        if settings.username is not None:
            client.username_pw_set(settings.username, self._password)
        if self._tls is not None:
            client.tls_set_context(self._tls)
        client.will_set(self._status, b"offline", qos=_QOS, retain=True)
        client.connect_timeout = settings.timeout_s
        return _Connection(client, settings, self._port, self._status)


class _Connection:
    """One client with its network thread. The client connects again by itself until it is closed."""

    def __init__(self, client: Any, settings: MqttSettings, port: int, status: str) -> None:
        self._client, self._status = client, status
        self._place, self._timeout_s = f"{settings.host}:{port}", settings.timeout_s
        self._changed = threading.Condition()
        self._greeting: Any = None
        self._receipts: dict[int, Any] = {}
        client.on_connect, client.on_publish = self._on_connect, self._on_publish
        client.reconnect_delay_set(min_delay=1, max_delay=30)
        try:
            client.connect(settings.host, port, keepalive=settings.keepalive_s)
        except (OSError, ValueError) as error:
            raise AlertError("sink-unreachable", f"MQTT broker {self._place}: {error}") from error
        client.loop_start()
        greeting = self._wait(lambda: self._greeting)
        if greeting is None or greeting.is_failure:
            self.close()
            found = "no answer" if greeting is None else f"connection refused: {greeting}"
            raise AlertError("sink-unreachable", f"MQTT broker {self._place}: {found}")

    def publish(self, topic: str, body: bytes, retain: bool = False) -> None:
        """Publish and wait for the broker's acknowledgement. Raises `AlertError`."""
        with self._changed:
            self._receipts.clear()  # numbers of messages come again: what is left must not be taken for this one's
        message = self._client.publish(topic, body, qos=_QOS, retain=retain)
        receipt = self._wait(lambda: self._receipts.pop(message.mid, None))
        if receipt is None:
            raise AlertError(
                "sink-unreachable", f"MQTT broker {self._place}: no acknowledgement of {topic} in {self._timeout_s:g} s"
            )
        if receipt.is_failure:
            # Mostly an access list of the broker, and then it is so for all alerts of this topic.
            raise AlertError("sink-unreachable", f"MQTT broker {self._place} refused {topic}: {receipt}")

    def is_up(self) -> bool:
        """Whether there is a connection to the broker now."""
        return bool(self._client.is_connected())

    def close(self) -> None:
        """Disconnect and end the network thread."""
        self._client.disconnect()
        self._client.loop_stop()

    def _wait(self, found: Any) -> Any:
        until = time.monotonic() + self._timeout_s
        with self._changed:
            while (answer := found()) is None and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)
            return answer

    def _on_connect(self, client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if not reason.is_failure:
            client.publish(self._status, b"online", qos=_QOS, retain=True)
        with self._changed:
            self._greeting = reason
            self._changed.notify_all()

    def _on_publish(self, _client: Any, _data: Any, message_id: int, reason: Any, _properties: Any) -> None:
        with self._changed:
            self._receipts[message_id] = reason
            self._changed.notify_all()


def level(name: str) -> str:
    """A name as one level of a topic: what would be another level or a wildcard becomes an underscore."""
    return re.sub(r"[/+#\x00-\x1f\x7f]", "_", name).encode("utf-8", "replace").decode()


def _without_surface(verdict: str) -> str:
    return "unseen" if verdict == "unseen" else "unknown"


def _tls(settings: MqttSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
        if settings.certificate is not None:
            context.load_cert_chain(settings.certificate, settings.private_key)
    except OSError as error:
        files = (settings.ca_file, settings.certificate, settings.private_key)
        named = ", ".join(file for file in files if file)
        raise ConfigError("bad-config", f"MQTT: {named} cannot be used for TLS: {error}") from None
    return context
