"""How long it takes from sending an image until an operator sees its verdict and its picture.

    python benchmarks/page_latency.py        a service and Chromium on this machine, two minutes

Service, camera and browser share the machine and its clock. A verdict counts as seen in the first frame that the
browser draws with its word in the tile, a picture in the first frame after it is decoded; the answer is the client's.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import audit_lab as lab
import httpx2
from browser import browser, require_chromium, until
from record import record
from selenium.webdriver.remote.webdriver import WebDriver
from serving_process import serving

from sbdzsl import lake

SIZE, STUDY = 256, "page_latency"

_WATCH = """
window.seen = { verdict: {}, picture: {} };
const now = () => (performance.timeOrigin + performance.now()) / 1000;
(function look() {
  const id = document.querySelector("#tile").dataset.event;
  const image = document.querySelector("#picture img");
  if (id && !(id in seen.verdict)) seen.verdict[id] = now();
  if (id && image?.complete && image.naturalWidth && image.src.includes(`/${id}/`) && !(id in seen.picture)) {
    seen.picture[id] = now();
  }
  requestAnimationFrame(look);
})();
"""


def measure(driver: WebDriver, url: str, images: list[bytes], pause_s: float) -> dict[str, list[float]]:
    """Milliseconds from the start of each request to answer, verdict and picture."""
    driver.get(url)
    until(lambda: "Connected" in driver.find_element("id", "foot").text, 30)
    driver.execute_script(_WATCH)
    sent: dict[str, float] = {}
    answered = []
    with httpx2.Client(base_url=url, timeout=30) as client:
        for number, image in enumerate(images):
            started = time.time()
            answer = client.post("/v1/inspect", content=image, params={"camera": "c1", "sequence": number}).json()
            answered.append((time.time() - started) * 1e3)
            sent[str(answer["event_id"])] = started
            time.sleep(pause_s)
    time.sleep(2)
    seen = driver.execute_script("return window.seen")
    found = {kind: [(seen[kind][one] - at) * 1e3 for one, at in sent.items() if one in seen[kind]] for kind in seen}
    return {"answer": answered} | found


def figures(times: dict[str, list[float]], num_images: int, pause_s: float) -> dict[str, Any]:
    """Percentiles in ms, and how many of the images were seen at all."""
    rows = {}
    for kind, values in times.items():
        cuts = statistics.quantiles(values, n=100, method="inclusive")
        rows[kind] = {"seen": len(values), "p50_ms": round(cuts[49], 1), "p99_ms": round(cuts[98], 1),
                      "max_ms": round(max(values), 1)}  # fmt: skip
        print(
            f"{kind:8} {len(values):4} seen   p50 {cuts[49]:7.1f} ms   p99 {cuts[98]:7.1f} ms   max {max(values):7.1f}"
        )
    return {"num_images": num_images, "size_px": SIZE, "pause_s": pause_s, **rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=120)
    parser.add_argument("--pause", type=float, default=0.4, help="seconds between an answer and the next image")
    options = parser.parse_args()
    require_chromium()
    manifest = lake.read_manifest(str(lab.image_manifest(lab.drawn_lake(160, SIZE, seed=3)))).to_pylist()
    files = [Path(row["uri"]).read_bytes() for row in manifest if row["split"] == "test"]
    images = [files[number % len(files)] for number in range(options.images)]
    with tempfile.TemporaryDirectory() as folder:
        data, profile = Path(folder) / "data", Path(folder) / "profile"
        with serving(str(lab.quick_bundle(SIZE)), data, {}) as server, browser(profile) as driver:
            times = measure(driver, server.url, images, options.pause)
    record(STUDY, figures(times, options.images, options.pause))


if __name__ == "__main__":
    main()
