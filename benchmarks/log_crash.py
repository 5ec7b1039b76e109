"""Kill a service under load, again and again: is every alarm that it answered in its verdict log, once?

    python benchmarks/log_crash.py                20 kills of one service with one data folder, some minutes
    python benchmarks/log_crash.py --kills 5 --seed 2

Kills are SIGKILL, at seeded moments of the load, of a real `sbdzsl serve`; the next one starts on what the last left.
Lost are answers that a client got whole and that the log lacks after the last start.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import audit_lab as lab
from record import record
from serving_process import Load, serving

from sbdzsl import lake
from sbdzsl.serving.log import read_log

SIZE, NUM_IMAGES, CLIENTS = 256, 120, 4
KEEP = {"log_seconds": 0.5, "good_share": 0.05}
STUDY = "log_crash"


def images_to_send() -> list[bytes]:
    """Drawn images of seen surfaces and of an unseen one, and some that are none."""
    manifest = lake.read_manifest(str(lab.image_manifest(lab.drawn_lake(160, SIZE, seed=3)))).to_pylist()
    found = [Path(row["uri"]).read_bytes() for row in manifest if row["split"] == "test"][:NUM_IMAGES]
    random.Random(0).shuffle(found)
    return [*found, b"", b"\x89PNG\r\n\x1a\n no image"]


def lives(kills: int, seed: int, data: Path) -> list[tuple[float, list[dict[str, Any]]]]:
    """Of each start that was killed: seconds until it was ready, and the answers that it gave."""
    draw, images, found = random.Random(seed), images_to_send(), []
    for number in range(kills):
        started = time.monotonic()
        with serving(str(lab.quick_bundle(SIZE)), data, KEEP) as server:
            ready = time.monotonic() - started
            load = Load(server, images, CLIENTS)
            until, moment = draw.randint(20, 150), draw.uniform(0, 0.05)
            while len(load.answers) < until:
                time.sleep(0.001)
            time.sleep(moment)
            server.kill()
            load.join()
        found.append((ready, load.answers))
        print(f"kill {number + 1}: {len(load.answers)} answers", flush=True)
    return found


def figures(found: list[tuple[float, list[dict[str, Any]]]], data: Path) -> dict[str, Any]:
    """What the log has of the answers."""
    rows = read_log(str(data / "log")).select("journal", "event_id", "request_id").collect()
    logged = set(rows["request_id"])
    answers = [answer for _, given in found for answer in given]
    alarms = [answer for answer in answers if answer["verdict"] != "good"]
    kept = {path.name for path in data.glob("images/alarm/*/*")}
    lost_of_a_kill = [sum(answer["request_id"] not in logged for answer in given) for _, given in found]
    return {
        "kills": len(found),
        "answers": len(answers),
        "verdicts": dict(Counter(answer["verdict"] for answer in answers)),
        "alarms_lost": sum(answer["request_id"] not in logged for answer in alarms),
        "alarm_images_lost": sum(answer["image_id"] not in kept for answer in alarms),
        "good_lost": sum(lost_of_a_kill),
        "good_lost_of_one_kill_at_most": max(lost_of_a_kill),
        "rows": len(rows),
        "rows_doubled": len(rows) - rows.select("journal", "event_id").n_unique(),
        "parts": len(list(data.glob("log/*/*.parquet"))),
        "seconds_to_ready_median": round(statistics.median(ready for ready, _ in found), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    data = lab.KEPT.parent / "log_crash" / "data"
    shutil.rmtree(data, ignore_errors=True)
    data.parent.mkdir(parents=True, exist_ok=True)
    found = lives(given.kills, given.seed, data)
    with serving(str(lab.quick_bundle(SIZE)), data, KEEP) as server:
        server.stop()
    row = figures(found, data)
    print(row)
    record(STUDY, row)
    if row["alarms_lost"] or row["alarm_images_lost"] or row["rows_doubled"]:
        raise SystemExit("an answered alarm is lost, or a row is doubled")


if __name__ == "__main__":
    main()
