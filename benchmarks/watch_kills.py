"""Kill the service and the watch while a camera writes: has each image its verdict, once, and the right one?

    python benchmarks/watch_kills.py                  1,000 images, 40 kills: some minutes
    python benchmarks/watch_kills.py --images 60 --kills 4

Kills are SIGKILL, at seeded moments, of `sbdzsl serve`, of `sbdzsl watch`, or of both at once; what was killed is
started again at once by the same words. Half the images are written in place with a pause in the middle, half renamed
into place. What the watch wrote is compared with the verdicts of an inspector in this process, and the answers in the
service's journal are counted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import audit_lab as lab
from record import record

from sbdzsl import bundle as bundles
from sbdzsl.client import InspectionClient
from sbdzsl.inspector import Inspector, load_image
from sbdzsl.serving.journal import Journal

KINDS = ("service", "watch", "both")
WEIGHTS = (0.35, 0.45, 0.2)
SIZE, MAX_WAIT_S = 256, 9.0
#: Longer than the watch takes between two looks, shorter than it lets a file settle.
HALF_WRITTEN_S = 0.2
#: What a verdict says that does not depend on who judged and when.
SAME = ("verdict", "surface", "unseen_score", "defect_score", "defect_threshold", "regions", "error_code")


@dataclass
class Found:
    """What kills did."""

    images: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    starts: Counter[str] = field(default_factory=Counter)
    lines: int = 0
    lost: int = 0
    doubled: int = 0
    different: int = 0  # from the verdict of an inspector in this process
    not_put_away: int = 0
    changed: int = 0  # files in done/ and failed/ that are not byte for byte what the camera wrote
    events: int = 0  # answers in the service's journal
    events_doubled: int = 0  # verdict lines that name the same answer as another line
    exit_code: int | None = None  # of the watch, told to end by SIGTERM
    seconds: float = 0.0
    verdicts: Counter[str] = field(default_factory=Counter)

    def figures(self) -> dict[str, Any]:
        """As JSON."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


class Camera(threading.Thread):
    """Writes copies of the images into a folder over `over_s` seconds, half of them in two pieces."""

    def __init__(self, folder: Path, images: Sequence[bytes], count: int, over_s: float) -> None:
        super().__init__(daemon=True)
        self.written: dict[str, bytes] = {}
        self._folder, self._images, self._count, self._pause_s = (
            folder,
            images,
            count,
            max(0.0, over_s / count - HALF_WRITTEN_S / 2),
        )

    def run(self) -> None:
        """Write them all."""
        for number in range(self._count):
            name, content = f"image_{number:05d}.png", self._images[number % len(self._images)]
            self.written[name] = content
            if number % 2:
                temporary = self._folder / f"{name}.tmp"
                temporary.write_bytes(content)
                temporary.rename(self._folder / name)
            else:
                with (self._folder / name).open("wb") as file:
                    file.write(content[: len(content) // 2])
                    file.flush()
                    time.sleep(HALF_WRITTEN_S)
                    file.write(content[len(content) // 2 :])
            time.sleep(self._pause_s)


class Line:
    """A service and a watch, as processes that can be killed and started again."""

    def __init__(self, folder: Path, bundle: Path | str) -> None:
        self.inbox, self.data = folder / "in", folder / "data"
        self.inbox.mkdir(parents=True)
        port = _free_port()
        self.endpoint = f"http://127.0.0.1:{port}"
        self.found = Found()
        sbdzsl = [sys.executable, "-m", "sbdzsl.cli"]
        self._words = {
            "service": [*sbdzsl, "serve", "--bundle", str(bundle), "--port", str(port), "--data", str(self.data)],
            "watch": [
                *(*sbdzsl, "watch", str(self.inbox), "--endpoint", self.endpoint, "--camera", "left"),
                *("--interval", "0.1"),
            ],
        }
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._log = (folder / "log.txt").open("ab")

    def start(self, name: str) -> None:
        """Start one of the two."""
        self._processes[name] = subprocess.Popen(
            self._words[name], env=lab.environment(), stdout=self._log, stderr=self._log
        )
        self.found.starts[name] += 1

    def kill(self, kind: str) -> None:
        """Kill one or both, and start again what was killed."""
        for name in ("service", "watch") if kind == "both" else (kind,):
            code = self._processes[name].poll()
            assert code is None, f"{name} ended by itself with {code}"
            self._processes[name].kill()
        for name in ("service", "watch") if kind == "both" else (kind,):
            self._processes[name].wait()
            self.start(name)
        self.found.kills[kind] += 1

    def wait_for_service(self) -> None:
        """Until it has judged an image."""
        with InspectionClient(self.endpoint, timeout_s=2) as client:
            while not client.is_ready():
                time.sleep(0.1)

    def end(self) -> None:
        """Tell both to end, the watch first."""
        for name in ("watch", "service"):
            self._processes[name].send_signal(signal.SIGTERM)
            code = self._processes[name].wait(60)
            if name == "watch":
                self.found.exit_code = code

    def close(self) -> None:
        """Leave no process behind."""
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
        self._log.close()

    def images_left(self) -> int:
        """Files that the watch has not put away."""
        return sum(file.suffix == ".png" for file in self.inbox.iterdir())


def run(
    folder: Path, bundle: Path | str, images: Sequence[Path], count: int, kills: Sequence[tuple[str, float]]
) -> Found:
    """Write `count` images while the kills are dealt, each a kind and the seconds to wait before it; then check."""
    line = Line(folder, bundle)
    contents = [image.read_bytes() for image in images]
    try:
        line.start("service")
        line.wait_for_service()
        line.start("watch")
        began = time.monotonic()
        camera = Camera(line.inbox, contents, count, sum(wait_s for _, wait_s in kills))
        camera.start()
        for kind, wait_s in kills:
            time.sleep(wait_s)
            line.kill(kind)
        camera.join()
        while line.images_left():
            assert time.monotonic() - began < 3600, "the folder never empties"
            time.sleep(0.2)
        line.found.seconds = round(time.monotonic() - began, 1)
        line.end()
    finally:
        line.close()
    _check(line, camera.written, _truth(bundle, images))
    return line.found


def _truth(bundle: Path | str, images: Sequence[Path]) -> dict[bytes, dict[str, Any]]:
    """What an inspector in this process says of each image."""
    inspector = Inspector(bundles.load(str(bundle)))
    found = {}
    for image in images:
        content = image.read_bytes()
        loaded = load_image("", "", inspector.bundle.settings.image, content=content)
        verdict = json.loads(json.dumps(inspector.decide(loaded).to_json()))
        found[content] = {name: verdict[name] for name in SAME}
    return found


def _check(line: Line, written: dict[str, bytes], truth: dict[bytes, dict[str, Any]]) -> None:
    found = line.found
    rows = [json.loads(row) for row in (line.inbox / "verdicts.jsonl").read_text().splitlines()]
    names = Counter(row["file"] for row in rows)
    found.images, found.lines = len(written), len(rows)
    found.verdicts.update(row["verdict"] for row in rows)
    found.lost = len(written.keys() - names.keys())
    found.doubled = sum(times - 1 for times in names.values())
    found.different = sum({name: row[name] for name in SAME} != truth[written[row["file"]]] for row in rows)
    found.not_put_away = line.images_left()
    away = {file.name: file for kind in ("done", "failed") for file in line.inbox.glob(f"{kind}/*")}
    found.changed = sum(name not in away or away[name].read_bytes() != content for name, content in written.items())
    found.events_doubled = len(rows) - len({row["event_id"] for row in rows})
    with contextlib.closing(Journal(str(line.data))) as journal:
        found.events = journal.last_id()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def plan_of_kills(num_kills: int, seed: int) -> list[tuple[str, float]]:
    """Kinds, each with its wait: often shorter than a service takes to start."""
    rng = random.Random(seed)
    return [(rng.choices(KINDS, WEIGHTS)[0], rng.uniform(0.3, MAX_WAIT_S)) for _ in range(num_kills)]


def main() -> None:
    """Run, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    folder = lab.ROOT / "runs" / "watch"
    shutil.rmtree(folder, ignore_errors=True)
    drawn = sorted(lab.drawn_lake(160, SIZE, seed=3).glob("*/*/*.PNG"))[::2]
    bad = folder / "cut.png"
    folder.mkdir(parents=True)
    bad.write_bytes(drawn[0].read_bytes()[:2000])
    kills = plan_of_kills(given.kills, given.seed)
    found = run(folder / "line", lab.quick_bundle(SIZE), [*drawn, bad], given.images, kills)
    print(found.figures())
    record("watch_kills", {"asked_for": given.kills, "seed": given.seed} | found.figures())


if __name__ == "__main__":
    main()
