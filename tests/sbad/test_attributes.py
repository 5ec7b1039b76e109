from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from sbdzsl.datasets import dagm, folder, kolektorsdd, magnetic_tile, neu, synthetic
from sbdzsl.errors import DataError
from sbdzsl.sbad.attributes import (
    AttributeTable,
    load_attributes,
    measure_attributes,
    parse_attributes,
    standard_attributes,
)

Image = NDArray[np.float32]


def noise(seed: int = 0, sigma: float = 0.1) -> Image:
    image = 0.5 + sigma * np.random.default_rng(seed).standard_normal((128, 128))
    return image.clip(0, 1).astype(np.float32)


def test_embedded_table_has_the_29_attributes_of_table_1() -> None:
    table = standard_attributes()
    assert len(table.names) == 29
    assert {f"dagm_class{number}" for number in range(1, 11)} <= set(table.rows)
    assert {"kolektorsdd", "magnetic_tile", "neu", "corduroy", "brushed_steel", "leather"} <= set(table.rows)
    assert len(table.rows) == 49
    assert table.matrix(["neu", "linen"]).shape == (2, 29)
    values = np.array(list(table.rows.values()))
    assert np.array_equal(values * 4, np.round(values * 4))  # quarters: nobody's eye is finer
    assert (table.matrix(list(table.rows))[:, 2:9].max(axis=1) >= 0.5).all()  # every surface is described


def test_every_surface_that_the_adapters_name_has_a_row(shared: Path) -> None:
    data = shared / "data"
    named = {sample.surface for sample in folder.scan(str(data / "KTH-TIPS"))}
    # `class_NN` alone may be anybody's folder: these rows carry the name of the data set.
    named |= {f"leather27_{sample.surface}" for sample in folder.scan(str(data / "Leather27"))}
    for adapter, source in (
        (dagm, "DAGM2007"),
        (kolektorsdd, "KolektorSDD"),
        (magnetic_tile, "MagneticTile"),
        (neu, "NEU-DET"),
    ):
        named |= {sample.surface for sample in adapter.scan(str(data / source))}
    kinds = {path.stem.rpartition("_")[0] for path in (data / "NEU-DET").rglob("*.jpg")}
    assert len(kinds) == 6
    named |= {f"neu_{kind}" for kind in kinds}
    assert len(named) == 7 + 14 + 2 + 3 + 6
    assert named - set(standard_attributes().rows) == set()


def test_every_drawn_surface_has_a_row() -> None:
    assert len(synthetic.SURFACES) == 10
    assert set(synthetic.SURFACES) <= set(standard_attributes().rows)


def test_user_table_of_other_names_and_length() -> None:
    table = parse_attributes("surface,shiny,blue\n sheet ,1,0.5\n\npipe,0,.25\n", "mine.csv")
    assert table == AttributeTable(("shiny", "blue"), {"sheet": (1.0, 0.5), "pipe": (0.0, 0.25)})
    longer = table.with_row("coil", {"blue": 0.1, "shiny": 0.2})
    assert longer.rows["coil"] == (0.2, 0.1)
    assert "coil" not in table.rows


def test_table_in_a_lake(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("surface,schön\nblech,1\n", encoding="utf-8-sig")  # as spreadsheets save it
    assert load_attributes(str(path)) == AttributeTable(("schön",), {"blech": (1.0,)})
    path.write_text("surface,schön\nblech,1\n", encoding="latin-1")
    with pytest.raises(DataError, match=r"mine\.csv: byte 11 is not UTF-8"):
        load_attributes(str(path))
    assert load_attributes(None) == standard_attributes()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "line 1: found ''"),
        ("name,a\nx,1\n", "line 1: found 'name,a', expected 'surface'"),
        ("surface\nx\n", "line 1"),
        ("surface,a,a\nx,1,1\n", "all different"),
        ("surface,a,b\nx,1\n", "line 2: found 2 columns, expected 3"),
        ("surface,a,b\nx,1,high\n", r"line 2: column 3 \(b\): found 'high', expected a number from 0 to 1"),
        ("surface,a\nx,1.5\n", r"column 2 \(a\): found '1.5'"),
        ("surface,a\nx,nan\n", "found 'nan'"),
        ("surface,a\nx,1\nx,0\n", "line 3: column 1: found 'x'"),
        ("surface,a\n,1\n", "line 2: column 1: found ''"),
        ("surface,a\n", "found no row"),
    ],
)
def test_bad_tables_name_line_column_and_reason(text: str, reason: str) -> None:
    with pytest.raises(DataError, match=rf"mine\.csv.*{reason}") as error:
        parse_attributes(text, "mine.csv")
    assert error.value.code == "bad-attributes"


def test_missing_row_and_wrong_row_are_errors() -> None:
    table = standard_attributes()
    with pytest.raises(DataError, match="no row for 'glass', 'tin'"):
        table.matrix(["neu", "glass", "tin"])
    with pytest.raises(DataError, match="not in both row and table: shiny"):
        AttributeTable(("blue",), {}).with_row("glass", {"blue": 1, "shiny": 1})
    with pytest.raises(DataError, match="row 'glass', attribute 'blue': found '2'"):
        AttributeTable(("blue",), {}).with_row("glass", {"blue": 2})


def test_measured_row_fits_the_standard_table() -> None:
    values = measure_attributes([noise(), noise(1)], [None, None])
    assert tuple(values) == standard_attributes().names
    standard_attributes().with_row("new", values)
    assert not any(value for name, value in values.items() if name.startswith("defect"))


def test_surface_words_follow_the_texture() -> None:
    x, y = np.meshgrid(np.arange(128), np.arange(128))
    rng = np.random.default_rng(3)
    drawn = {
        "grain": noise(),
        "plain": noise(sigma=0.003) + np.float32(0.3),
        "grid": (0.5 + 0.2 * np.sin(x / 2) * np.sin(y / 2)).astype(np.float32),
        "brushed": cv2.blur(rng.random((128, 128), dtype=np.float32), (41, 1)),
        "blobs": cv2.GaussianBlur(rng.random((128, 128), dtype=np.float32), (0, 0), 3) * 4 - 1.5,
    }
    rows = {name: measure_attributes([image], [None]) for name, image in drawn.items()}

    def highest(attribute: str) -> str:
        return max(rows, key=lambda name: rows[name][attribute])

    assert highest("background: white") == "plain"
    assert highest("texture: grainy") == "grain"
    assert highest("texture: smooth") == "plain"
    assert highest("texture: regular pattern") == "grid"
    assert rows["grid"]["texture: regular pattern"] > 0.9
    assert rows["grain"]["texture: regular pattern"] < 0.3
    assert rows["blobs"]["texture: irregular pattern"] > 0.5
    assert highest("texture: strip") == "brushed"
    assert rows["brushed"]["texture: strip"] > 0.9
    assert rows["grain"]["texture: strip"] < 0.1


def defect_words(mask: NDArray[np.uint8], brightness: float) -> set[str]:
    image = noise(sigma=0.02)
    image[mask > 0] = brightness
    values = measure_attributes([image, noise()], [mask > 0, None])
    assert not any(value for name, value in values.items() if name.startswith("defect reason"))
    return {name.removeprefix("defect ") for name, value in values.items() if name.startswith("defect") and value == 1}


def test_defect_words_follow_the_mask() -> None:
    canvas = np.zeros((128, 128), np.uint8)
    straight = cv2.line(canvas.copy(), (20, 30), (80, 60), 1, 2)
    assert defect_words(straight, 0.9) == {
        "colour: white",
        "area: medium",
        "shape: regular straight slender strip",
        "distribution: concentration",
        "distribution: continuity",
    }
    curved = cv2.ellipse(canvas.copy(), (64, 64), (40, 40), 0, 0, 150, 1, 2)
    assert "shape: irregular slender strip" in defect_words(curved, 0.1)
    assert "shape: irregular long strip" in defect_words(cv2.rectangle(canvas.copy(), (20, 50), (79, 59), 1, -1), 0.1)
    stain = cv2.circle(canvas.copy(), (60, 60), 30, 1, -1)
    assert defect_words(stain, 0.1) >= {"colour: black", "area: large", "shape: irregular ellipse stain"}
    assert defect_words(cv2.circle(canvas.copy(), (60, 60), 2, 1, -1), 0.1) >= {"area: small", "shape: small dot"}
    assert "shape: irregular small bump" in defect_words(cv2.circle(canvas.copy(), (60, 60), 4, 1, -1), 0.9)
    dots = canvas.copy()
    for place in (20, 50, 90, 110):
        cv2.circle(dots, (place, 128 - place), 3, 1, -1)
    words = defect_words(dots, 0.9)
    assert "shape: irregular sparse dots" in words
    assert "distribution: concentration" not in words
