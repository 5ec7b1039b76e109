"""Kill the service and the watch while a camera writes: has each image its verdict, once, and the right one?

    python benchmarks/watch_kills.py                  1,000 images, 30 kills: ten minutes
    python benchmarks/watch_kills.py --images 60 --kills 4

Kills are SIGKILL, at seeded moments, of `sbdzsl serve`, of `sbdzsl watch`, or of both at once; what was killed is
started again at once by the same words. Four in five are dealt at work, after a verdict since the kill before, others
soon after it, mostly while what was killed still starts. After each kill the camera writes a batch of images, half of
them in place with a pause in the middle, half renamed into place. What the watch wrote is compared with the verdicts of
an inspector in this process, and the answers in the service's journal are counted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import audit_lab as lab
from record import record
from serving_process import free_port

from sbdzsl import bundle as bundles
from sbdzsl.client import InspectionClient
from sbdzsl.inspector import Inspector, load_image
from sbdzsl.serving.journal import stored_events

KINDS = ("service", "watch", "both")
WEIGHTS = (0.35, 0.45, 0.2)
SIZE = 256
#: Of a kill at work, after the first new verdict, and of one at the start, after the kill before it.
MAX_WAIT_S, MAX_WAIT_AT_START_S = 1.0, 4.0
#: Longer than the watch takes between two looks, shorter than it lets a file settle.
HALF_WRITTEN_S = 0.2
#: What a verdict says that does not depend on who judged and when.
SAME = ("verdict", "surface", "unseen_score", "defect_score", "defect_threshold", "regions", "error_code")


@dataclass
class Found:
    """What kills did."""

    images: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    kills_at_work: Counter[str] = field(default_factory=Counter)  # verdicts had come since the kill before, more waited
    starts: Counter[str] = field(default_factory=Counter)
    lines: int = 0
    lost: int = 0
    doubled: int = 0
    different: int = 0  # from the verdict of an inspector in this process
    not_put_away: int = 0
    changed: int = 0  # files in done/ and failed/ that are not byte for byte what the camera wrote
    # Of the service's journal, which does not wait for the disk with answers `good`: a kill of the service may cost the
    # last of them.
    events: int = 0
    events_doubled: int = 0  # verdict lines that name the same event as another line
    exit_code: int | None = None  # of the watch, told to end by SIGTERM
    seconds: float = 0.0
    verdicts: Counter[str] = field(default_factory=Counter)

    def figures(self) -> dict[str, Any]:
        """As JSON."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


class Camera:
    """Writes copies of the images into a folder, in batches, each by a thread of its own."""

    def __init__(self, folder: Path, images: Sequence[bytes]) -> None:
        self.written: dict[str, bytes] = {}
        self._folder, self._images = folder, images
        self._thread = threading.Thread(target=self._write, args=(0,))
        self._thread.start()

    def begin(self, count: int) -> None:
        """Begin to write so many more, when those before are written."""
        self.wait()
        self._thread = threading.Thread(target=self._write, args=(count,))
        self._thread.start()

    def wait(self) -> None:
        """Until all are written."""
        self._thread.join()

    def _write(self, count: int) -> None:
        for number in range(len(self.written), len(self.written) + count):
            name, content = f"image_{number:05d}.png", self._images[number % len(self._images)]
            self.written[name] = content
            if number % 2:
                temporary = self._folder / f"{name}.tmp"
                temporary.write_bytes(content)
                temporary.rename(self._folder / name)
                continue
            with (self._folder / name).open("wb") as file:
                file.write(content[: len(content) // 2])
                file.flush()
                time.sleep(HALF_WRITTEN_S)
                file.write(content[len(content) // 2 :])


class Line:
    """A service and a watch, as processes that can be killed and started again."""

    def __init__(self, folder: Path, bundle: Path | str) -> None:
        self.inbox, self.data = folder / "in", folder / "data"
        self.inbox.mkdir(parents=True)
        port = free_port()
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

    def num_verdicts(self) -> int:
        """Lines that the watch has written."""
        with contextlib.suppress(FileNotFoundError):
            return (self.inbox / "verdicts.jsonl").read_bytes().count(b"\n")
        return 0

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


@dataclass(frozen=True)
class Kill:
    """What is killed, at work or at the start, and the seconds to wait first."""

    kind: str
    at_work: bool
    wait_s: float


def run(folder: Path, bundle: Path | str, images: Sequence[Path], count: int, kills: Sequence[Kill]) -> Found:
    """Write `count` images in as many batches as there are kills and one more, deal the kills; then check."""
    line = Line(folder, bundle)
    try:
        line.start("service")
        line.start("watch")
        began = time.monotonic()
        camera = Camera(line.inbox, [image.read_bytes() for image in images])
        for kill in kills:
            camera.begin(count // (len(kills) + 1))
            _deal(line, kill)
        camera.begin(count - count // (len(kills) + 1) * len(kills))
        camera.wait()
        _until(lambda: not line.images_left())
        line.found.seconds = round(time.monotonic() - began, 1)
        line.end()
    finally:
        line.close()
    _check(line, camera.written, _truth(bundle, images))
    return line.found


def _deal(line: Line, kill: Kill) -> None:
    before = line.num_verdicts()
    if kill.at_work:
        _until(lambda: line.num_verdicts() > before)
    time.sleep(kill.wait_s)
    line.found.kills_at_work[kill.kind] += line.num_verdicts() > before and line.images_left() > 0
    line.kill(kill.kind)


def _until(is_so: Callable[[], bool]) -> None:
    began = time.monotonic()
    while not is_so():
        assert time.monotonic() - began < 600, "nothing moves"
        time.sleep(0.02)


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
    found.events = len(stored_events(str(line.data), "verdict"))


def plan_of_kills(num_kills: int, seed: int) -> list[Kill]:
    """Kinds, moments and waits, drawn by a seed."""
    rng = random.Random(seed)
    kills = []
    for _ in range(num_kills):
        at_work = rng.random() < 0.8
        wait_s = rng.uniform(0, MAX_WAIT_S if at_work else MAX_WAIT_AT_START_S)
        kills.append(Kill(rng.choices(KINDS, WEIGHTS)[0], at_work, wait_s))
    return kills


def main() -> None:
    """Run, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=30)
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
