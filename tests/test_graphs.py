from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from sbdzsl.config import RouterSettings
from sbdzsl.errors import ConfigError, ImageError
from sbdzsl.graphs import GraphEngine, GraphTrunk, detector_graph, trunk_graph
from sbdzsl.runtime import Runtime, open_session, require
from sbdzsl.sbad.backbone import load_backbone
from sbdzsl.sbad.embedding import Embedder
from sbdzsl.sbdd.engine import TorchEngine
from sbdzsl.sbdd.predict import ready
from sbdzsl.sbdd.reference import SegDecReference
from sbdzsl.sbdd.segdec import SegDec
from sbdzsl.sbdd.tiling import judge_tiled
from tests.sbdd.test_lite import trained_looking

RUNTIMES: tuple[Runtime, ...] = ("onnxruntime", "openvino")

#: Logits (and features) that a graph and its net may differ by.
BOUND = 1e-4


def image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width), dtype=np.float32)


@pytest.fixture(scope="module")
def lite() -> SegDec:
    return ready(trained_looking(width=0.5).folded(), "cpu")


@pytest.fixture(scope="module")
def reference() -> SegDec:
    torch.manual_seed(0)
    return ready(SegDecReference(0.05).folded(), "cpu")


@pytest.fixture(scope="module", params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> Runtime:
    return request.param


def test_graph_and_network_agree_at_any_size(runtime: Runtime, lite: SegDec, reference: SegDec) -> None:
    for network in (lite, reference):
        engine = GraphEngine(network, runtime, 1)
        for height, width, contrast in ((128, 128, 1.0), (101, 233, 1.0), (65, 40, 1.0), (96, 101, 0.02)):
            grey = 0.5 + np.float32(contrast) * (image(height, width) - 0.5)
            decision, logits = TorchEngine(network).judge(grey)
            found, cells = engine.judge(grey)
            assert found == pytest.approx(decision, abs=BOUND)
            np.testing.assert_allclose(cells, logits, rtol=0, atol=BOUND)


def test_tiled_and_whole_agree_by_graph(runtime: Runtime, lite: SegDec) -> None:
    engine, grey = GraphEngine(lite, runtime, 1), image(505, 333)
    decision, logits = engine.judge(grey)
    tiled_decision, tiled_logits = judge_tiled(engine, lite, grey, 128)
    assert tiled_decision == pytest.approx(decision, abs=BOUND)
    np.testing.assert_allclose(tiled_logits, logits, rtol=0, atol=BOUND)


def test_a_batch_is_its_images_and_the_score_is_the_sum(runtime: Runtime, lite: SegDec) -> None:
    session = open_session(detector_graph(lite), runtime, 1)
    batch = np.stack([image(64, 96, seed) for seed in range(3)])[:, None]
    found = session.run({"image": batch})
    assert found["map"].shape == (3, 1, 8, 12)
    for index in range(3):
        decision, logits = TorchEngine(lite).judge(batch[index, 0])
        assert found["score"][index] == pytest.approx(decision + logits.max(), abs=BOUND)
        assert found["decision"][index] == pytest.approx(decision, abs=BOUND)


def test_trunk_graph_gives_the_features(runtime: Runtime) -> None:
    backbone = load_backbone()
    session = open_session(trunk_graph(backbone), runtime, 1)
    ours = Embedder(backbone, RouterSettings())
    theirs = Embedder(backbone, RouterSettings(), statistics=GraphTrunk(session))
    for height, width in ((256, 256), (300, 421), (130, 95), (17, 300)):
        grey = image(height, width)
        np.testing.assert_allclose(theirs.embed(grey), ours.embed(grey), rtol=0, atol=BOUND)


def test_the_number_of_threads_does_not_change_a_bit(runtime: Runtime, lite: SegDec) -> None:
    found = []
    for threads in (1, 2):
        engine = GraphEngine(lite, runtime, threads)
        found.append([engine.judge(image(*shape)) for shape in ((256, 256), (250, 333), (64, 64), (256, 256))])
    for other in found[1:]:
        for (decision, logits), (first, first_logits) in zip(other, found[0], strict=True):
            assert decision == first
            assert np.array_equal(logits, first_logits)


def test_more_sizes_than_are_compiled_apart_still_agree(lite: SegDec) -> None:
    engine = GraphEngine(lite, "openvino", 1)
    for side in range(40, 40 + 6 * 8, 8):
        grey = image(side, 64)
        assert engine.judge(grey)[0] == pytest.approx(TorchEngine(lite).judge(grey)[0], abs=BOUND)


def test_what_openvino_cannot_run_is_an_image_error(reference: SegDec) -> None:
    with pytest.raises(ImageError, match="OpenVINO cannot run") as caught:
        GraphEngine(reference, "openvino", 1).judge(image(17, 17))
    assert caught.value.code == "too-small"


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch, lite: SegDec) -> None:
    for module, extra in (("onnx", "export"), ("onnxruntime", "export"), ("openvino", "openvino")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ConfigError, match=rf"pip install 'sbdzsl\[{extra}\]'") as caught:
            require(module)
        assert caught.value.code == "missing-extra"
        monkeypatch.undo()
