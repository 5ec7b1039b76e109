"""The drawn lake: the same bytes always, DAGM's layout, and defects that no trivial detector finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from drawn_lake import trivial_precision

from sbdzsl import image
from sbdzsl.datasets import ingest
from sbdzsl.datasets.sample import load_mask
from sbdzsl.datasets.synthetic import SIXTEEN_BIT, SURFACES, draw_image, is_defective, write_lake
from sbdzsl.errors import ConfigError, LakeError

# Measured: benchmarks/results/drawn_lake.json; chance is 0.15.
TRIVIAL_AP_BOUND = 0.4


def tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_images_differ_by_surface_index_and_seed_and_repeat_otherwise() -> None:
    base = draw_image("leather", 3, 64, seed=1).pixels
    assert np.array_equal(base, draw_image("leather", 3, 64, seed=1).pixels)
    for other in (
        draw_image("leather", 4, 64, seed=1),
        draw_image("leather", 3, 64, seed=2),
        draw_image("cast_iron", 3, 64, seed=1),
    ):
        assert not np.array_equal(base, other.pixels)


@pytest.mark.parametrize("surface", SURFACES)
def test_defects_lie_in_their_ellipse_and_are_10_to_60_px_long(surface: str) -> None:
    defective = [k for k in range(60) if is_defective(surface, k)][:8]
    for k in defective:
        flawed, sound = draw_image(surface, k, 160), draw_image(surface, k, 160, defect_share=0)
        assert flawed.defective
        assert not sound.defective
        assert not sound.mask.any()
        white = 65535 if surface in SIXTEEN_BIT else 255
        change = np.abs(flawed.pixels.astype(float) - sound.pixels) / white
        assert change[flawed.mask].max() > 0.05
        assert change[flawed.mask].sum() > 0.75 * change[change > 0.02].sum()
        rows, columns = np.nonzero(flawed.mask)
        longest = max(np.ptp(rows), np.ptp(columns)) + 1
        assert 10 <= longest <= 75
        assert flawed.pixels.dtype == (np.uint16 if surface in SIXTEEN_BIT else np.uint8)


def test_the_share_of_defects_holds_for_any_run_of_images() -> None:
    for surface in SURFACES:
        assert sum(is_defective(surface, k) for k in range(1000)) in range(148, 153)
        assert sum(is_defective(surface, k) for k in range(200, 300)) in range(13, 18)
        assert sum(is_defective(surface, k, 0.5) for k in range(0, 200, 2)) in range(47, 54)


def test_trivial_detectors_fail() -> None:
    found = trivial_precision(num_images=80, seed=3)
    assert found.mean(axis=0).max() < TRIVIAL_AP_BOUND, found.round(2)


def test_a_lake_is_read_by_the_dagm_reader_and_holds_nothing_else(tmp_path: Path) -> None:
    lake = write_lake(
        str(tmp_path / "lake"), 45, seed=2, surfaces=["leather", "perforated_sheet"], size=64, processes=1
    )
    assert lake.num_images == {"leather": 23, "perforated_sheet": 22}
    samples = ingest("dagm", str(tmp_path / "lake")).samples
    assert len(samples) == 45
    assert {s.surface for s in samples} == {"leather", "perforated_sheet"}
    for surface, number in lake.num_defective.items():
        defects = [s for s in samples if s.surface == surface and s.label == "defect"]
        assert len(defects) == number > 0
        mask = load_mask(defects[0], (64, 64))
        assert mask is not None
        drawn = draw_image(surface, int(Path(defects[0].uri).stem) - 1, 64, seed=2)
        assert np.array_equal(mask, drawn.mask)
    for name, data in tree(tmp_path / "lake").items():
        if name.endswith(".PNG"):
            decoded = image.decode(data)
            is_deep = name.startswith("perforated_sheet") and "_label" not in name
            assert decoded.bit_depth == (16 if is_deep else 8)
        else:
            assert name.endswith("Label/Labels.txt")


def test_a_larger_lake_holds_the_smaller_one_and_processes_change_nothing(tmp_path: Path) -> None:
    two = ["cast_iron", "woven_fabric"]
    write_lake(str(tmp_path / "small"), 10, surfaces=two, size=64, processes=1)
    write_lake(str(tmp_path / "large"), 80, surfaces=two, size=64, processes=2)
    small, large = tree(tmp_path / "small"), tree(tmp_path / "large")
    images = {name for name in small if name.endswith(".PNG")}
    assert len(images) >= 10
    assert {name: large[name] for name in images} == {name: small[name] for name in images}
    write_lake(str(tmp_path / "again"), 80, surfaces=two, size=64, processes=1)
    assert tree(tmp_path / "again") == large


def test_an_official_split_comes_with_enough_images(tmp_path: Path) -> None:
    write_lake(str(tmp_path / "lake"), 90, surfaces=["sandpaper"], size=64, processes=1)
    found = ingest("dagm", str(tmp_path / "lake"))
    samples, notes = found.samples, found.notes
    assert "official test set" in notes[0]
    assert {("/Test/" in s.uri) == (s.split == "test") for s in samples} == {True}


def test_arguments_out_of_range_and_a_folder_with_files_are_refused(tmp_path: Path) -> None:
    for call in (
        lambda: draw_image("velvet", 0),
        lambda: draw_image("leather", 0, size=32),
        lambda: draw_image("leather", 0, seed=-1),
        lambda: write_lake(str(tmp_path), 9),
        lambda: write_lake(str(tmp_path), 20, defect_share=1.5),
    ):
        with pytest.raises(ConfigError):
            call()
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(LakeError, match="holds 1 files") as caught:
        write_lake(str(tmp_path), 20)
    assert caught.value.code == "already-exists"
