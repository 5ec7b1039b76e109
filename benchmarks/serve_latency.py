"""What the service adds to the inspector: latency of one client, throughput of several, by shape and door.

    python benchmarks/serve_latency.py                     all, a quarter of an hour on two quiet cores
    python benchmarks/serve_latency.py process fused       these servers alone

Each server takes turns with the in-process inspector on the same 512 x 512 PNGs, same bundle, same number of threads:
the inspector before it and after it, so that both see the machine alike. Servers:

    plain      what a user would write instead: FastAPI and uvicorn around the same inspector, 15 lines
    process    `sbdzsl serve`
    fused, routed          `sbdzsl serve --shape ... --proxy haproxy`
    fused-ray, routed-ray  the same with `--proxy ray`, the default door of Ray Serve
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import audit_lab as lab
import serve_lab
from fastapi import FastAPI, Request
from record import record
from serving_process import free_port

SIZE, NUM_PICTURES = 512, 40
WARM_UP, REQUESTS = 40, 400
SATURATED_S, CLIENTS = 15.0, 6
GOALS = {
    "fused": {"added_p50_ms": 3.0, "p99_to_p50": 3.0, "throughput": 0.80},
    "routed": {"added_p50_ms": 8.0, "p99_to_p50": 3.0, "throughput": 0.60},
}
SERVERS = ("plain", "process", "fused", "fused-ray", "routed", "routed-ray")


def plain_server(bundle: str, port: int) -> None:
    """The program that a user would write: one process, one inspector, FastAPI and uvicorn."""
    import uvicorn

    from sbdzsl import bundle as bundles
    from sbdzsl.inspector import Inspector, load_image

    app, inspector = FastAPI(), Inspector(bundles.load(bundle))

    @app.post("/v1/inspect")
    async def inspect(request: Request) -> dict[str, Any]:
        loaded = load_image("", "", inspector.bundle.settings.image, content=await request.body())
        return inspector.decide(loaded).to_json()

    @app.get("/readyz")
    async def ready() -> str:
        return "ready"

    uvicorn.run(app, port=port, log_level="warning")


def inspector_alone(bundle: str) -> None:
    """In a process of its own: a line asks for so many images, the answer is their seconds, as JSON."""
    from sbdzsl import bundle as bundles
    from sbdzsl.inspector import Inspector, load_image

    inspector, contents = Inspector(bundles.load(bundle)), serve_lab.pictures(SIZE, NUM_PICTURES)
    for line in sys.stdin:
        seconds = []
        for number in range(int(line)):
            started = time.perf_counter()
            loaded = load_image("", "", inspector.bundle.settings.image, content=contents[number % NUM_PICTURES])
            inspector.decide(loaded)
            seconds.append(time.perf_counter() - started)
        print(json.dumps(seconds), flush=True)


@contextmanager
def alone(bundle: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that runs `inspector_alone`; idle, it takes no CPU."""
    words = [sys.executable, __file__, "--alone", str(bundle)]
    process = subprocess.Popen(words, env=lab.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        ask(process, WARM_UP)
        yield process
    finally:
        process.kill()
        process.wait()


def ask(process: subprocess.Popen[str], number: int) -> list[float]:
    """Seconds of so many images by the inspector alone."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{number}\n")
    process.stdin.flush()
    seconds: list[float] = json.loads(process.stdout.readline())
    return seconds


@contextmanager
def server(name: str, bundle: Path) -> Iterator[serve_lab.Server]:
    """One of `SERVERS`, running."""
    if name == "plain":
        port = free_port()
        with serve_lab.started([sys.executable, __file__, "--plain", str(bundle), str(port)], port) as running:
            yield running
        return
    shape, _, proxy = name.partition("-")
    more = ["--shape", shape] + (["--proxy", proxy or "haproxy"] if shape != "process" else [])
    with serve_lab.serving(bundle, *more, needs_key=shape != "process" and not proxy) as running:
        yield running


def one_client(running: serve_lab.Server, contents: list[bytes]) -> dict[str, Any]:
    """Latency of one client, and where the service says that its time goes (medians, ms)."""
    seconds, steps = [], []
    with running.client() as client:
        for number in range(WARM_UP + REQUESTS):
            started = time.perf_counter()
            status, body = client.post(contents[number % len(contents)])
            seconds.append(time.perf_counter() - started)
            assert status == 200, body[:300]
            steps.append(json.loads(body))
        door = []
        for _ in range(200):
            started = time.perf_counter()
            client.get("/livez" if "queue_ms" in steps[0] else "/readyz")
            door.append(time.perf_counter() - started)
    steps = steps[WARM_UP:]
    names = [name for name in ("queue_ms", "decode_ms", "route_ms", "detect_ms") if name in steps[0]]
    found = {name: [step[name] for step in steps if step[name] is not None] for name in names}
    inside = {name: round(statistics.median(values), 2) for name, values in found.items()}
    return serve_lab.milliseconds(seconds[WARM_UP:]) | {
        "inside": inside,
        "door_p50": serve_lab.milliseconds(door)["p50"],
    }


def saturated(running: serve_lab.Server, contents: list[bytes]) -> float:
    """Images a second that several clients get, each as fast as it is answered."""
    counts, stop_at = [0] * CLIENTS, time.perf_counter() + SATURATED_S

    def load(place: int) -> None:
        with running.client() as client:
            while time.perf_counter() < stop_at:
                status, _ = client.post(contents[(place + counts[place]) % len(contents)])
                counts[place] += status == 200

    started = time.perf_counter()
    threads = [threading.Thread(target=load, args=(place,)) for place in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - started)


def measure(name: str, bundle: Path, inspector: subprocess.Popen[str], contents: list[bytes]) -> dict[str, Any]:
    """One server between two turns of the inspector alone."""
    before = ask(inspector, REQUESTS // 2)
    with server(name, bundle) as running:
        latency = one_client(running, contents)
        between = ask(inspector, REQUESTS // 2)
        rate = saturated(running, contents)
    after = ask(inspector, REQUESTS // 2)
    near = serve_lab.milliseconds(before + between)
    bare = sum(len(one) for one in (between, after)) / (sum(between) + sum(after))
    return {
        "ready_after_s": round(running.ready_after_s, 1),
        "latency_ms": latency,
        "inspector_ms": near,
        "added_p50_ms": round(latency["p50"] - near["p50"], 2),
        "added_p99_ms": round(latency["p99"] - near["p99"], 2),
        "p99_to_p50": round(latency["p99"] / latency["p50"], 2),
        "images_per_s": round(rate, 1),
        "inspector_per_s": round(bare, 1),
        "throughput": round(rate / bare, 2),
    }


def payloads(bundle: Path) -> list[dict[str, Any]]:
    """What the form and size of a body cost, one client of `process`."""
    import cv2
    import numpy as np

    rows = []
    with serve_lab.serving(bundle) as running, running.client() as client:
        for size in (256, 512, 1024, 2048):
            source = cv2.imdecode(np.frombuffer(serve_lab.pictures(SIZE, 1)[0], np.uint8), cv2.IMREAD_GRAYSCALE)
            grey = np.tile(source, (4, 4))[:size, :size]
            for suffix in (".png", ".jpg", ".bmp"):
                content = cv2.imencode(suffix, grey)[1].tobytes()
                seconds, decode = [], []
                for _ in range(16):
                    started = time.perf_counter()
                    status, body = client.post(content)
                    seconds.append(time.perf_counter() - started)
                    assert status == 200
                    decode.append(json.loads(body)["decode_ms"])
                rows.append(
                    {
                        "side_px": size,
                        "form": suffix[1:],
                        "kB": round(len(content) / 1e3),
                        "p50_ms": serve_lab.milliseconds(seconds[5:])["p50"],
                        "decode_ms": round(statistics.median(decode[5:]), 2),
                    }
                )
    return rows


def main() -> None:
    """Measure the servers asked for, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("servers", nargs="*", help=", ".join(SERVERS))
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    parser.add_argument("--plain", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.alone:
        inspector_alone(given.alone)
        return
    if given.plain:
        plain_server(given.plain[0], int(given.plain[1]))
        return
    bundle, contents = lab.quick_bundle(SIZE), serve_lab.pictures(SIZE, NUM_PICTURES)
    figures: dict[str, Any] = {
        "image": {"side_px": SIZE, "form": "png", "kB": round(sum(map(len, contents)) / len(contents) / 1e3)},
        "clients": CLIENTS,
        "goals": GOALS,
        "servers": {},
    }
    with alone(bundle) as inspector:
        for name in given.servers or SERVERS:
            figures["servers"][name] = measure(name, bundle, inspector, contents)
            print(name, json.dumps(figures["servers"][name]), flush=True)
    figures["payloads"] = payloads(bundle)
    record("serve_latency", figures)


if __name__ == "__main__":
    main()
