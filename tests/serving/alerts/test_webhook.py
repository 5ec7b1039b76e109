"""The webhook sink against a real HTTP server that fails in all the ways servers do."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from alert_lab import WEBHOOK_SECRET, Receiver, dispatching, draw_answer, until
from serving_process import free_port

from sbdzsl.errors import AlertError, ConfigError
from sbdzsl.serving.alerts import AlertSettings, make_alert
from sbdzsl.serving.alerts.settings import RetrySettings, SecretSource, WebhookSettings
from sbdzsl.serving.alerts.sinks.webhook import WebhookSink, sign

ALERT = make_alert(draw_answer(1))


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_KEY", WEBHOOK_SECRET)
    monkeypatch.setenv("HOOK_KEY_NEW", "whsec_" + base64.b64encode(b"n" * 32).decode())


def settings(url: str, *names: str, **more: Any) -> WebhookSettings:
    secrets = tuple(SecretSource(env=name) for name in names or ("HOOK_KEY",))
    return WebhookSettings(url=url, secrets=secrets, timeout_s=0.5, **more)


def test_the_signature_is_that_of_the_specifications_example() -> None:
    key = base64.b64decode(WEBHOOK_SECRET.removeprefix("whsec_"))
    signature = sign([key], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_what_arrives_is_signed_by_every_key(receiver: Receiver) -> None:
    sink = WebhookSink(settings(receiver.url, "HOOK_KEY", "HOOK_KEY_NEW"))
    assert sink.deliver(ALERT)
    sink.close()
    ((headers, body),) = receiver.accepted
    assert json.loads(body) == ALERT.document
    assert headers["webhook-id"] == ALERT.id
    assert headers["content-type"] == "application/json"
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 5
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    keys = (base64.b64decode(WEBHOOK_SECRET.removeprefix("whsec_")), b"n" * 32)
    expected = [b"v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()) for key in keys]
    assert headers["webhook-signature"].encode().split(b" ") == expected


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        *((status, "sink-unreachable") for status in (302, 401, 403, 404, 408, 409, 429, 500, 502, 503)),
        *((status, "alert-refused") for status in (400, 413, 415, 422)),
        (410, "sink-gone"),
        ("reset", "sink-unreachable"),
        ("slow", "sink-unreachable"),
    ],
)
def test_a_failure_says_what_it_means(receiver: Receiver, fault: Any, code: str) -> None:
    receiver.faults.append(fault)
    sink = WebhookSink(settings(receiver.url))
    with pytest.raises(AlertError, match="POST http://127") as error:
        sink.deliver(ALERT)
    assert error.value.code == code
    assert sink.deliver(ALERT)
    sink.close()


def test_nobody_there_is_an_outage() -> None:
    sink = WebhookSink(settings(f"http://127.0.0.1:{free_port()}/hook"))
    with pytest.raises(AlertError, match="ConnectError") as error:
        sink.deliver(ALERT)
    assert error.value.code == "sink-unreachable"
    sink.close()


def in_minutes(minutes: int) -> str:
    return format_datetime(datetime.now(timezone.utc) + timedelta(minutes=minutes), usegmt=True)


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [(lambda: "7", 7, 7), (lambda: in_minutes(10), 500, 601), (lambda: in_minutes(-10), 0, 0)],
)
def test_retry_after_is_read(receiver: Receiver, header: Any, least: float, most: float) -> None:
    assert least <= asked_for(receiver, header()) <= most


def test_a_retry_after_that_says_nothing_is_none(receiver: Receiver) -> None:
    assert asked_for(receiver, "soon") is None


def asked_for(receiver: Receiver, header: str) -> Any:
    receiver.faults.append((429, header))
    sink = WebhookSink(settings(receiver.url))
    with pytest.raises(AlertError) as error:
        sink.deliver(ALERT)
    sink.close()
    return error.value.retry_after_s


@pytest.mark.parametrize("secret", ["", "hunter2", "whsec_", "whsec_c2hvcnQ=", "whsec_%%%", "whsec_" + "A" * 200])
def test_a_key_that_is_none_is_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    monkeypatch.setenv("HOOK_KEY", secret)
    with pytest.raises(ConfigError, match="environment variable HOOK_KEY") as error:
        WebhookSink(settings("http://127.0.0.1/hook"))
    assert not secret or secret == "whsec_" or secret not in str(error.value)


def test_through_every_kind_of_outage_each_alert_arrives(tmp_path: Path, receiver: Receiver) -> None:
    retry = RetrySettings(first_wait_s=0.02, longest_wait_s=0.1)
    alerts = AlertSettings(folder=str(tmp_path), sinks=(settings(receiver.url, retry=retry),))
    receiver.faults.extend([503, None, "reset", "lost", (429, "1"), None, "slow", 500, "lost", None, 404])
    with dispatching(alerts) as (outbox, dispatcher):
        put = [make_alert(draw_answer(number)) for number in range(40)]
        for alert in put[:20]:
            outbox.put(alert)
        until(lambda: len(receiver.ids()) >= 12)
        receiver.close()
        for alert in put[20:]:
            outbox.put(alert)
        failed = dispatcher.statistics()[0].failed
        until(lambda: dispatcher.statistics()[0].failed > failed + 2)
        again = Receiver(receiver.port)
        until(lambda: dispatcher.statistics()[0].delivered == 40)
        again.close()
    arrived = receiver.ids() + again.ids()
    assert set(arrived) == {alert.id for alert in put}
    # Twice came only what the receiver had kept without being able to say so.
    assert 40 <= len(arrived) <= 44
