from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from sbdzsl import cli, export, lake
from sbdzsl.bundle import Bundle
from sbdzsl.datasets.sample import Sample, samples_from_table
from sbdzsl.errors import ConfigError, ExportError
from sbdzsl.inspector import Inspector, load_image
from sbdzsl.runtime import open_session
from sbdzsl.sbdd.predict import shrink
from tests.conftest import SEEN, UNSEEN, Trained


@pytest.fixture(scope="module")
def samples(trained: Trained) -> list[Sample]:
    """A few rows of each seen surface and split."""
    rows = [sample for sample in samples_from_table(trained.manifest) if sample.surface in SEEN]
    kept = {(row.surface, row.split, row.label, index % 2): row for index, row in enumerate(rows)}
    return list(kept.values())


def write(bundle: Bundle, out: Path, samples: list[Sample], **choices: Any) -> dict[str, Any]:
    return export.export(bundle, str(out), choices.pop("target", "onnx"), samples, report=lambda _: None, **choices)


def test_the_exported_graphs_judge_like_the_bundle(trained: Trained, samples: list[Sample], tmp_path: Path) -> None:
    card = write(trained.bundle, tmp_path / "onnx", samples)
    assert json.loads(json.dumps(card)) == json.loads((tmp_path / "onnx" / "export.json").read_text())
    assert card["bundle"] == trained.bundle.digest
    assert set(card["detectors"]) == set(SEEN)
    assert set(card["files"]) == {"router.onnx", *(f"detectors/{surface}.onnx" for surface in SEEN)}
    sample = next(sample for sample in samples if sample.split == "test" and sample.label == "defect")
    loaded = load_image(sample.image_id, sample.uri, trained.bundle.settings.image)
    assert loaded.image is not None
    assert sample.surface is not None
    entry = card["detectors"][sample.surface]
    session = open_session(tmp_path / "onnx" / entry["file"], "onnxruntime", 1)
    score = session.run({entry["input"]: shrink(loaded.image.grey(), entry["scale"])[None, None]})["score"][0]
    expected, _ = Inspector(trained.bundle).detect(loaded.image.grey(), sample.surface)
    assert score == pytest.approx(expected.defect_score, abs=export.TOLERANCE)
    assert (score > entry["threshold"]["value"]) == expected.is_defect
    for surface in SEEN:
        parity = card["detectors"][surface]["parity"]
        assert parity["score_max"] <= export.TOLERANCE
        assert parity["num_images"] == sum(one.surface == surface and one.split == "test" for one in samples)
        assert parity["ap"] == parity["ap_exported"] is not None


def test_openvino_files_hold_the_same_net(trained: Trained, samples: list[Sample], tmp_path: Path) -> None:
    surface = SEEN[0]
    card = write(trained.bundle, tmp_path / "ir", samples, target="openvino", surfaces=[surface])
    assert set(card["files"]) == {
        f"{stem}{end}" for stem in ("router", f"detectors/{surface}") for end in (".xml", ".bin")
    }
    assert card["detectors"][surface]["parity"]["map_max"] <= export.TOLERANCE


def test_int8_says_what_it_moved_and_keeps_first_and_last_layers(
    trained: Trained, samples: list[Sample], tmp_path: Path
) -> None:
    surface = SEEN[0]
    card = write(trained.bundle, tmp_path / "int8", samples, int8=True, surfaces=[surface])
    parity = card["detectors"][surface]["parity"]
    assert export.TOLERANCE < parity["score_max"] <= export.INT8_TOLERANCE
    assert parity["ap_exported"] is not None
    nodes = onnx.load(tmp_path / "int8" / "detectors" / f"{surface}.onnx").graph.node
    quantised = {output for node in nodes if node.op_type == "DequantizeLinear" for output in node.output}
    in_int8 = {node.name: node.input[0] in quantised for node in nodes if node.op_type == "Conv"}
    assert sum(in_int8.values()) >= 8
    assert not any(eight for name, eight in in_int8.items() if any(part in name for part in export.UNQUANTISED))
    assert any(part in name for name in in_int8 for part in export.UNQUANTISED)


def test_a_graph_that_judges_otherwise_is_not_published(
    trained: Trained, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(graph: bytes) -> bytes:
        model = onnx.load_from_string(graph)
        bias = next(one for one in model.graph.initializer if one.name == "network.fuse.conv.bias")
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(0.1), bias.name))
        return model.SerializeToString()

    whole = export.detector_graph
    monkeypatch.setattr(export, "detector_graph", lambda network: damaged(whole(network)))
    with pytest.raises(ExportError, match=f"{SEEN[0]}: scores of the exported graph differ") as caught:
        write(trained.bundle, tmp_path / "bad", samples)
    assert (caught.value.code, caught.value.exit_code) == ("no-parity", 1)
    assert not (tmp_path / "bad").exists()


def test_an_export_needs_images_of_each_surface(trained: Trained, samples: list[Sample], tmp_path: Path) -> None:
    others = [sample for sample in samples if sample.surface != SEEN[1]]
    with pytest.raises(ConfigError, match=f"no image of {SEEN[1]}"):
        write(trained.bundle, tmp_path / "x", others)
    with pytest.raises(ConfigError, match=UNSEEN):
        write(trained.bundle, tmp_path / "x", others, surfaces=[UNSEEN])
    with pytest.raises(ConfigError, match="--images or --manifest"):
        export.samples_to_check([], [])


def test_the_command_takes_files_and_never_overwrites(
    trained: Trained, samples: list[Sample], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    surface, out = SEEN[0], str(tmp_path / "out")
    files = [sample.uri for sample in samples if sample.surface == surface and sample.split == "test"][:3]
    words = ["export", "--bundle", trained.bundle_url, "--out", out, "--surface", surface]
    words += [word for uri in files for word in ("--images", uri)]
    assert cli.main(words) == 0
    assert "1 detectors" in capsys.readouterr().out
    assert lake.exists(lake.join(out, "export.json"))
    assert cli.main(words) == 1
    assert "export-exists" in capsys.readouterr().err
