"""The nets as ONNX graphs, made in memory, and what runs them in place of PyTorch.

| graph | in | out |
| --- | --- | --- |
| trunk | `image` [B, 1, H, W] | `mean`, `variance` [B, D / 2] of each channel of each stage |
| detector | `image` [B, 1, H, W] | `score` [B], `decision` [B], `map` [B, 1, h, w] |
| encoder | `tile` [B, 1, H, W], sides multiples of the network's | `encoding` [B, C, H / 8, W / 8] |
| conclusion | `encoding`, `size` int64 [2] = (h, w) | `decision`, `map` |

Images are grey, float32 in [0, 1], at network scale; batch and sides are dynamic. Padding is inside the graphs. The
arithmetic of the router (whitening, neighbours, class embedding) is float64 numpy and stays outside.
"""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sbdzsl.errors import ConfigError
from sbdzsl.runtime import Runtime, Session, open_session, require
from sbdzsl.sbad.backbone import Backbone
from sbdzsl.sbad.efficientnet import KIND, EfficientNetLite0, PointConv, SameConv
from sbdzsl.sbdd.lite import Flatten, SegDecLite
from sbdzsl.sbdd.segdec import MAP_STRIDE, SegDec

Array = NDArray[np.float32]

#: ONNX operator set: the oldest with all that is needed, so that older runtimes can read the files.
OPSET = 17

_IMAGE_AXES = {0: "batch", 2: "height", 3: "width"}
_CELL_AXES = {0: "batch", 2: "rows", 3: "columns"}


def trunk_graph(backbone: Backbone) -> bytes:
    """SBAD's frozen trunk with the statistics that features are made of.

    Raises `ConfigError` for another net than the default one: its padding alone is known to have a name in ONNX.
    """
    if not isinstance(backbone, EfficientNetLite0):
        raise ConfigError(
            "bad-config",
            f"found a backbone of kind {backbone.card()['kind']!r}; only {KIND!r} runs in other runtimes and can be "
            "exported. Use --runtime torch, or train with the default backbone",
        )
    plain = _with_plain_convolutions(copy.deepcopy(backbone).cpu())
    return _to_onnx(_Trunk(plain), {"image": (_EXAMPLE, _IMAGE_AXES)}, {"mean": {0: "batch"}, "variance": {0: "batch"}})


def detector_graph(network: SegDec) -> bytes:
    """SBDD from image to score, decision and map; `network` is folded."""
    outputs = {"score": {0: "batch"}, "decision": {0: "batch"}, "map": _CELL_AXES}
    return _to_onnx(_Detector(_for_graphs(network)), {"image": (_EXAMPLE, _IMAGE_AXES)}, outputs)


def encoder_graph(network: SegDec) -> bytes:
    """The first half of a detector."""
    return _to_onnx(_Encoder(_for_graphs(network)), {"tile": (_EXAMPLE, _IMAGE_AXES)}, {"encoding": _CELL_AXES})


def conclusion_graph(network: SegDec) -> bytes:
    """The second half of a detector."""
    network = _for_graphs(network)
    encoding = network.encode(_EXAMPLE)
    inputs: dict[str, Any] = {"encoding": (encoding, _CELL_AXES), "size": (torch.tensor(encoding.shape[2:]), {})}
    return _to_onnx(_Conclusion(network), inputs, {"decision": {0: "batch"}, "map": _CELL_AXES})


class GraphEngine:
    """A detector's network run as graphs, an `sbdd.engine.Engine`; the halves are made when a first image needs tiles.

    `detector` replaces the graph of the network, such as by its quantised form.
    """

    def __init__(self, network: SegDec, runtime: Runtime, threads: int, detector: bytes | None = None) -> None:
        self._network = network
        self._runtime: Runtime = runtime
        self._threads = threads
        self._whole = self._open(detector or detector_graph(network))

    @cached_property
    def _halves(self) -> tuple[Session, Session]:
        return self._open(encoder_graph(self._network)), self._open(conclusion_graph(self._network))

    def _open(self, graph: bytes) -> Session:
        return open_session(graph, self._runtime, self._threads)

    def judge(self, image: Array) -> tuple[float, Array]:
        """See `Engine.judge`."""
        found = self._whole.run({"image": image[None, None]})
        return float(found["decision"][0]), found["map"][0, 0]

    def encode(self, tile: Array) -> Array:
        """See `Engine.encode`."""
        return self._halves[0].run({"tile": tile[None, None]})["encoding"][0]

    def conclude(self, encoding: Array, size: tuple[int, int]) -> tuple[float, Array]:
        """See `Engine.conclude`."""
        size_input = np.array(size, np.int64)
        found = self._halves[1].run({"encoding": np.ascontiguousarray(encoding[None]), "size": size_input})
        return float(found["decision"][0]), found["map"][0, 0]


class GraphTrunk:
    """A session over `trunk_graph`: crop [H, W] to mean and variance [D / 2] of all channels, float64."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __call__(self, crop: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """See the class."""
        found = self._session.run({"image": np.ascontiguousarray(crop)[None, None]})
        return found["mean"][0].astype(np.float64), found["variance"][0].astype(np.float64)


class _Detector(nn.Module):
    def __init__(self, network: SegDec) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        height, width = image.shape[-2:]
        pad_y, pad_x = (-side % self.network.SIDE_MULTIPLE for side in (height, width))
        # `pad_sides` without its branch, which a traced graph would freeze.
        encoded = self.network.encode(F.pad(image, (0, pad_x, 0, pad_y), mode="replicate"))
        size = (height + MAP_STRIDE - 1) // MAP_STRIDE, (width + MAP_STRIDE - 1) // MAP_STRIDE
        decision, map_logits = self.network.conclude(encoded, size)
        return decision + map_logits.amax(dim=(1, 2, 3)), decision, map_logits


class _Encoder(nn.Module):
    def __init__(self, network: SegDec) -> None:
        super().__init__()
        self.network = network

    def forward(self, tile: Tensor) -> Tensor:
        return self.network.encode(tile)


class _Conclusion(nn.Module):
    def __init__(self, network: SegDec) -> None:
        super().__init__()
        self.network = network

    def forward(self, encoding: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        return self.network.conclude(encoding, (size[0], size[1]))  # type: ignore[arg-type]  # traced


class _Trunk(nn.Module):
    def __init__(self, backbone: EfficientNetLite0) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        means, variances = [], []
        for stage in self.backbone(image):
            mean = stage.mean(dim=(2, 3), keepdim=True)
            deviation = stage - mean
            means.append(mean.flatten(1))
            variances.append((deviation * deviation).mean(dim=(2, 3)))
        return torch.cat(means, dim=1), torch.cat(variances, dim=1)


_EXAMPLE = torch.zeros(2, 1, 96, 128)


class _ShuffledFlatten(Flatten):
    """`Flatten` whose bilinear enlargement is a convolution to `MAP_STRIDE`² channels and a shuffle of them to pixels.

    The same up to rounding. OpenVINO's own interpolation took a third of its time for `lite`.
    """

    def enlarge(self, cells: Tensor) -> Tensor:
        """See `Flatten.enlarge`."""
        ramps = F.interpolate(torch.eye(3)[None], scale_factor=float(MAP_STRIDE), mode="linear")[0]
        # [3, 8]: what the pixels of the middle cell take from it and its neighbours, along one axis.
        ramps = ramps[:, MAP_STRIDE : 2 * MAP_STRIDE]
        kernels = torch.einsum("ap,bq->pqab", ramps, ramps).reshape(MAP_STRIDE**2, 1, 3, 3)
        return F.pixel_shuffle(F.conv2d(F.pad(cells, (1, 1, 1, 1), mode="replicate"), kernels), MAP_STRIDE)


def _for_graphs(network: SegDec) -> SegDec:
    network = copy.deepcopy(network).cpu().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    if isinstance(network, SegDecLite):
        network.flatten = _ShuffledFlatten()
    return network


def _with_plain_convolutions(module: nn.Module) -> Any:
    """`SameConv` and `PointConv` as ordinary convolutions; `_same_padding` puts TensorFlow's padding back."""
    for name, child in module.named_children():
        if isinstance(child, SameConv | PointConv):
            channels, kernel = (child.in_channels, child.out_channels), child.kernel_size[0]
            plain = nn.Conv2d(*channels, kernel, child.stride[0], kernel // 2, groups=child.groups)
            plain.load_state_dict(child.state_dict())
            setattr(module, name, plain.requires_grad_(False))
        else:
            _with_plain_convolutions(child)
    return module


def _to_onnx(
    module: nn.Module,
    inputs: Mapping[str, tuple[Tensor, Mapping[int, str]]],
    outputs: Mapping[str, Mapping[int, str]],
) -> bytes:
    """Trace a module. By the tracing exporter: 0.1 s a graph where the newer one takes 5 to 40 s."""
    onnx = require("onnx")
    file = io.BytesIO()
    axes = {name: dict(dynamic) for name, (_, dynamic) in inputs.items() if dynamic}
    axes |= {name: dict(dynamic) for name, dynamic in outputs.items()}
    with warnings.catch_warnings(), torch.inference_mode():
        # It is deprecated, and warns of each size it makes dynamic.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            tuple(example for example, _ in inputs.values()),
            file,  # type: ignore[arg-type]  # the tracing exporter takes files as well
            dynamo=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes=axes,
        )
    model = onnx.load_from_string(file.getvalue())
    if isinstance(module, _Trunk):
        _same_padding(onnx, model.graph.node)
    _reciprocal(onnx, model.graph)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _same_padding(onnx: Any, nodes: Sequence[Any]) -> None:
    """TensorFlow's padding depends on the size at hand; ONNX has a name for it."""
    for node in nodes:
        pads = next((one for one in node.attribute if one.name == "pads"), None)
        if node.op_type == "Conv" and pads is not None and any(pads.ints):
            node.attribute.remove(pads)
            node.attribute.append(onnx.helper.make_attribute("auto_pad", "SAME_UPPER"))


def _reciprocal(onnx: Any, graph: Any) -> None:
    """Write 1 / x as Reciprocal: ONNX Runtime's fusion of 1 / x * y breaks graphs (its issues 32413, 32416)."""
    ones = {
        node.output[0]
        for node in graph.node
        if node.op_type == "Constant" and (onnx.numpy_helper.to_array(node.attribute[0].t) == 1).all()
    }
    for node in graph.node:
        if node.op_type == "Div" and node.input[0] in ones:
            node.op_type = "Reciprocal"
            del node.input[0]
