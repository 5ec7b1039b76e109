"""`docs/own-data.md` as a newcomer follows it: every line of its shell blocks, in order, in one folder.

Images are drawn into the folders that the page shows, in 16-bit files of 12 bits. The settings are the page's own, with
few steps of training laid over them. Lines of other documents are parsed by the tool, in
`tests/contracts/test_documents.py`.
"""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from sbdzsl import bundle as bundles
from sbdzsl import cli
from sbdzsl.datasets import synthetic
from tests.conftest import SMALL
from tests.contracts.test_documents import ROOT, shell_lines

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PAGE = (ROOT / "docs" / "own-data.md").read_text(encoding="utf-8")


def photograph(surface: str, index: int, defect_share: float) -> tuple[synthetic.DrawnImage, bytes]:
    """A drawn image, and its file as a camera of 12 bits writes it."""
    drawn = synthetic.draw_image(surface, index, size=128, seed=3, defect_share=defect_share)
    return drawn, cv2.imencode(".png", drawn.pixels.astype(np.uint16) * 16)[1].tobytes()


def write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def fill(folder: Path) -> None:
    """The images of the page: two surfaces with a mask for every other defect, and an archive with a third surface."""
    for surface in ("brushed_steel", "cast_iron"):
        own = folder / "my_images" / surface
        for index in range(40):
            drawn, file = photograph(surface, index, defect_share=0.25)
            write(own / ("defect" if drawn.defective else f"benign/lot{index % 8}") / f"{index:04d}.png", file)
            if drawn.defective and index % 2:
                write(own / "masks" / f"{index:04d}.png", cv2.imencode(".png", drawn.mask * np.uint8(255))[1].tobytes())
    for surface, first, number in (("brushed_steel", 40, 6), ("cast_iron", 60, 6), ("woven_fabric", 100, 12)):
        for index in range(first, first + number):
            write(folder / "archive" / f"{index:04d}.png", photograph(surface, index, defect_share=0.0)[1])


def test_the_page_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    torch.set_num_threads(1)
    fill(tmp_path)
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    settings = yaml.safe_load(block)
    settings["router"] = SMALL.router.model_dump()
    settings["detector"]["epochs"] = SMALL.detector.epochs
    Path("settings.yaml").write_text(yaml.safe_dump(settings))

    said: dict[str, str] = {}
    for line in shell_lines(PAGE):
        tool, *words = shlex.split(line)
        assert (tool, cli.main(words)) == ("sbdzsl", 0), f"{line}: {capsys.readouterr().err}"
        said[line] = capsys.readouterr().out
        for option, out in itertools.pairwise(words):
            if option in {"--out", "--bundle", "--report", "--overlay"}:
                assert Path(out).exists(), f"{line}: no {out}"

    outputs = re.findall(r"`((?:bundle|evaluation|audit|groups)/[\w./-]+)`", PAGE)
    assert len(outputs) > 4
    assert [name for name in outputs if not Path(name).exists()] == []
    assert len(list(Path("overlays").glob("*.png"))) == 2
    # A new product is strange to the first bundle, and known to the one that learnt it.
    before, after = (
        next(text for line, text in said.items() if line.endswith(end)) for end in ("overlays", "bundle_2")
    )
    assert "archive/0104.png: UNSEEN" in before
    assert "woven_fabric" in after
    assert bundles.load("bundle").settings.image.bit_depth == 12
