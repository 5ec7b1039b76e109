from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from sbdzsl.serving import recorder as recorders
from sbdzsl.serving.alerts.settings import AlertSettings
from sbdzsl.serving.recorder import Recorder
from tests.serving.test_monitor import answer, eventually


def test_alerts_that_cannot_be_delivered_are_a_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorders, "LATE_ALERT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    sink = {"kind": "mqtt", "name": "erp", "host": "127.0.0.1", "port": port, "tls": False}

    async def run() -> None:
        recorder = Recorder(str(tmp_path), alerts=AlertSettings.model_validate({"sinks": [sink]}))
        assert await recorder.troubles() == {}
        await recorder.record(answer("defect"), b"image")

        async def is_told() -> bool:
            return any("erp" in name for name in await recorder.troubles())

        await eventually(is_told, 15)
        recorder.close()

    asyncio.run(run())
