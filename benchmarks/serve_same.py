"""Is a verdict over HTTP the audit's? The same 500 files by `sbdzsl audit` and by each shape of the service.

    python benchmarks/serve_same.py      some minutes

All fields are compared but those that tell when, where and how long.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import audit_lab as lab
import serve_lab
from record import record

SIZE, NUM_FILES = 256, 500
PASSING = {"image_id", "uri", "modified_at", "inspected_at", "decode_ms", "route_ms", "detect_ms"}


def the_same(one: Any, other: Any) -> bool:
    """Equal to the bit; the audit's table keeps some fields as 32-bit floats."""
    if isinstance(one, float) and isinstance(other, float):
        return one == other or math.isclose(one, other, rel_tol=1e-6)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(the_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(the_same(one[key], other[key]) for key in one)
    return one == other


def compare(rows: dict[str, dict[str, Any]], running: serve_lab.Server, files: list[Path]) -> dict[str, Any]:
    """Files whose answers differ from the audit's rows in any field."""
    differing: dict[str, int] = {}
    verdicts: dict[str, int] = {}
    with running.client() as client:
        for file in files:
            _, body = client.post(file.read_bytes())
            answer = json.loads(body)
            answer = answer.get("verdict") if isinstance(answer.get("verdict"), dict) else answer
            row = rows[file.name]
            verdicts[answer["verdict"]] = verdicts.get(answer["verdict"], 0) + 1
            for name in row.keys() - PASSING:
                if not the_same(row[name], answer[name]):
                    differing[name] = differing.get(name, 0) + 1
    return {"files": len(files), "verdicts": verdicts, "fields_that_differ": differing}


def main() -> None:
    """Audit the files, send them to each shape, compare and record."""
    folder = lab.KEPT / "same"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "files").mkdir(parents=True)
    bundle = lab.quick_bundle(SIZE, crop_px=128)
    pictures = serve_lab.pictures(SIZE, NUM_FILES - 20)
    whole = pictures[0]
    broken = [whole[: 500 * (number + 1)] for number in range(10)] + [bytes([number]) * 100 for number in range(10)]
    for number, content in enumerate(pictures + broken):
        (folder / "files" / f"{number:04d}.png").write_bytes(content)
    files = sorted((folder / "files").iterdir())
    words = lab.audit_command(bundle, folder / "out", "--lake", str(folder / "files"))
    subprocess.run(words, env=lab.environment(), check=True, capture_output=True)
    rows = {Path(row["uri"]).name: row for row in lab.rows_of(folder / "out").to_dicts()}
    figures = {}
    for shape in ("process", "fused", "routed"):
        more = ["--shape", shape] + (["--proxy", "ray"] if shape != "process" else [])
        with serve_lab.serving(bundle, *more) as running:
            figures[shape] = compare(rows, running, files)
        print(shape, figures[shape], flush=True)
    record("serve_same", {"shapes": figures})


if __name__ == "__main__":
    main()
