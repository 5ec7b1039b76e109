"""`sbdzsl serve` on Ray as a user starts and ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from serving_process import free_port, wait_until_ready

from sbdzsl.cluster import fast_mode_alone
from sbdzsl.serving.keys import KeyFile, scopes
from tests.conftest import Trained

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def doors(since: float) -> list[psutil.Process]:
    """HAProxy processes of this machine that were started after a time."""
    found = psutil.process_iter(["name", "create_time"])
    return [one for one in found if one.info["name"] == "haproxy" and one.info["create_time"] >= since]


def test_ctrl_c_ends_a_waiting_service_and_all_its_processes(trained: Trained, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    KeyFile(str(keys)).create("test", scopes(["infer"]))
    began, port = psutil.Process().create_time(), free_port()
    words = ["serve", "--bundle", trained.bundle_url, "--shape", "fused", "--keys", str(keys), "--port", str(port)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-m", "sbdzsl.cli", *words], env=environment, stdout=subprocess.PIPE)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process)
        assert process.stdout is not None
        assert b"Ctrl-C ends it" in process.stdout.readline(), "else it does not wait yet"
        mine = [*psutil.Process(process.pid).children(recursive=True), *doors(began)]
        assert "haproxy" in {one.name() for one in mine}
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.wait()
    _, left = psutil.wait_procs(mine, 20)
    assert not left


def test_two_services_have_ports_of_their_own() -> None:
    one, other = fast_mode_alone(), fast_mode_alone()
    ports = [settings[name] for settings in (one, other) for name in one if name.endswith("_PORT")]
    assert len(set(ports)) == len(ports) == 4
