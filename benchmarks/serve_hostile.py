"""500 hostile requests to a running service: each gets the right refusal, and the service lives.

    python benchmarks/serve_hostile.py      some minutes

Damaged images and bombs (as the audit's study draws them), wrong content types, bad forms, bodies that are larger than
they say or never end, headers without end, uploads that stop. After each tenth the service has to judge a good image.
"""

from __future__ import annotations

import json
import random
import socket
from collections import Counter
from collections.abc import Callable, Iterator

import audit_lab as lab
import hostile_images
import serve_lab
from record import record

SIZE, NUM_REQUESTS = 256, 500
FINE = {400, 408, 413, 415, 422, 431}


def raw(port: int, request: bytes, timeout_s: float = 15.0) -> int:
    """Status of whatever is answered to some bytes; 0 where the connection is closed without an answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as link:
        try:
            link.sendall(request)
            head = link.recv(200)
        except OSError:
            return 0
    return int(head.split()[1]) if head.startswith(b"HTTP/1.1 ") else 0


def requests(port: int, good: bytes) -> Iterator[tuple[str, Callable[[], int]]]:
    """Kinds of hostile requests and what sends one, in turn, without end."""
    numbers = random.Random(0)
    start = b"POST /v1/inspect HTTP/1.1\r\nHost: x\r\n"

    def posting(content: bytes, **headers: str) -> Callable[[], int]:
        def send() -> int:
            with serve_lab.Client(port) as client:
                return client.post(content, **headers)[0]

        return send

    def sending(request: bytes) -> Callable[[], int]:
        return lambda: raw(port, request)

    bad = [(name, content) for name, content in hostile_images.bombs()]
    while True:
        place = numbers.randrange(20, len(good) - 1)
        flipped = bytearray(good)
        flipped[numbers.randrange(8, 60)] ^= 1 << numbers.randrange(8)
        yield "cut image", posting(good[:place])
        yield "damaged header", posting(bytes(flipped))
        yield "random bytes", posting(numbers.randbytes(numbers.randrange(1, 5000)))
        yield "wrong content type", posting(good, **{"Content-Type": numbers.choice(["text/html", "application/json"])})
        yield "form without boundary", posting(good, **{"Content-Type": "multipart/form-data"})
        yield "form that is none", posting(good, **{"Content-Type": "multipart/form-data; boundary=x"})
        yield "empty body", posting(b"")
        name, content = bad[numbers.randrange(len(bad))]
        yield f"bomb: {name}", posting(content)
        yield "says a terabyte", sending(start + b"Content-Type: image/png\r\nContent-Length: 1099511627776\r\n\r\n")
        yield "length is no number", sending(start + b"Content-Length: many\r\n\r\n")
        yield "no HTTP", sending(numbers.randbytes(200) + b"\r\n\r\n")
        yield "huge header", sending(start + b"X-Pad: " + b"a" * 2**20 + b"\r\n\r\n")
        yield "many headers", sending(start + b"".join(b"X-%d: y\r\n" % n for n in range(20000)) + b"\r\n")
        yield "long query", sending(b"POST /v1/inspect?camera=" + b"a" * 60000 + b" HTTP/1.1\r\nHost: x\r\n\r\n")


def main() -> None:
    """Send them, count the answers, record."""
    bundle, good = lab.quick_bundle(SIZE, crop_px=128), serve_lab.pictures(SIZE, 1)[0]
    statuses: dict[str, Counter[str]] = {}
    with serve_lab.serving(bundle, "--config", "{upload_timeout_s: 2, max_bytes: 20000000}") as running:
        with lab.Watch(running.process.pid) as watch:
            kinds = requests(running.port, good)
            for number in range(NUM_REQUESTS):
                kind, send = next(kinds)
                statuses.setdefault(kind, Counter())[str(send())] += 1
                if number % 10 == 9:
                    with running.client() as client:
                        assert client.post(good)[0] == 200, kind
            slow = [slow_upload(running.port, good) for _ in range(5)]
        statuses["slow upload"] = Counter(map(str, slow))
    answered = sum(count for kind in statuses.values() for count in kind.values())
    wrong = {
        kind: dict(found)
        for kind, found in statuses.items()
        if any(int(status) not in allowed(kind) for status in found)
    }
    figures = {
        "requests": answered,
        "statuses": {kind: dict(found) for kind, found in sorted(statuses.items())},
        "wrong_status": wrong,
        "server_errors": sum(n for kind in statuses.values() for status, n in kind.items() if status.startswith("5")),
        "peak_mb": max(peak["own"] for peak in watch.peaks.values()),
    }
    print(json.dumps(figures, indent=1))
    record("serve_hostile", figures)


def allowed(kind: str) -> set[int]:
    """Statuses that are right for a kind: a bomb may be an image within the limits, what is no HTTP gets no answer."""
    if kind.startswith("bomb"):
        return FINE | {200}
    return FINE | {0} if kind in ("no HTTP", "huge header", "many headers", "long query") else FINE


def slow_upload(port: int, good: bytes) -> int:
    """A body of which a byte comes and then no more."""
    head = b"POST /v1/inspect HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n" % len(good)
    return raw(port, head + good[:100])


if __name__ == "__main__":
    main()
