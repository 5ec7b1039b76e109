"""A serving process of its own, for tests that kill it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import yaml


@dataclass(frozen=True, slots=True)
class Server:
    """`sbdzsl serve` in a process, ready to judge."""

    url: str
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        """End it as a power cut would: nothing is finished."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End it in good order."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)


@contextmanager
def serving(bundle_url: str, data: Path, keep: Mapping[str, Any]) -> Iterator[Server]:
    """A server on a free port of loopback; it is dead at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = data.with_suffix(".yaml")
    settings.write_text(yaml.safe_dump({"keep": dict(keep), "threads": 1}))
    words = ["serve", "--bundle", bundle_url, "--port", str(port), "--data", str(data), "--config", str(settings)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with data.with_suffix(".txt").open("ab") as lines:
        process = subprocess.Popen(
            [sys.executable, "-m", "sbdzsl.cli", *words], stdout=lines, stderr=lines, env=environment
        )
    server = Server(f"http://127.0.0.1:{port}", process)
    try:
        _wait_until_ready(server)
        yield server
    finally:
        process.kill()
        process.wait()


def _wait_until_ready(server: Server) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            if httpx2.get(f"{server.url}/readyz", timeout=30).status_code == 200:
                return
        except httpx2.TransportError:
            time.sleep(0.1)
    raise AssertionError(f"the server is not ready; exit code {server.process.poll()}")
