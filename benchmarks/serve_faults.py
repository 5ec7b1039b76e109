"""Replicas killed and bundles changed under load: no wrong verdict, and nothing lost that a retry does not bring back.

    python benchmarks/serve_faults.py      ten minutes

The routed shape on Ray Serve, four clients that send again what is refused (`sbdzsl.client`), each image with its known
verdict by either bundle. One after the other: every detector is killed, every router, the bundle is deployed anew, each
while the load goes on.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import audit_lab as lab
import serve_lab
from record import record
from serving_process import free_port

from sbdzsl import bundle as bundles
from sbdzsl.client import InspectionClient
from sbdzsl.errors import SbdzslError
from sbdzsl.inspector import Inspector, load_image

SIZE, NUM_PICTURES, CLIENTS = 256, 60, 4
CALM_S, KILLS = 15.0, 3
TIMEOUT_S = 90.0


@dataclass
class Load:
    """Clients that send known images until told to stop."""

    port: int
    contents: list[bytes]
    #: digest of a bundle -> verdict and score of each image
    known: dict[str, list[tuple[str, float | None]]]
    answered: int = 0
    wrong: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    by_bundle: Counter[str] = field(default_factory=Counter)
    _stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def during(self, work: Callable[[], None]) -> dict[str, Any]:
        """Do something while the load goes on, and see what became of it; the load calms before and after."""
        self.answered, self.wrong, self.lost, self.seconds, self.by_bundle = 0, 0, Counter(), [], Counter()
        self._stop.clear()
        threads = [threading.Thread(target=self._send, args=(place,)) for place in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            time.sleep(CALM_S)
            work()
            time.sleep(CALM_S)
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()
        return {
            "answered": self.answered,
            "wrong_verdicts": self.wrong,
            "lost": dict(self.lost),
            "ms_with_retries": serve_lab.milliseconds(self.seconds) | {"max": round(max(self.seconds) * 1e3)},
            "by_bundle": {digest[:12]: number for digest, number in self.by_bundle.items()},
        }

    def _send(self, place: int) -> None:
        number = place
        with InspectionClient(f"http://127.0.0.1:{self.port}", timeout_s=TIMEOUT_S) as client:
            while not self._stop.is_set():
                number = (number + CLIENTS) % len(self.contents)
                started = time.perf_counter()
                try:
                    answer = client.inspect(self.contents[number])
                except SbdzslError as error:
                    with self._lock:
                        self.lost[error.code] += 1
                    continue
                with self._lock:
                    self.seconds.append(time.perf_counter() - started)
                    self.answered += 1
                    self.by_bundle[answer.bundle] += 1
                    self.wrong += self.known[answer.bundle][number] != (answer.verdict, answer.defect_score)


def another_bundle(bundle: Path) -> Path:
    """The same nets with a threshold that calls everything defective, so that the two can be told apart."""
    folder = bundle.with_name(f"{bundle.name}-strict")
    if not folder.exists():
        shutil.copytree(bundle, folder)
        card = json.loads((folder / bundles.CARD).read_text())
        for detector in card["detectors"].values():
            detector["settings"]["threshold_policy"] = "fixed:-100"
        (folder / bundles.CARD).write_text(json.dumps(card))
    return folder


def known_verdicts(bundle: Path, contents: list[bytes]) -> tuple[str, list[tuple[str, float | None]]]:
    """Digest of a bundle, and what it says of each image."""
    inspector = Inspector(bundles.load(str(bundle)))
    settings = inspector.bundle.settings.image
    verdicts = [inspector.decide(load_image("", "", settings, content=content)) for content in contents]
    return inspector.bundle.digest, [(one.verdict, one.defect_score) for one in verdicts]


def kill(pid: int, name: str) -> int:
    """SIGKILL every replica of the deployments whose name begins so, `KILLS` times with a pause; how many died."""
    number = 0
    for _ in range(KILLS):
        for process in lab.descendants(pid):
            words = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace")
            if f"ServeReplica:default:{name}" in words:
                os.kill(process, signal.SIGKILL)
                number += 1
        time.sleep(CALM_S)
    return number


def main() -> None:
    """One fault after the other; record."""
    os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "90"
    from ray import serve

    from sbdzsl.cluster.serve import ServeArgs, build, deployed
    from sbdzsl.serving.settings import ServeSettings

    bundle = lab.quick_bundle(SIZE, crop_px=128)
    strict = another_bundle(bundle)
    contents = serve_lab.pictures(SIZE, NUM_PICTURES)
    known = dict(known_verdicts(one, contents) for one in (bundle, strict))
    settings = ServeSettings(threads=1)

    def arguments(url: Path) -> ServeArgs:
        return ServeArgs(bundle=str(url), shape="routed", cpus=0, detector_cpus=0, service=settings, open_to_all=True)

    figures: dict[str, Any] = {"clients": CLIENTS, "kills_each": KILLS}
    port = free_port()
    with deployed(arguments(bundle), "127.0.0.1", port):
        load = Load(port, contents, known)
        killed: Counter[str] = Counter()

        def killing(name: str) -> Callable[[], None]:
            def work() -> None:
                killed[name] += kill(os.getpid(), name)

            return work

        for fault, work in {
            "nothing": lambda: None,
            "detectors killed": killing("Detector"),
            "routers killed": killing("Inspection"),
            "bundle changed": lambda: serve.run(build(arguments(strict)), route_prefix="/") and None,
        }.items():
            figures[fault] = load.during(work)
            print(fault, json.dumps(figures[fault]), flush=True)
        figures["killed"] = dict(killed)
    record("serve_faults", figures)


if __name__ == "__main__":
    main()
