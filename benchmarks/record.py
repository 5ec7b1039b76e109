"""One result file a study: what was run, where, with what, and what came out."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def shared_data() -> Path:
    """The folder of real images, or an exit that says how to name it."""
    folder = Path(os.environ.get("SBDZSL_SHARED", "../shared")).resolve() / "data"
    if not folder.is_dir():
        sys.exit(f"no real images at {folder}: set SBDZSL_SHARED to the folder that holds data/")
    return folder


def record(study: str, figures: dict[str, Any]) -> None:
    """Write `benchmarks/results/<study>.json`."""
    where = origin()
    row = {
        "study": study,
        "command": f"python benchmarks/{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}".strip(),
        "date": where["date"],
        "commit": where["commit"],
        "machine": {"processor": where["processor"], "cpus": os.cpu_count(), "python": platform.python_version()},
        "versions": {name: version(name) for name in ("torch", "ray", "opencv-python-headless", "numpy")},
        "figures": figures,
    }
    RESULTS.mkdir(exist_ok=True)
    target = RESULTS / f"{study}.json"
    target.write_text(json.dumps(row, indent=2, allow_nan=False) + "\n")
    print(f"-> {target}")


def origin() -> dict[str, str | None]:
    """When, of which commit and on what processor something is measured."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "commit": commit.stdout.strip() or None,
        "processor": _processor(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
