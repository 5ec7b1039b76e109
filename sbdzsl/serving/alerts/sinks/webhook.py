"""Alerts by HTTP POST after Standard Webhooks 1.0: signed, and accepted by any answer of 2xx."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ssl
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

import httpx2

from sbdzsl.errors import AlertError, ConfigError
from sbdzsl.serving.alerts.alert import Alert
from sbdzsl.serving.alerts.settings import SecretSource, WebhookSettings

_PREFIX = "whsec_"
_KEY_BYTES = (24, 64)

#: Answers that speak of the content of this one alert. All others of 4xx speak of address or key, and so of all alerts.
_REFUSALS = frozenset({400, 413, 415, 422})
_MOST_OF_AN_ANSWER = 200


class WebhookSink:
    """POSTs alerts to one URL. See `Sink`."""

    def __init__(self, settings: WebhookSettings) -> None:
        self._url = settings.url
        self._keys = [_key(source) for source in settings.secrets]
        try:
            trust = ssl.create_default_context(cafile=settings.ca_file)
        except OSError as error:
            raise ConfigError("bad-config", f"ca_file {settings.ca_file} cannot be used: {error}") from None
        # A redirect would carry the alert to somewhere that nobody configured.
        self._client = httpx2.Client(timeout=settings.timeout_s, verify=trust, follow_redirects=False)

    def open(self) -> None:
        """Each alert connects where no connection is left over."""

    def deliver(self, alert: Alert) -> bool:
        """See `Sink.deliver`."""
        body, seconds = alert.to_json(), int(time.time())
        headers = {
            "content-type": "application/json",
            "user-agent": "sbdzsl",
            "webhook-id": alert.id,
            "webhook-timestamp": str(seconds),
            "webhook-signature": sign(self._keys, alert.id, seconds, body),
        }
        try:
            # Of a long answer no more is read than a message shows.
            with self._client.stream("POST", self._url, content=body, headers=headers) as answer:
                said = "" if answer.is_success else _beginning(answer)
        except (httpx2.HTTPError, httpx2.StreamError, OSError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise AlertError("sink-unreachable", f"POST {self._url}: {reason}") from error
        if not answer.is_success:
            raise _failure(self._url, answer, said)
        return True

    def close(self) -> None:
        """Close connections that are kept for the next alert."""
        self._client.close()


def sign(keys: Sequence[bytes], message_id: str, seconds: int, body: bytes) -> str:
    """The `webhook-signature` header: one `v1,` and base64 for each key, separated by spaces."""
    content = b".".join((message_id.encode(), str(seconds).encode(), body))
    digests = (hmac.new(key, content, hashlib.sha256).digest() for key in keys)
    return " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)


def _key(source: SecretSource) -> bytes:
    try:
        secret = source.read()
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True) if secret.startswith(_PREFIX) else b""
    except binascii.Error:
        key = b""
    if not _KEY_BYTES[0] <= len(key) <= _KEY_BYTES[1]:
        place = f"environment variable {source.env}" if source.env else f"file {source.file}"
        raise ConfigError(
            "bad-config",
            f"{place}: expected {_PREFIX} and the base64 of {_KEY_BYTES[0]} to {_KEY_BYTES[1]} random bytes, as "
            f"`echo {_PREFIX}$(openssl rand -base64 32)` makes them",
        )
    return key


def _beginning(answer: httpx2.Response) -> str:
    chunk = next(answer.iter_raw(_MOST_OF_AN_ANSWER), b"")
    return chunk[:_MOST_OF_AN_ANSWER].decode("utf-8", "replace").strip()


def _failure(url: str, answer: httpx2.Response, said: str) -> AlertError:
    message = f"POST {url}: found status {answer.status_code} {said!r}, expected 2xx"
    if answer.status_code == 410:
        return AlertError("sink-gone", f"{message}: the receiver wants no more alerts; change the URL or take it out")
    if answer.status_code in _REFUSALS:
        return AlertError("alert-refused", message)
    return AlertError("sink-unreachable", message, _retry_after_s(answer.headers.get("retry-after")))


def _retry_after_s(header: str | None) -> float | None:
    """The seconds of a `Retry-After`, which is a number of them or a date; None where it is neither."""
    if header is None:
        return None
    if header.strip().isdecimal():
        return float(header)
    try:
        moment = parsedate_to_datetime(header)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return max(0.0, (moment - datetime.now(timezone.utc)).total_seconds())
