"""SIGKILL to the process that holds the outbox, in the midst of putting and delivering: nothing accepted is lost."""

import json
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from alert_lab import (
    WEBHOOK_SECRET,
    Broker,
    OpcUaReader,
    Receiver,
    Subscriber,
    find_mosquitto,
    survive_kills,
)
from serving_process import free_port

pytestmark = pytest.mark.slow
KILLS = 3


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_KEY", WEBHOOK_SECRET)
    monkeypatch.setenv("SCADA_PASSWORD", "correct")


def check(accepted: list[str], arrived: list[str]) -> None:
    assert len(accepted) >= 5 * KILLS
    assert len(set(accepted)) == len(accepted)
    assert set(accepted) - set(arrived) == set()


def test_lines_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "alerts.jsonl"

    def arrived() -> list[str]:
        lines = path.read_bytes().split(b"\n") if path.exists() else []
        found = []
        for line in lines:
            try:
                found.append(json.loads(line)["id"])
            except ValueError:  # a line that a kill left half written; its alert comes again
                continue
        return found

    check(*survive_kills({"kind": "file", "path": str(path)}, tmp_path, arrived, KILLS, random.Random(1)))


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    yield server
    server.close()


def test_a_webhook_whose_receiver_fails_too(tmp_path: Path, receiver: Receiver) -> None:
    sink = {"kind": "webhook", "url": receiver.url, "secrets": [{"env": "HOOK_KEY"}], "timeout_s": 1.0}
    faults = [503, "reset", "lost", None, 500]

    def between() -> None:
        receiver.faults.extend(faults)

    check(*survive_kills(sink, tmp_path, receiver.ids, KILLS, random.Random(2), between))


@pytest.mark.skipif(find_mosquitto() is None, reason="no mosquitto: `make broker` installs it")
def test_mqtt_with_a_broker_that_restarts(tmp_path: Path) -> None:
    broker = Broker(tmp_path)
    subscriber = Subscriber(broker.port)

    def between() -> None:
        broker.stop(signal.SIGTERM)
        broker.start()

    try:
        sink = {"kind": "mqtt", "host": "127.0.0.1", "port": broker.port, "tls": False, "timeout_s": 2.0}
        check(*survive_kills(sink, tmp_path / "alerts", subscriber.ids, KILLS, random.Random(3), between))
    finally:
        subscriber.close()
        broker.stop()


def test_opcua_with_a_client_that_acknowledges(tmp_path: Path) -> None:
    sink = {"kind": "opcua", "port": free_port(), "acknowledged": True, "users": {"scada": {"env": "SCADA_PASSWORD"}}}
    reader = OpcUaReader(sink["port"], "scada", "correct")  # type: ignore[arg-type]
    try:
        check(*survive_kills(sink, tmp_path, reader.ids, KILLS, random.Random(4)))
    finally:
        reader.close()
