"""Which surfaces the router confuses: a table in results/sbad_gallery.json, and pictures in a folder of yours.

    SBDZSL_SHARED=../shared python benchmarks/sbad_gallery.py --out gallery     three minutes

Over the random splits of `sbad_gzsl.py`, at the 5 % budget under the plain promise: images of unseen surfaces that pass
as a seen one, and images of seen surfaces that are called unseen. Each picture shows such an image beside the nearest
training image. The public images have licences of their own, so the pictures are not kept in the repository.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import sbad_gzsl
from record import record

from sbdzsl.calibration import conformal_threshold
from sbdzsl.config import ImageSettings
from sbdzsl.inspector import load_image
from sbdzsl.sbad.gate import fit_gate

BUDGET, SPLITS, ROWS = 0.05, 20, 12


@dataclass(frozen=True, slots=True)
class Mistake:
    """Image `file` of `surface`, nearest to image `nearest` of the seen surface `taken_for`, at `score`."""

    file: str
    surface: str
    taken_for: str
    nearest: str
    score: float


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    out = parser.parse_args(argv).out
    out.mkdir(parents=True, exist_ok=True)
    sbad_gzsl.start_worker()
    passed: list[Mistake] = []
    flagged: list[Mistake] = []
    tested: Counter[str] = Counter()
    unseen: Counter[str] = Counter()
    for seed in range(SPLITS):
        for mistakes, found in zip((passed, flagged), mistakes_of(seed, tested, unseen), strict=True):
            mistakes += found
    through = Counter((one.surface, one.taken_for) for one in passed)
    alarms = Counter(one.surface for one in flagged)
    pairs = [
        {"unseen": unknown, "passes as": seen, "images": count, "of": unseen[unknown]}
        for (unknown, seen), count in through.most_common()
    ]
    called = [{"surface": name, "called unseen": count, "of": tested[name]} for name, count in alarms.most_common()]
    for row in [*pairs[:ROWS], *called[:ROWS]]:
        print(row)
    draw(sorted(passed, key=lambda one: one.score)[:ROWS], "passed, though unseen", out / "passed.png")
    draw(sorted(flagged, key=lambda one: -one.score)[:ROWS], "called unseen, though seen", out / "flagged.png")
    record("sbad_gallery", {"budget": BUDGET, "splits": SPLITS, "passed": pairs, "called unseen": called})
    return 0


def mistakes_of(seed: int, tested: Counter[str], unseen: Counter[str]) -> tuple[list[Mistake], list[Mistake]]:
    """Unseen images that pass and seen ones that do not, of one split; counts what was judged."""
    data = sbad_gzsl._data
    split = sbad_gzsl.random_split(data.surfaces, seed)
    t = sbad_gzsl.training(split, split.known)
    fitted = fit_gate(t.features, t.labels, sbad_gzsl.SETTINGS, t.groups)
    gate, threshold = fitted.gate, conformal_threshold(np.sort(fitted.threshold_scores), BUDGET)
    tested.update(split.names[split.test].tolist())
    unseen.update(split.names[split.unseen].tolist())
    found: tuple[list[Mistake], list[Mistake]] = ([], [])
    for of, images, is_mistake in ((0, split.unseen, np.less_equal), (1, split.test, np.greater)):
        for i in images:
            distances = gate.distances(data.clean[i])
            k = int(distances.argmin())
            if is_mistake(distances[k], threshold):
                own = split.known[t.labels == k]
                apart = np.linalg.norm(gate.images_of(k) - gate.project(data.clean[i]), axis=1)
                nearest = data.files[own[apart.argmin()]]
                names = str(data.files[i]), str(split.names[i]), split.seen[k], str(nearest)
                found[of].append(Mistake(*names, float(distances[k] / threshold)))
    return found


def draw(mistakes: list[Mistake], title: str, file: Path) -> None:
    """Each mistake beside the nearest training image."""
    figure, axes = plt.subplots(4, 6, figsize=(15, 11), layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for number, one in enumerate(mistakes):
        for axis, uri, words in (
            (axes.flat[2 * number], one.file, f"{one.surface}\n{one.score:.2f} of the limit"),
            (axes.flat[2 * number + 1], one.nearest, f"nearest: {one.taken_for}\n"),
        ):
            image = load_image("", uri, ImageSettings()).image
            assert image is not None
            axis.imshow(image.grey()[:256, :256], cmap="gray", vmin=0, vmax=1)
            axis.set_title(words, fontsize=8)
    figure.suptitle(title)
    figure.savefig(file, dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
