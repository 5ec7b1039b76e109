"""Foreign backbones: what a folder may hold, what the maps are, and that a bundle's tensors and card are all of it."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor

from sbdzsl.config import RouterSettings
from sbdzsl.errors import BundleError, ConfigError, SbdzslError, TrainingError
from sbdzsl.graphs import trunk_graph
from sbdzsl.sbad.backbone import Backbone, load_backbone, restore_backbone
from sbdzsl.sbad.embedding import Embedder
from sbdzsl.sbad.stage_maps import as_map, mirrored
from tests.graphs import Patches, Tiny, write_graph

CROP = torch.rand(1, 1, 96, 128, generator=torch.Generator().manual_seed(0))


def restored(backbone: Backbone) -> Backbone:
    """By way of what a bundle writes and reads."""
    card = json.loads(json.dumps(backbone.card()))
    return restore_backbone(card, load(save(backbone.tensors())))


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


# ---- ONNX


def test_a_graph_gives_the_maps_of_its_net(tmp_path: Path) -> None:
    folder = write_graph(tmp_path / "tiny", Tiny(3), 3)
    settings = "outputs: {fine: one, coarse: two}\nmean: [0.5, 0.4, 0.3]\nstd: 0.25\nlicence: MIT\n"
    (folder / "backbone.yaml").write_text(settings)
    backbone = load_backbone(str(folder))
    planes = (CROP - torch.tensor([0.5, 0.4, 0.3]).reshape(1, 3, 1, 1)) / 0.25
    for ours, theirs in zip(backbone(CROP), Tiny(3)(planes), strict=False):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-4, atol=1e-5)
    assert backbone.stage_names == ("fine", "coarse")
    assert (backbone.card()["licence"], backbone.card()["source"]) == ("MIT", "tiny")
    assert same([one[:1] for one in backbone(CROP.expand(3, -1, -1, -1))], backbone(CROP))
    (coarse,) = load_backbone(str(folder), ("coarse",))(CROP)
    assert torch.equal(coarse, backbone(CROP)[1])


def test_without_a_word_all_maps_are_stages_and_pixels_go_in_as_they_are(tmp_path: Path) -> None:
    folder = write_graph(tmp_path, Tiny(1), 1)
    backbone = load_backbone(str(folder))
    assert backbone.stage_names == ("one", "two")
    torch.testing.assert_close(backbone(CROP)[1], Tiny(1)(CROP)[1].detach(), rtol=1e-4, atol=1e-5)
    told = {"do_rescale": True, "rescale_factor": 1 / 255, "image_mean": [0.5], "image_std": [0.5]}
    (folder / "preprocessor_config.json").write_text(json.dumps(told))
    torch.testing.assert_close(load_backbone(str(folder))(CROP / 2 + 0.5)[1], backbone(CROP)[1], rtol=1e-4, atol=1e-5)


def test_tokens_of_a_graph_become_maps(tmp_path: Path) -> None:
    folder = write_graph(tmp_path, Patches(), 1, (64, 96))
    (folder / "backbone.yaml").write_text("patch_px: 16")
    (found,) = load_backbone(str(folder))(CROP[..., :64, :96])
    assert found.shape == (1, 256, 4, 6)
    assert torch.equal(found[0, 0], CROP[0, 0, :64:16, :96:16])


def test_crops_that_are_smaller_than_a_fixed_input_are_mirrored_larger_ones_refused(tmp_path: Path) -> None:
    folder = write_graph(tmp_path, Tiny(1), 1, (64, 64))
    backbone = load_backbone(str(folder), crop_px=64)
    assert same(backbone(CROP[..., :50, :30]), backbone(mirrored(CROP[..., :50, :30], 64, 64)))
    with pytest.raises(ConfigError, match=r"crops of 256 px.*64x64.*set router.crop_px to 64") as error:
        load_backbone(str(folder), crop_px=256)
    assert error.value.code == "bad-config"
    with pytest.raises(ConfigError, match=r"set router\.crop_px to 64"):
        backbone(CROP)


def test_a_bundle_holds_all_of_a_graph(tmp_path: Path) -> None:
    backbone = load_backbone(str(write_graph(tmp_path / "tiny", Tiny(3), 3)))
    before = backbone(CROP)
    shutil.rmtree(tmp_path / "tiny")
    again = restored(backbone)
    assert again.digest == backbone.digest
    assert again.stage_names == backbone.stage_names
    assert same(again(CROP), before)


def test_weights_beside_a_graph_go_into_it_and_a_stored_one_reads_no_file(tmp_path: Path) -> None:
    import onnx

    folder = write_graph(tmp_path, Tiny(1), 1)
    expected = load_backbone(str(folder))
    model = onnx.load(str(folder / "model.onnx"))
    onnx.save(model, str(folder / "model.onnx"), save_as_external_data=True, location="weights.bin", size_threshold=0)
    outside = (folder / "model.onnx").read_bytes()
    backbone = load_backbone(str(folder))
    assert (folder / "weights.bin").is_file()
    assert same(backbone(CROP), expected(CROP))
    tensors = {"graph": torch.frombuffer(bytearray(outside), dtype=torch.uint8)}
    with pytest.raises(BundleError, match="weights from other files") as error:
        restore_backbone(backbone.card(), tensors)
    assert error.value.code == "unsafe-file"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ("outputs: [one, nine]", "asked for nine"),
        ("outputs: {fine: pooled}", "asked for pooled"),
        ("graph: other.onnx", "found model.onnx; expected one graph"),
        ("mean: [0.1, 0.2]", "expected one value or 3"),
        ("std: 0", "no std of 0"),
        ("meen: 1", "backbone.yaml: meen"),
    ],
)
def test_what_is_wrong_with_a_graph_is_named(settings: str, reason: str, tmp_path: Path) -> None:
    folder = write_graph(tmp_path, Tiny(3), 3)
    (folder / "backbone.yaml").write_text(settings)
    with pytest.raises(ConfigError, match=reason) as error:
        load_backbone(str(folder))
    assert error.value.code == "bad-config"


def test_a_damaged_graph_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(TrainingError, match="no sound ONNX graph") as error:
        load_backbone(str(tmp_path))
    assert error.value.code == "weights-missing"


# ---- Hugging Face: nets of chance weights, saved as their owners save them


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import transformers as hf

    hf.utils.logging.disable_progress_bar()
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(2)
    vision = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    words = {**vision, "vocab_size": 50}
    hf.ResNetForImageClassification(
        hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ).save_pretrained(folder / "resnet")
    hf.ConvNextModel(hf.ConvNextConfig(hidden_sizes=[8, 12], depths=[1, 1], num_stages=2)).save_pretrained(
        folder / "convnext"
    )
    hf.SwinModel(
        hf.SwinConfig(image_size=64, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4)
    ).save_pretrained(folder / "swin")
    # The checkpoint of a classifier: it lacks the pooler of the plain model.
    hf.ViTForImageClassification(hf.ViTConfig(**vision, image_size=64, patch_size=16)).save_pretrained(folder / "vit")
    hf.Dinov2Model(hf.Dinov2Config(**vision, image_size=56, patch_size=14)).save_pretrained(folder / "dinov2")
    hf.CLIPModel(
        hf.CLIPConfig(text_config=words, vision_config={**vision, "image_size": 64, "patch_size": 16})
    ).save_pretrained(folder / "clip")
    # It shuffles its tokens anew each time.
    hf.ViTMAEModel(hf.ViTMAEConfig(**vision, image_size=64, patch_size=16, mask_ratio=0.0)).save_pretrained(
        folder / "mae"
    )
    hf.BertModel(hf.BertConfig(**words)).save_pretrained(folder / "bert")
    return folder


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("resnet", [(8, 24, 32), (8, 24, 32), (16, 12, 16)]),
        ("convnext", [(8, 24, 32), (8, 24, 32), (12, 12, 16)]),
        ("swin", [(8, 24, 32), (16, 12, 16), (16, 12, 16)]),
        ("vit", [(16, 6, 8)] * 4),
        ("dinov2", [(16, 6, 9)] * 4),
        ("clip", [(16, 6, 8)] * 4),
    ],
)
def test_a_model_gives_maps_and_a_bundle_holds_all_of_it(
    name: str, shapes: list[tuple[int, ...]], models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(models / name, tmp_path / name))
    backbone = load_backbone(str(folder))
    with torch.inference_mode():
        before = backbone(CROP)
        assert [tuple(one.shape[1:]) for one in before] == shapes
        assert load_backbone(str(folder)).digest == backbone.digest
        shutil.rmtree(folder)
        monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a bundle looked at the network"))
        again = restored(backbone)
        assert again.digest == backbone.digest
        assert same(again(CROP), before)
    assert backbone.stage_names == tuple(f"hidden{index}" for index in range(len(shapes)))
    assert backbone.card()["source"] == name
    assert str(tmp_path) not in json.dumps(backbone.card())


def test_maps_are_those_of_transformers_on_the_planes_that_the_processor_makes(models: Path, tmp_path: Path) -> None:
    import transformers as hf

    folder = Path(shutil.copytree(models / "vit", tmp_path / "vit"))
    told = {"do_normalize": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.5], "size": {"height": 64}}
    (folder / "preprocessor_config.json").write_text(json.dumps(told))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\ntags: [vision]\n---\n# A net\n")
    backbone = load_backbone(str(folder), ("hidden3", "hidden1"))
    model = hf.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    crop = CROP[..., :64, :64]
    planes = (crop - torch.tensor([0.5, 0.4, 0.3]).reshape(1, 3, 1, 1)) / torch.tensor([0.2, 0.25, 0.5])[:, None, None]
    with torch.inference_mode():
        states = model(pixel_values=planes, output_hidden_states=True).hidden_states
        for ours, theirs in zip(backbone(crop), (states[1], states[3]), strict=True):
            # The first token is the class's; then the patches, row by row.
            for patch in (0, 3, 4, 15):
                torch.testing.assert_close(ours[0, :, patch // 4, patch % 4], theirs[0, 1 + patch], atol=1e-4, rtol=0)
    assert backbone.stage_names == ("hidden1", "hidden3")
    assert backbone.card()["licence"] == "apache-2.0"
    assert load_backbone(str(models / "vit")).card()["licence"] is None


def test_six_of_many_hidden_states_feed_the_embedding(tmp_path: Path) -> None:
    import transformers as hf

    config = hf.ViTConfig(
        hidden_size=8, num_hidden_layers=12, num_attention_heads=1, intermediate_size=8, image_size=64, patch_size=16
    )
    hf.ViTModel(config).save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path))
    assert backbone.stage_names == ("hidden0", "hidden2", "hidden5", "hidden7", "hidden10", "hidden12")
    features = Embedder(backbone, RouterSettings(crop_px=64)).embed(CROP[0, 0, :40, :50].numpy())
    assert features.shape == (6 * 8 * 2,)
    assert np.isfinite(features).all()
    with pytest.raises(ConfigError, match="found hidden13, expected stages"):
        load_backbone(str(tmp_path), ("hidden13",))


def test_what_cannot_be_a_backbone_is_named(models: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="answers by chance"):
        load_backbone(str(models / "mae"))
    with pytest.raises(SbdzslError, match=r"bert.*cannot be read as maps"):
        load_backbone(str(models / "bert"))
    folder = Path(shutil.copytree(models / "resnet", tmp_path / "resnet"))
    tensors = load_file(folder / "model.safetensors")
    lost = next(name for name in tensors if "encoder" in name and name.endswith("convolution.weight"))
    del tensors[lost]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainingError, match=r"found no weights for encoder.*convolution\.weight") as error:
        load_backbone(str(folder))
    assert error.value.code == "weights-missing"
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(TrainingError, match="no model of images with safetensors"):
        load_backbone(str(folder))


def test_an_id_is_found_in_the_local_cache_and_named_where_it_is_not_there(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--somebody--tiny-net"  # as the hub's own library lays it out
    shutil.copytree(models / "resnet", cached / "snapshots" / "0123")
    (cached / "snapshots" / "0123" / "README.md").write_text("---\nlicense: mit\n---\n")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123")
    backbone = load_backbone("somebody/tiny-net")
    assert (backbone.card()["source"], backbone.card()["licence"]) == ("somebody/tiny-net", "mit")
    assert same(backbone(CROP), load_backbone(str(models / "resnet"))(CROP))
    with pytest.raises(TrainingError, match=r"nobody/no-such-net.*or an id that the hub or the local cache holds"):
        load_backbone("nobody/no-such-net")
    with pytest.raises(TrainingError, match="found no such folder"):
        load_backbone(f"{os.sep}no{os.sep}such{os.sep}folder")


@pytest.mark.parametrize(("module", "name"), [("transformers", "huggingface"), ("onnx", "export")])
def test_a_missing_extra_is_named(
    module: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: Path
) -> None:
    folder = models / "resnet" if module == "transformers" else write_graph(tmp_path, Tiny(1), 1)
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ConfigError, match=rf"{module} is not installed.*pip install 'sbdzsl\[{name}\]'") as error:
        load_backbone(str(folder))
    assert error.value.code == "missing-extra"


# ---- all


def test_other_runtimes_and_exports_refuse_a_foreign_net(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"kind 'onnx'.*--runtime torch") as error:
        trunk_graph(load_backbone(str(write_graph(tmp_path, Tiny(1), 1))))
    assert error.value.code == "bad-config"


def test_a_kind_that_nobody_knows_is_a_damaged_bundle() -> None:
    with pytest.raises(BundleError, match="'hologram'"):
        restore_backbone({"kind": "hologram"}, {})


def test_mirroring_goes_on_as_long_as_it_must() -> None:
    line = torch.tensor([1.0, 2.0, 3.0]).reshape(1, 1, 1, 3)
    assert mirrored(line, 1, 8)[0, 0, 0].tolist() == [1, 2, 3, 3, 2, 1, 1, 2]
    assert mirrored(line, 2, 2)[0, 0].tolist() == [[1, 2, 3], [1, 2, 3]]


def test_tokens_lose_those_in_front() -> None:
    tokens = torch.arange(14.0).reshape(1, 7, 2)
    assert as_map(tokens, 2, 3)[0, 0].tolist() == [[2, 4, 6], [8, 10, 12]]
