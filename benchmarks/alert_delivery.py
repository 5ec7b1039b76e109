"""Whether every alert arrives, and how soon: file, webhook, MQTT (mosquitto) and OPC UA, all on loopback.

    python benchmarks/alert_delivery.py            about five minutes on two cores; needs mosquitto (`make broker`)

Kills: the process that puts and delivers is killed (SIGKILL) at random moments and started again, while webhook and
broker fail as well. An alert counts as accepted when its `put` returned; what a restarted broker sends its subscriber
again, flagged as such, is not counted as arrived again.

Latency: from the call of `put` to the receiver, one alert at a time (the OPC UA client looks every 50 ms), and what
`put` itself costs, alone and with other threads that put.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alert_lab import (
    WEBHOOK_SECRET,
    Broker,
    OpcUaReader,
    Receiver,
    Subscriber,
    dispatching,
    draw_answer,
    find_mosquitto,
    survive_kills,
    until,
)
from record import record
from serving_process import free_port

from sbdzsl.serving.alerts import AlertSettings, Outbox, make_alert

SINKS = ("file", "webhook", "mqtt", "opcua")


class Bench:
    """One sink with its receiver: settings, the ids that arrived, and a way to break the receiver."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.settings: dict[str, Any] = {"kind": kind}
        self.arrived: Callable[[], list[str]]
        self.disturb: Callable[[], object] = lambda: None
        self.close: Callable[[], object] = lambda: None
        folder.mkdir()
        getattr(self, f"_{kind}")(folder)

    def _file(self, folder: Path) -> None:
        path = folder / "alerts.jsonl"
        self.settings["path"] = str(path)
        self.arrived = _Lines(path).ids

    def _webhook(self, _: Path) -> None:
        receiver = Receiver()
        self.settings |= {"url": receiver.url, "secrets": [{"env": "HOOK_KEY"}], "timeout_s": 1.0}
        self.arrived, self.close = receiver.ids, receiver.close
        self.disturb = lambda: receiver.faults.extend([503, "reset", "lost", None, 500, "slow", (429, "1")])

    def _mqtt(self, folder: Path) -> None:
        broker = Broker(folder)
        subscriber = Subscriber(broker.port)
        self.settings |= {"host": "127.0.0.1", "port": broker.port, "tls": False, "timeout_s": 2.0}
        self.arrived = subscriber.ids

        def disturb() -> None:
            broker.stop(signal.SIGTERM)
            broker.start()

        def close() -> None:
            subscriber.close()
            broker.stop()

        self.disturb, self.close = disturb, close

    def _opcua(self, _: Path) -> None:
        port = free_port()
        self.settings |= {"port": port, "acknowledged": True, "users": {"scada": {"env": "SCADA_PASSWORD"}}}
        reader = OpcUaReader(port, "scada", "correct")
        self.arrived, self.close = reader.ids, reader.close


class _Lines:
    """The ids in a file of alerts that grows; each line is read once."""

    def __init__(self, path: Path) -> None:
        self._path, self._read = path, 0
        self._found: list[str] = []

    def ids(self) -> list[str]:
        """All ids so far."""
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._read)
                complete, _, _ = file.read().rpartition(b"\n")
            self._read += len(complete) + bool(complete)
            for line in complete.splitlines():
                with contextlib.suppress(ValueError):  # half written by a process that was killed; it comes again
                    self._found.append(json.loads(line)["id"])
        return list(self._found)


def measure_kills(kind: str, folder: Path, kills: int) -> dict[str, Any]:
    bench = Bench(kind, folder / f"kills-{kind}")
    try:
        accepted, arrived = survive_kills(
            bench.settings, folder / f"outbox-{kind}", bench.arrived, kills, random.Random(kind), bench.disturb
        )
    finally:
        bench.close()
    return {
        "kills": kills,
        "accepted": len(accepted),
        "lost": len(set(accepted) - set(arrived)),
        "arrived_again": len(arrived) - len(set(arrived)),
    }


def measure_latency(kind: str, folder: Path, count: int) -> dict[str, Any]:
    bench = Bench(kind, folder / f"latency-{kind}")
    settings = AlertSettings.model_validate({"folder": str(folder / f"quick-{kind}"), "sinks": [bench.settings]})
    times = []
    try:
        with dispatching(settings) as (outbox, dispatcher):
            for number in range(count + 10):
                alert = make_alert(draw_answer(number))
                started = time.perf_counter()
                outbox.put(alert)
                while alert.id not in bench.arrived()[-5:]:
                    if time.perf_counter() - started > 60:
                        raise TimeoutError(f"{kind}: {dispatcher.statistics()}")
                    time.sleep(0.0005)
                if number >= 10:  # the first ones connect
                    times.append(time.perf_counter() - started)
            until(lambda: dispatcher.statistics()[0].pending == 0)
    finally:
        bench.close()
    return {"alerts": count, **_milliseconds(times)}


def measure_put(folder: Path, threads: int, count: int) -> dict[str, Any]:
    """What storing costs the one who answers, with a sink that takes nothing."""
    nowhere = {"kind": "webhook", "url": f"http://127.0.0.1:{free_port()}/", "secrets": [{"env": "HOOK_KEY"}]}
    settings = AlertSettings.model_validate({"folder": str(folder / f"put-{threads}"), "sinks": [nowhere]})
    times: list[float] = []
    with dispatching(settings) as (outbox, _):
        began = time.perf_counter()
        workers = [threading.Thread(target=_put, args=(outbox, n * count, count, times)) for n in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        seconds = time.perf_counter() - began
        stored = outbox.pending()["webhook"][0]
    assert stored == threads * count
    return {"threads": threads, "alerts": stored, "a_second": round(stored / seconds), **_milliseconds(times)}


def _put(outbox: Outbox, first: int, count: int, times: list[float]) -> None:
    for number in range(first, first + count):
        alert = make_alert(draw_answer(number))
        started = time.perf_counter()
        outbox.put(alert)
        times.append(time.perf_counter() - started)


def _milliseconds(times: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(times, n=100)
    return {"p50_ms": round(cuts[49] * 1e3, 2), "p99_ms": round(cuts[98] * 1e3, 2)}


def main() -> None:
    """Kill, measure, record; exit code 1 if an accepted alert was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10, help="of the process, for each sink")
    parser.add_argument("--alerts", type=int, default=200, help="whose latency is measured, for each sink")
    words = parser.parse_args()
    if find_mosquitto() is None:
        sys.exit("no mosquitto: `make broker` installs it")
    os.environ |= {"HOOK_KEY": WEBHOOK_SECRET, "SCADA_PASSWORD": "correct"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kills = {kind: measure_kills(kind, folder, words.kills) for kind in SINKS}
        print(json.dumps(kills, indent=2), flush=True)
        latency = {kind: measure_latency(kind, folder, words.alerts) for kind in SINKS}
        print(json.dumps(latency, indent=2), flush=True)
        puts = [measure_put(folder, threads, 500 // threads) for threads in (1, 8)]
        print(json.dumps(puts, indent=2), flush=True)
    load = os.getloadavg()[0]
    figures = {"kills": kills, "latency": latency, "put": puts, "load_of_the_machine_at_the_end": round(load, 1)}
    record("alert_delivery", figures | {"sqlite": sqlite3.sqlite_version})
    sys.exit(any(row["lost"] for row in kills.values()))


if __name__ == "__main__":
    main()
