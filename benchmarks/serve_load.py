"""Three times as many images as the service can judge, for five minutes: what it answers, how late, in how much memory.

    python benchmarks/serve_load.py                        process and fused, a quarter of an hour
    python benchmarks/serve_load.py process --minutes 1    a look

Images arrive at a fixed rate whatever becomes of earlier ones, from many connections. Before and after, one image a
second says how fast a quiet service is; recovery is the time from the end of the rush to the first of three answers
in a row below twice the quiet median.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import audit_lab as lab
import serve_lab
from record import record
from serve_latency import NUM_PICTURES, SIZE, saturated

TIMES, CONNECTIONS = 3, 96
GOALS = {"statuses": [200, 429], "recovery_s": 10.0}


class Rush:
    """Requests at a fixed rate from a pool of connections: status and seconds of each."""

    def __init__(self, running: serve_lab.Server, contents: list[bytes]) -> None:
        self.statuses: Counter[str] = Counter()
        self.accepted_s: list[float] = []
        self.refused_s: list[float] = []
        self.late = 0
        self._running, self._contents = running, contents
        self._own = threading.local()
        self._lock = threading.Lock()

    def go(self, per_s: float, seconds: float) -> None:
        """Send for so long. A request that finds no free connection is late, not left out."""
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            started = time.perf_counter()
            number = 0
            while (now := time.perf_counter() - started) < seconds:
                if number / per_s > now:
                    time.sleep(number / per_s - now)
                pool.submit(self._one, number, started + number / per_s)
                number += 1

    def _one(self, number: int, due: float) -> None:
        began = time.perf_counter()
        try:
            status = str(self._client().post(self._contents[number % len(self._contents)])[0])
        except OSError as error:
            status = type(error).__name__
        took = time.perf_counter() - began
        with self._lock:
            self.late += began - due > 1.0
            self.statuses[status] += 1
            (self.accepted_s if status == "200" else self.refused_s).append(took)

    def _client(self) -> serve_lab.Client:
        if not hasattr(self._own, "client"):
            self._own.client = self._running.client()
        client: serve_lab.Client = self._own.client
        return client


def quiet(client: serve_lab.Client, contents: list[bytes], number: int) -> list[float]:
    """Seconds of single requests, one a second."""
    found = []
    for place in range(number):
        started = time.perf_counter()
        client.post(contents[place % len(contents)])
        found.append(time.perf_counter() - started)
        time.sleep(max(0.0, 1 - found[-1]))
    return found


def recovery(client: serve_lab.Client, contents: list[bytes], fine_s: float) -> float:
    """Seconds until three answers in a row are accepted within `fine_s`."""
    started, row = time.perf_counter(), []
    while len(row) < 3 and time.perf_counter() - started < 60:
        began = time.perf_counter()
        status, _ = client.post(contents[0])
        row = [*row, began] if status == 200 and time.perf_counter() - began < fine_s else []
        time.sleep(0.05)
    return (row[0] if len(row) == 3 else time.perf_counter()) - started


def measure(shape: str, bundle: Path, contents: list[bytes], minutes: float) -> dict[str, Any]:
    """One shape under the rush."""
    more = ["--shape", shape] + (["--proxy", "ray"] if shape != "process" else [])
    with serve_lab.serving(bundle, *more) as running, running.client() as client:
        capacity = saturated(running, contents)
        before = quiet(client, contents, 15)
        fine_s = 2 * serve_lab.milliseconds(before)["p50"] / 1e3
        rush = Rush(running, contents)
        halves = []
        with lab.Watch(running.process.pid, every_s=1.0) as watch:
            for _ in range(2):
                rush.go(TIMES * capacity, minutes * 60 / 2)
                halves.append({name: peak["own"] for name, peak in watch.peaks.items() if peak["own"] > 20})
        # Connections that were silent for so long are closed.
        with running.client() as later:
            recovered = recovery(later, contents, fine_s)
            after = quiet(later, contents, 15)
    return {
        "capacity_per_s": round(capacity, 1),
        "sent_per_s": round(TIMES * capacity, 1),
        "minutes": minutes,
        "statuses": dict(rush.statuses),
        "accepted_per_s": round(len(rush.accepted_s) / (minutes * 60), 1),
        "accepted_ms": serve_lab.milliseconds(rush.accepted_s),
        "refused_ms": serve_lab.milliseconds(rush.refused_s),
        "sent_late": rush.late,
        "recovery_s": round(recovered, 2),
        "quiet_ms": {"before": serve_lab.milliseconds(before)["p50"], "after": serve_lab.milliseconds(after)["p50"]},
        "peak_own_mb": {"first_half": halves[0], "both_halves": halves[1]},
    }


def main() -> None:
    """Rush the shapes asked for, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", default=["process", "fused"])
    parser.add_argument("--minutes", type=float, default=5.0)
    given = parser.parse_args()
    bundle, contents = lab.quick_bundle(SIZE), serve_lab.pictures(SIZE, NUM_PICTURES)
    figures: dict[str, Any] = {"goals": GOALS, "connections": CONNECTIONS, "shapes": {}}
    for shape in given.shapes:
        figures["shapes"][shape] = measure(shape, bundle, contents, given.minutes)
        print(shape, json.dumps(figures["shapes"][shape]), flush=True)
    record("serve_load", figures)


if __name__ == "__main__":
    main()
