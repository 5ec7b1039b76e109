"""The MQTT sink against a real mosquitto."""

import datetime
import ipaddress
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alert_lab import Broker, Subscriber, dispatching, draw_answer, find_mosquitto, until
from serving_process import free_port

from sbdzsl.errors import AlertError, ConfigError
from sbdzsl.serving.alerts import AlertSettings, make_alert
from sbdzsl.serving.alerts.settings import MqttSettings, RetrySettings, SecretSource
from sbdzsl.serving.alerts.sinks.mqtt import MqttSink, level

pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="no mosquitto: `make broker` installs it")

ALERT = make_alert(draw_answer(1))


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    process = Broker(tmp_path)
    yield process
    process.stop()


@pytest.fixture
def subscriber(broker: Broker) -> Iterator[Subscriber]:
    client = Subscriber(broker.port)
    yield client
    client.close()


def settings(port: int, **more: Any) -> MqttSettings:
    return MqttSettings(**({"host": "127.0.0.1", "port": port, "tls": False, "timeout_s": 2.0} | more))


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_an_alert_is_published_and_the_last_one_retained(broker: Broker, subscriber: Subscriber, protocol: str) -> None:
    sink = MqttSink(settings(broker.port, protocol=protocol))
    sink.open()
    assert sink.deliver(ALERT)
    until(lambda: len(subscriber.messages) == 3)
    found = {topic: payload for topic, payload, _ in subscriber.messages}
    assert json.loads(found["sbdzsl/camera-1/leather/alert"]) == ALERT.document
    assert found["sbdzsl/camera-1/last"] == ALERT.to_json()
    assert found["sbdzsl/sbdzsl/status"] == b"online"
    late = Subscriber(broker.port, "sbdzsl/+/last")
    until(lambda: late.messages)
    assert late.messages == [("sbdzsl/camera-1/last", ALERT.to_json(), True)]
    late.close()
    sink.close()
    until(lambda: ("sbdzsl/sbdzsl/status", b"offline", False) in subscriber.messages)


@pytest.mark.parametrize(
    ("answer", "topic"),
    [
        (draw_answer(1, "unseen"), "plant/7/camera-1/unseen/alert"),
        (draw_answer(1, "error", attributes=[]), "plant/7/camera-1/unknown/alert"),
        (draw_answer(1, camera=None, surface="a/b+c#\u00e9"), "plant/7/unknown/a_b_c_\u00e9/alert"),
    ],
)
def test_topics_follow_camera_and_surface(
    broker: Broker, subscriber: Subscriber, answer: dict[str, Any], topic: str
) -> None:
    sink = MqttSink(settings(broker.port, topic="plant/7"))
    sink.deliver(make_alert(answer))
    until(lambda: topic in {found for found, *_ in subscriber.messages})
    sink.close()


def test_no_name_makes_a_wildcard_or_another_level() -> None:
    assert level("a/b+c#d\x00e\n") == "a_b_c_d_e_"
    assert level("\ud800") == "?"


def test_the_last_will_speaks_for_a_service_that_was_killed(broker: Broker, subscriber: Subscriber) -> None:
    script = (
        "import sys; from sbdzsl.serving.alerts.settings import MqttSettings;"
        "from sbdzsl.serving.alerts.sinks.mqtt import MqttSink;"
        f"MqttSink(MqttSettings(host='127.0.0.1', port={broker.port}, tls=False)).open(); sys.stdin.read()"
    )
    import sys

    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE)
    until(lambda: ("sbdzsl/sbdzsl/status", b"online", False) in subscriber.messages)
    process.kill()
    process.wait()
    until(lambda: ("sbdzsl/sbdzsl/status", b"offline", False) in subscriber.messages)
    assert process.stdin is not None
    process.stdin.close()


def test_an_alert_that_waited_does_not_replace_a_later_one(broker: Broker, subscriber: Subscriber) -> None:
    older = make_alert(draw_answer(1))
    time.sleep(0.01)
    newer = make_alert(draw_answer(2))
    sink = MqttSink(settings(broker.port))
    for alert in (newer, older):
        sink.deliver(alert)
    until(lambda: len(subscriber.ids()) == 2)
    sink.close()
    assert [body for topic, body, _ in subscriber.messages if topic.endswith("/last")] == [newer.to_json()]


def test_nobody_there_is_an_outage() -> None:
    sink = MqttSink(settings(free_port()))
    with pytest.raises(AlertError, match="Connection refused") as error:
        sink.deliver(ALERT)
    assert error.value.code == "sink-unreachable"
    sink.close()


def test_a_broker_that_hangs_is_an_outage_and_gets_the_alert_later(broker: Broker, subscriber: Subscriber) -> None:
    sink = MqttSink(settings(broker.port, timeout_s=0.5))
    sink.open()
    assert broker.process is not None
    broker.process.send_signal(signal.SIGSTOP)
    with pytest.raises(AlertError, match="no acknowledgement"):
        sink.deliver(ALERT)
    broker.process.send_signal(signal.SIGCONT)
    assert sink.deliver(ALERT)
    until(lambda: subscriber.ids())
    sink.close()


def test_an_idle_connection_comes_back_by_itself(broker: Broker) -> None:
    sink = MqttSink(settings(broker.port))
    sink.open()
    broker.stop()
    broker.start()
    with_status = Subscriber(broker.port, "sbdzsl/sbdzsl/status")
    until(lambda: with_status.messages and with_status.messages[-1][1] == b"online")
    assert sink.deliver(ALERT)
    with_status.close()
    sink.close()


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Broker]:
    """A broker that knows one user, who may write to some topics only."""
    passwords, access = tmp_path / "passwords", tmp_path / "access"
    passwords.write_text("line:correct\nreader:correct\n")
    subprocess.run(["mosquitto_passwd", "-U", str(passwords)], check=True)
    access.write_text("user line\ntopic write sbdzsl/#\ntopic deny sbdzsl/camera-9/#\nuser reader\ntopic read #\n")
    process = Broker(tmp_path, "allow_anonymous false", f"password_file {passwords}", f"acl_file {access}")
    yield process
    process.stop()


def test_a_user_with_the_right_password_is_let_in(guarded: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_PASSWORD", "correct")
    reader = Subscriber(guarded.port, "#", "reader", "correct")
    sink = MqttSink(settings(guarded.port, username="line", password=SecretSource(env="BROKER_PASSWORD")))
    assert sink.deliver(ALERT)
    until(lambda: reader.ids() == [ALERT.id])
    sink.close()
    reader.close()


def test_a_wrong_password_is_said_and_not_repeated(guarded: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_PASSWORD", "hunter2")
    sink = MqttSink(settings(guarded.port, username="line", password=SecretSource(env="BROKER_PASSWORD")))
    with pytest.raises(AlertError, match=r"connection refused: (Not authorized|Bad user)") as error:
        sink.deliver(ALERT)
    assert "hunter2" not in str(error.value)
    sink.close()


def test_a_topic_that_the_broker_forbids_is_not_called_delivered(
    guarded: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKER_PASSWORD", "correct")
    sink = MqttSink(settings(guarded.port, username="line", password=SecretSource(env="BROKER_PASSWORD")))
    with pytest.raises(AlertError, match="refused sbdzsl/camera-9/leather/alert: Not authorized"):
        sink.deliver(make_alert(draw_answer(1, camera="camera-9")))
    sink.close()


def make_certificates(folder: Path) -> None:
    """A certificate for 127.0.0.1 that is its own authority, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "broker")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(key.private_bytes(*private))


def test_tls_lets_in_who_knows_the_authority_and_nobody_else(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    broker = Broker(tmp_path, f"certfile {tmp_path}/cert.pem", f"keyfile {tmp_path}/key.pem")
    sink = MqttSink(settings(broker.port, tls=True, ca_file=str(tmp_path / "cert.pem")))
    assert sink.deliver(ALERT)
    sink.close()
    stranger = MqttSink(settings(broker.port, tls=True))
    with pytest.raises(AlertError, match="CERTIFICATE_VERIFY_FAILED"):
        stranger.deliver(ALERT)
    stranger.close()
    broker.stop()


def test_a_certificate_that_cannot_be_read_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.pem cannot be used for TLS"):
        MqttSink(settings(8883, tls=True, ca_file=str(tmp_path / "none.pem")))


def test_through_kills_of_the_broker_each_alert_arrives(tmp_path: Path, broker: Broker, subscriber: Subscriber) -> None:
    retry = RetrySettings(first_wait_s=0.05, longest_wait_s=0.2)
    alerts = AlertSettings(folder=str(tmp_path / "alerts"), sinks=(settings(broker.port, retry=retry),))
    put = [make_alert(draw_answer(number)) for number in range(60)]
    with dispatching(alerts) as (outbox, dispatcher):
        for start in range(0, 60, 20):
            for alert in put[start : start + 20]:
                outbox.put(alert)
            until(lambda start=start: dispatcher.statistics()[0].delivered >= start + 5)
            # Not by SIGKILL: what mosquitto has acknowledged and not yet saved would be lost by it, not by us.
            broker.stop(signal.SIGTERM)
            time.sleep(0.3)
            broker.start()
        until(lambda: dispatcher.statistics()[0].delivered == 60)
    until(lambda: set(subscriber.ids()) == {alert.id for alert in put})
