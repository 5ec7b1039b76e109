"""A serving process of its own and clients that load it: for tests and studies that kill it."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
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


class Load:
    """Posts images from several threads, in turn, until the server is gone; `answers` are those that arrived whole."""

    def __init__(self, server: Server, images: Sequence[bytes], clients: int = 3) -> None:
        self.answers: list[dict[str, Any]] = []
        self._url = f"{server.url}/v1/inspect"
        self._images = itertools.cycle(images)
        self._threads = [threading.Thread(target=self._post) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _post(self) -> None:
        with httpx2.Client(timeout=30) as client:
            while True:
                try:
                    answer = client.post(self._url, content=next(self._images), params={"camera": "c1"})
                except httpx2.TransportError:
                    return
                found = answer.json()
                self.answers.append(found.get("verdict") if isinstance(found.get("verdict"), dict) else found)

    def join(self) -> None:
        """Wait for the end of the server, as each client sees it."""
        for thread in self._threads:
            thread.join()


@contextmanager
def serving(bundle_url: str, data: Path, keep: Mapping[str, Any]) -> Iterator[Server]:
    """A server on a free port of loopback; it is dead at the end."""
    port = free_port()
    settings = data.with_suffix(".yaml")
    settings.write_text(yaml.safe_dump({"keep": dict(keep), "threads": 1}))
    words = ["serve", "--bundle", bundle_url, "--port", str(port), "--data", str(data), "--config", str(settings)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    with data.with_suffix(".txt").open("ab") as lines:
        process = subprocess.Popen(
            [sys.executable, "-m", "sbdzsl.cli", *words], stdout=lines, stderr=lines, env=environment
        )
    server = Server(f"http://127.0.0.1:{port}", process)
    try:
        wait_until_ready(server.url, process)
        yield server
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(url: str, process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    """Return when `/readyz` says 200. Raises `AssertionError` where the process ends first, or it takes too long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx2.get(f"{url}/readyz", timeout=30, trust_env=False).status_code == 200:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"the server at {url} is not ready; exit code {process.poll()}")
