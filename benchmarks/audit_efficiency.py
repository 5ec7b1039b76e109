"""What the audit adds to judging: its images/s beside bare loops, its start-up, and what a user would write instead.

    python benchmarks/audit_efficiency.py                 three repeats, some ten minutes on two cores
    python benchmarks/audit_efficiency.py --repeats 1     a look

In a repeat all contestants take turns with the same bundle on the same 512 x 512 images: bare loops before and after
the audit, so that a machine that others use as well slows all alike; ratios are formed within a repeat, medians over
repeats. Contestants:

    loop       one process, `Inspector.judge` in a loop, as many torch threads as the audit has in all
    loops      as many such processes as the audit has actors, one thread each: what no scheduling can beat
    decode     the same processes, reading and decoding alone
    audit      `sbdzsl audit`
    program    `ray.data.read_images(...).map_batches(...).write_parquet(...)`, as a user of Ray Data would write it
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import audit_lab as lab
import polars as pl
from record import record

SIZE, NUM_IMAGES = 512, 2000
#: Images of a bare loop, and of the program: enough seconds to speak of a rate.
NUM_LOOP, NUM_PROGRAM = 400, 1200
GOALS = {"audit_to_loop": 0.95, "audit_to_loops": 0.95, "audit_to_program": 1.5, "start_up_s": 15.0}


def bare_loop(manifest: str, threads: int, first: int, step: int, task: str) -> None:
    """In a process of its own: say "ready", wait for a line, judge (or decode) and print images and seconds."""
    import torch

    from sbdzsl import bundle, image, lake
    from sbdzsl.inspector import Inspector

    torch.set_num_threads(threads)
    inspector = Inspector(bundle.load(str(lab.quick_bundle(SIZE))))
    settings = inspector.bundle.settings.image
    rows = lake.read_manifest(manifest).to_pylist()[first::step][:NUM_LOOP]
    for row in rows[:20]:
        inspector.judge(row["image_id"], row["uri"], row["bit_depth"])
    print("ready", flush=True)
    sys.stdin.readline()
    started = time.perf_counter()
    for row in rows:
        if task == "decode":
            image.decode(lake.read_bytes(row["uri"], settings.max_bytes), settings, row["bit_depth"])
        else:
            inspector.judge(row["image_id"], row["uri"], row["bit_depth"])
    print(json.dumps([len(rows), time.perf_counter() - started]), flush=True)


def run_loops(manifest: Path, processes: int, threads: int, task: str = "judge") -> float:
    """Images/s of that many bare loops side by side."""
    step = NUM_IMAGES // NUM_LOOP
    running = []
    for first in range(processes):
        words = ["--loop", str(manifest), str(threads), str(first), str(step), task]
        running.append(
            subprocess.Popen(
                [sys.executable, __file__, *words],
                env=lab.environment(OMP_NUM_THREADS=str(threads)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    found = [json.loads(process.communicate()[0]) for process in running]
    return sum(count for count, _ in found) / max(seconds for _, seconds in found)


def timed_audit(timeline: str, words: list[str]) -> int:
    """In a process of its own: the command line, with the times of its large steps written to a file."""
    marks = {"python": time.time()}
    import ray

    import sbdzsl.cluster.audit  # noqa: F401  what the verb imports
    from sbdzsl.cli import main

    marks["imported"] = time.time()

    def marked(name: str) -> None:
        call = getattr(ray, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            marks.setdefault(f"{name} begins", time.time())
            try:
                return call(*args, **kwargs)
            finally:
                marks[f"{name} ends"] = time.time()

        setattr(ray, name, timed)

    marked("init")
    marked("shutdown")
    code = main(words)
    marks["end"] = time.time()
    Path(timeline).write_text(json.dumps(marks))
    return code


def run_audit(manifest: Path, actors: int) -> dict[str, Any]:
    """One audit: its steady rate, its start-up in parts, memory."""
    out = lab.KEPT / "efficiency"
    shutil.rmtree(out, ignore_errors=True)
    timeline = lab.KEPT / "timeline.json"
    words = lab.audit_command(lab.quick_bundle(SIZE), out, "--manifest", str(manifest))[3:]
    begun = time.time()
    process = subprocess.Popen(
        [sys.executable, __file__, "--audit", str(timeline), *words], env=lab.environment(), stdout=subprocess.DEVNULL
    )
    with lab.Watch(process.pid, every_s=0.25) as watch:
        code = process.wait()
    assert code == 0, f"the audit ended with {code}"
    marks = json.loads(timeline.read_text())
    parts = lab.times_of_parts(out)
    rate = lab.steady_rate(parts, edge=actors)
    # A shard is begun by one actor, which has its share of the rate.
    first_begun = parts[0][0] - parts[0][1] * actors / rate
    init = marks["init ends"] - marks["init begins"]
    actor_seen = min(max(watch.first_seen.get("actor", first_begun), marks["init ends"]), first_begun)
    split = {
        "import_s": marks["imported"] - begun,
        "before_ray_s": marks["init begins"] - marks["imported"],
        "actor_process_s": actor_seen - marks["init ends"],
        "actor_import_and_bundle_s": first_begun - actor_seen,
    }
    return {
        "images_per_second": round(rate, 2),
        "start_up_beyond_init_s": round(first_begun - begun - init, 2),
        **{name: round(value, 2) for name, value in split.items()},
        "ray_init_s": round(init, 2),
        "shutdown_s": round(marks["shutdown ends"] - marks["shutdown begins"], 2),
        "proof_and_report_s": round(marks["end"] - marks["shutdown ends"], 2),
        "wall_s": round(marks["end"] - begun, 2),
        "peak_mb": watch.peaks,
    }


def program(folder: str, out: str, actors: int, cpus: float) -> None:
    """In a process of its own: what a user of Ray Data would write, reading and judging as two stages."""
    import ray
    import ray.data

    from sbdzsl import bundle
    from sbdzsl.image import Image
    from sbdzsl.inspector import Inspector, Loaded

    url = str(lab.quick_bundle(SIZE))

    class Judge:
        def __init__(self) -> None:
            self.inspector = Inspector(bundle.load(url))

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            verdicts = []
            for path, pixels in zip(batch["path"], batch["image"], strict=True):
                image = Image(pixels, 255.0, 8, "png", "")
                verdicts.append(
                    self.inspector.decide(Loaded(path, path, image, image.appearance(), None, 0.0, None, None))
                )
            return {
                "image_id": batch["path"],
                "verdict": [one.verdict for one in verdicts],
                "defect_score": [one.defect_score or 0.0 for one in verdicts],
                "done_at": [time.time()] * len(verdicts),
            }

    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="error")
    (
        ray.data.read_images(folder, include_paths=True)
        .map_batches(Judge, batch_size=32, compute=ray.data.ActorPoolStrategy(size=actors), num_cpus=cpus)
        .write_parquet(out)
    )


def run_program(images: Path, actors: int, cpus: float) -> dict[str, float]:
    """One run of the program: its steady rate and how long it took in all."""
    out = lab.KEPT / "program"
    shutil.rmtree(out, ignore_errors=True)
    words = ["--program", str(images), str(out), str(actors), str(cpus)]
    begun = time.time()
    subprocess.run(
        [sys.executable, __file__, *words],
        env=lab.environment(),
        check=True,
        timeout=600,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    rows = pl.read_parquet(out / "*.parquet").group_by("done_at").len().sort("done_at")
    assert rows["len"].sum() == NUM_PROGRAM
    rate = lab.steady_rate(rows.rows(), edge=max(2, actors))
    return {"images_per_second": round(rate, 2), "wall_s": round(time.time() - begun, 2)}


def flat_folder(manifest: Path) -> Path:
    """The program's images as links in one folder: `read_images` would take masks for images."""
    folder = lab.KEPT / "program-images"
    if not folder.exists():
        folder.mkdir(parents=True)
        uris = pl.read_parquet(manifest)["uri"].to_list()
        for index in range(NUM_PROGRAM):
            os.link(uris[index * len(uris) // NUM_PROGRAM], folder / f"{index:05d}.png")
    return folder


def one_repeat(manifest: Path, images: Path, actors: int) -> dict[str, Any]:
    """All contestants once, in turn."""
    before = [run_loops(manifest, 1, actors), run_loops(manifest, actors, 1)]
    audit = run_audit(manifest, actors)
    after = [run_loops(manifest, actors, 1), run_loops(manifest, 1, actors)]
    # Reading is a stage of its own there and needs a CPU: all CPUs but one are left to actors. `packed` gives actors
    # half a CPU each, so that all CPUs judge: what one does who knows Ray Data's scheduler.
    plain, packed = run_program(images, max(1, actors - 1), 1.0), run_program(images, actors, 0.5)
    again = run_loops(manifest, actors, 1)
    loop, loops, loops_later = (before[0] + after[1]) / 2, (before[1] + after[0]) / 2, (after[0] + again) / 2
    # Each as a share of the bare loops right before and after it, so that the machine's other work cancels out.
    share = audit["images_per_second"] / loops
    row = {
        "loop_per_second": [round(before[0], 2), round(after[1], 2)],
        "loops_per_second": [round(value, 2) for value in (before[1], after[0], again)],
        "decode_per_second": round(run_loops(manifest, actors, 1, "decode"), 1),
        "audit": audit,
        "program": plain,
        "packed_program": packed,
        "audit_to_loop": audit["images_per_second"] / loop,
        "audit_to_loops": share,
        "audit_to_program": share / (plain["images_per_second"] / loops_later),
        "audit_to_packed_program": share / (packed["images_per_second"] / loops_later),
    }
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()}


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    actors = os.cpu_count() or 1
    lab.quick_bundle(SIZE)
    manifest = lab.image_manifest(lab.drawn_lake(NUM_IMAGES, SIZE))
    images = flat_folder(manifest)
    rows = []
    for _ in range(repeats):
        rows.append(one_repeat(manifest, images, actors))
        print(json.dumps(rows[-1], indent=1), flush=True)
    ratios = ("audit_to_loop", "audit_to_loops", "audit_to_program", "audit_to_packed_program")
    medians = {name: round(statistics.median(row[name] for row in rows), 3) for name in ratios}
    medians["start_up_s"] = statistics.median(row["audit"]["start_up_beyond_init_s"] for row in rows)
    print(medians, "goals:", GOALS)
    record(
        "audit_efficiency",
        {"images": NUM_IMAGES, "side": SIZE, "actors": actors, "goals": GOALS, "medians": medians, "repeats": rows},
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--loop"]:
        bare_loop(sys.argv[2], *(int(word) for word in sys.argv[3:6]), sys.argv[6])
    elif sys.argv[1:2] == ["--audit"]:
        sys.exit(timed_audit(sys.argv[2], sys.argv[3:]))
    elif sys.argv[1:2] == ["--program"]:
        program(sys.argv[2], sys.argv[3], int(sys.argv[4]), float(sys.argv[5]))
    else:
        main()
