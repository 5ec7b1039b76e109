"""Real receivers of alerts on loopback, each of which can be made to fail, and a process that puts and can be killed.

Used by `alert_delivery.py` and by the tests of the sinks.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from serving_process import free_port

from sbdzsl.serving.alerts import AlertSettings, Dispatcher, Outbox, make_alert
from sbdzsl.verdict import Region, Verdict

#: Example of the Standard Webhooks specification; no secret of anybody.
WEBHOOK_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def draw_answer(number: int, verdict: str = "defect", **fields: Any) -> dict[str, Any]:
    """An answer of the service, as large as a real one."""
    found = Verdict(
        image_id=f"image-{number}",
        uri=f"upload://{number}.png",
        verdict=verdict,  # type: ignore[arg-type]
        bundle="0123456789abcdef",
        surface=None if verdict in ("unseen", "error") else "leather",
        defect_score=4.25,
        defect_threshold=1.5,
        unseen_score=0.4,
        unseen_threshold=1.0,
        regions=(Region(10, 20, 30, 40, 900, 3.5),),
        class_embedding=tuple(i / 29 for i in range(29)),
        attributes=("texture: grainy", "colour: dark"),
        extrapolated=verdict == "unseen",
        decode_ms=1.5,
        route_ms=8.0,
        detect_ms=6.0,
    ).to_json()
    beside = {
        "request_id": f"request-{number}",
        "event_id": number,
        "camera": "camera-1",
        "trigger_id": f"trigger-{number}",
        "part_id": f"part-{number}",
        "sequence": number,
        "captured_at": None,
        "surface_expected": None,
        "surface_as_expected": None,
        "queue_ms": 0.2,
    }
    return found | beside | fields


def until(condition: Callable[[], Any], timeout_s: float = 20.0) -> Any:
    """What `condition` says as soon as it is true; `TimeoutError` where it never is."""
    end = time.monotonic() + timeout_s
    while not (found := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"not within {timeout_s} s")
        time.sleep(0.02)
    return found


class Receiver:
    """An HTTP server that keeps what it accepted, and for each request does the next of `faults`, if there is one.

    A fault is a status (503), a status with a Retry-After ((429, "2")), or "reset", "slow" or "lost" (it keeps the
    alert and then resets the connection, so that the sender cannot know).
    """

    def __init__(self, port: int = 0) -> None:
        self.accepted: list[tuple[dict[str, str], bytes]] = []
        self.requests = 0
        self.faults: deque[Any] = deque()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.requests += 1
                fault = receiver.faults.popleft() if receiver.faults else None
                if fault in (None, "lost"):
                    receiver.accepted.append(({k.lower(): v for k, v in self.headers.items()}, body))
                if fault in ("reset", "lost"):
                    # A close with nothing to linger for is a reset.
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.close_connection = True
                    self.connection.close()
                    return
                if fault == "slow":
                    time.sleep(2.0)
                status, retry_after = fault if isinstance(fault, tuple) else (fault, None)
                with contextlib.suppress(OSError):
                    self.send_response(status if isinstance(status, int) else 204)
                    if retry_after is not None:
                        self.send_header("retry-after", retry_after)
                    self.send_header("content-length", "0")
                    self.end_headers()

            def finish(self) -> None:
                with contextlib.suppress(OSError, ValueError):
                    super().finish()

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

            def handle_error(self, *_: Any) -> None:
                pass  # clients that gave up

            def shutdown_request(self, request: Any) -> None:
                with contextlib.suppress(OSError):
                    super().shutdown_request(request)

        self._server = Server(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/hook"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def ids(self) -> list[str]:
        """Ids of the alerts that came, in order, as often as they came."""
        return [headers["webhook-id"] for headers, _ in list(self.accepted)]

    def close(self) -> None:
        """Stop, and wait for its thread."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def find_mosquitto() -> str | None:
    return shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


class Broker:
    """A mosquitto in a process of its own, on one port through all restarts; `lines` are more of its settings."""

    def __init__(self, folder: Path, *lines: str) -> None:
        program = find_mosquitto()
        assert program is not None
        self.port = free_port()
        self._log = folder / "mosquitto.log"
        settings = folder / "mosquitto.conf"
        # It gives up root for a user who may not read our folder; retained messages and sessions stay over a restart.
        given = [f"listener {self.port} 127.0.0.1", "user root", "persistence true", f"persistence_location {folder}/"]
        given += ["autosave_interval 1", "autosave_on_changes true", "max_queued_messages 0", *lines]
        settings.write_text(
            "\n".join(given if any("allow_anonymous" in line for line in lines) else [*given, "allow_anonymous true"])
            + "\n"
        )
        self._command = [program, "-c", str(settings)]
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start, and return when it listens."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log)
        until(lambda: _listens(self.port))

    def stop(self, how: int = signal.SIGKILL) -> None:
        """End it by this signal."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait()
            self.process = None


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Subscriber:
    """Keeps what comes in below a topic: (topic, payload, whether it was retained). Its session outlasts the broker.

    A broker that was restarted sends again what it had no receipt of, flagged as such: that is counted apart.
    """

    def __init__(self, port: int, topic: str = "#", username: str | None = None, password: str | None = None) -> None:
        self.messages: list[tuple[str, bytes, bool]] = []
        self.redelivered = 0
        self._subscribed = threading.Event()
        self._client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2, client_id=f"subscriber-{uuid.uuid4().hex[:8]}", clean_session=False,
            protocol=mqtt.MQTTv311, reconnect_on_failure=True,
        )  # fmt: skip
        self._client.reconnect_delay_set(1, 1)
        if username is not None:
            self._client.username_pw_set(username, password)
        self._client.on_connect = lambda client, *_: client.subscribe(topic, qos=1)
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = self._keep
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        if not self._subscribed.wait(10):
            raise TimeoutError("the broker lets nobody subscribe")

    def ids(self) -> list[str]:
        """Ids of the alerts that came, in order, as often as they came."""
        found = (payload for topic, payload, _ in list(self.messages) if topic.endswith("/alert"))
        return [json.loads(payload)["id"] for payload in found]

    def close(self) -> None:
        """Stop, and wait for its thread."""
        self._client.disconnect()
        self._client.loop_stop()

    def _keep(self, _client: Any, _data: Any, message: mqtt.MQTTMessage) -> None:
        found = (message.topic, message.payload, message.retain)
        if message.dup and found in self.messages:
            self.redelivered += 1
        else:
            self.messages.append(found)


class OpcUaReader:
    """A client of the results that keeps the ids it saw, acknowledges each, and connects again when it loses them."""

    def __init__(self, port: int, username: str, password: str) -> None:
        self.seen: list[str] = []
        self._url, self._user = f"opc.tcp://127.0.0.1:{port}/sbdzsl", (username, password)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._read()), daemon=True)
        self._thread.start()

    def ids(self) -> list[str]:
        """Ids of the alerts that came, in order, as often as they came."""
        return list(self.seen)

    def close(self) -> None:
        """Stop, and wait for its thread."""
        self._stop.set()
        self._thread.join(20)

    async def _read(self) -> None:
        from asyncua import Client, ua

        while not self._stop.is_set():
            client = Client(self._url, timeout=5)
            client.set_user(self._user[0])
            client.set_password(self._user[1])
            try:
                async with client:
                    await client.load_data_type_definitions()
                    space = await client.get_namespace_index("urn:sbdzsl:machinery-result")
                    results = await client.nodes.objects.get_child(f"{space}:ResultManagement")
                    folder = await results.get_child(f"{space}:Results")
                    while not self._stop.is_set():
                        for node in await folder.get_children():
                            await self._take(ua, results, space, node)
                        await asyncio.sleep(0.05)
            except (OSError, asyncio.TimeoutError, ua.UaError):
                await asyncio.sleep(0.2)

    async def _take(self, ua: Any, results: Any, space: int, node: Any) -> None:
        result_id = (await node.read_browse_name()).Name
        self.seen.append(result_id)
        wanted = ua.Variant([result_id], ua.VariantType.String, is_array=True)
        await results.call_method(f"{space}:AcknowledgeResults", wanted)


class Producer:
    """A process that puts alerts and delivers them, to be killed. `accepted` are the ids whose `put` returned."""

    def __init__(self, settings: dict[str, Any], first: int, count: int, pause_s: float = 0.0) -> None:
        command = [sys.executable, __file__, json.dumps(settings), str(first), str(count), str(pause_s)]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
        self.accepted: list[str] = []
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def kill(self) -> None:
        """SIGKILL, and wait until all is read that it had said."""
        self._process.kill()
        self._end()

    def finish(self) -> int:
        """Let it deliver until it is told to stop, here; its exit code."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._end()

    def _end(self) -> int:
        code = self._process.wait(60)
        self._thread.join()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        return code

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.endswith("\n"):
                self.accepted.append(line.strip())


def survive_kills(
    sink: dict[str, Any],
    folder: Path,
    arrived: Callable[[], list[str]],
    kills: int,
    chance: random.Random,
    between: Callable[[], object] = lambda: None,
) -> tuple[list[str], list[str]]:
    """Kill the process that puts and delivers, again and again; the ids it accepted, and those that had arrived.

    Each process is killed at a random moment after it accepted 5 to 40 alerts, every other one not before something
    arrived from it; `between` breaks the receiver. The last process is given time to deliver what the others left.
    """
    settings = {"folder": str(folder), "sinks": [sink | {"retry": {"first_wait_s": 0.05, "longest_wait_s": 0.5}}]}
    accepted: list[str] = []
    for turn in range(kills):
        producer = Producer(settings, 1000 * turn, 1000, pause_s=0.005)
        wanted, before = chance.randint(5, 40), len(arrived())
        until(lambda p=producer, n=wanted: len(p.accepted) >= n, 120)
        if turn % 2:
            until(lambda n=before: len(arrived()) > n, 120)
        time.sleep(chance.uniform(0, 0.05))
        producer.kill()
        accepted += producer.accepted
        between()
    last = Producer(settings, 0, 0)
    with contextlib.suppress(TimeoutError):  # the caller compares
        until(lambda: set(accepted) <= set(arrived()), 120)
    assert last.finish() == 0
    return accepted, arrived()


@contextlib.contextmanager
def dispatching(settings: AlertSettings) -> Iterator[tuple[Outbox, Dispatcher]]:
    """An outbox with its dispatcher, closed in the right order."""
    outbox = Outbox(settings)
    dispatcher = Dispatcher(outbox, settings).start()
    try:
        yield outbox, dispatcher
    finally:
        dispatcher.close()
        outbox.close()


def produce(settings: dict[str, Any], first: int, count: int, pause_s: float) -> None:
    """Put alerts and say the id of each as soon as it is stored; then deliver until standard input ends."""
    with dispatching(AlertSettings.model_validate(settings)) as (outbox, _):
        for number in range(first, first + count):
            alert = make_alert(draw_answer(number))
            outbox.put(alert)
            print(alert.id, flush=True)
            time.sleep(pause_s)
        sys.stdin.read()


if __name__ == "__main__":
    produce(json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
