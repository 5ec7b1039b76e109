"""A backbone from a folder with an ONNX graph, run by ONNX Runtime on the CPU.

`backbone.yaml` beside the graph says what the graph does not; every key may be left out:

    graph: model.onnx             # which file, if there are several
    outputs: {fine: relu2, coarse: relu4}   # stage names and the graph's outputs; or a list of outputs; else all maps
    mean: [0.485, 0.456, 0.406]   # of an image with black 0 and white 1; one value, or one a plane
    std: [0.229, 0.224, 0.225]
    size_px: 224                  # side of the square input, where the graph leaves it open but takes no other
    patch_px: 16                  # of a transformer whose outputs are tokens [B, L, C]
    licence: Apache-2.0

Without a `mean` here, a `preprocessor_config.json` beside the graph is asked; without that, pixels go in from 0 to 1.
Grey is repeated where the graph takes three planes. Crops smaller than a fixed input are mirrored up to it, never
scaled: scale is information.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from sbdzsl.config import Settings, parse
from sbdzsl.config import load as load_settings
from sbdzsl.errors import BundleError, ConfigError, TrainingError
from sbdzsl.runtime import Session, open_session, require
from sbdzsl.sbad.preprocessing import Normalisation, read_normalisation
from sbdzsl.sbad.stage_maps import as_map, choose_stages, digest_of, mirrored

KIND = "onnx"
SETTINGS_FILE = "backbone.yaml"

#: A graph is stored as the bytes of one file, which protobuf limits.
MAX_GRAPH_BYTES = 2**31 - 1

Numbers = tuple[float, ...]


class OnnxSettings(Settings):
    """`backbone.yaml`."""

    graph: str | None = Field(None, description="file name of the graph")
    outputs: dict[str, str] | list[str] | None = Field(None, description="stage names and outputs")
    mean: Numbers | float | None = Field(None, description="subtracted, black 0 and white 1")
    std: Numbers | float | None = Field(None, description="divided by")
    size_px: int | None = Field(None, ge=1, description="side of the only input size")
    patch_px: int | None = Field(None, ge=1, description="side of a transformer's patch")
    licence: str | None = Field(None, description="of the weights")


class OnnxBackbone:
    """A graph with the card that says how to feed and read it; see `Backbone`.

    `card` has `outputs` (stage names and outputs of the graph), `input`, `planes`, `height` and `width` (None where
    any will do), `patch_px`, `mean` and `std`.
    """

    def __init__(self, graph: bytes, card: Mapping[str, Any]) -> None:
        self._graph = graph
        self._card = dict(card)
        self._normalisation = Normalisation(tuple(card["mean"]), tuple(card["std"]))

    @property
    def stage_names(self) -> tuple[str, ...]:
        """See `Backbone.stage_names`."""
        return tuple(self._card["outputs"])

    @cached_property
    def digest(self) -> str:
        """See `Backbone.digest`."""
        return digest_of(self.tensors(), sorted(self._card.items()))

    @cached_property
    def _session(self) -> Session:
        return open_session(self._graph, "onnxruntime", torch.get_num_threads())

    def __call__(self, grey: Tensor) -> list[Tensor]:
        """See `Backbone.__call__`. Raises `ConfigError` for crops that are larger than a fixed input."""
        card, size = self._card, grey.shape[-2:]
        height, width = card["height"] or size[0], card["width"] or size[1]
        fitted = mirrored(grey.cpu(), height, width)
        if tuple(fitted.shape[-2:]) != (height, width):
            raise ConfigError("bad-config", _too_large(max(size), height, width))
        planes = self._normalisation(fitted, card["planes"]).numpy()
        # One at a time: graphs are often exported for a batch of one.
        runs = [self._session.run({card["input"]: np.ascontiguousarray(one[None])}) for one in planes]
        maps = [torch.from_numpy(np.concatenate([run[output] for run in runs])) for output in card["outputs"].values()]
        return [self._as_map(one, height, width).to(grey.device) for one in maps]

    def _as_map(self, output: Tensor, height: int, width: int) -> Tensor:
        patch = self._card["patch_px"]
        return as_map(output, height // patch, width // patch) if output.ndim == 3 else output

    def to(self, device: torch.device) -> OnnxBackbone:
        """See `Backbone.to`: it runs on the CPU whatever the device, where its maps are brought to."""
        del device
        return self

    def tensors(self) -> dict[str, Tensor]:
        """The bytes of the graph as one tensor, uint8."""
        return {"graph": torch.frombuffer(bytearray(self._graph), dtype=torch.uint8)}

    def card(self) -> dict[str, Any]:
        """See `Backbone.card`."""
        return {"kind": KIND, "stages": list(self.stage_names), **self._card}

    @classmethod
    def from_card(cls, card: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> OnnxBackbone:
        """The inverse of `card` and `tensors`. Raises `BundleError` (`unsafe-file`) for a graph that reads files."""
        graph = tensors["graph"].numpy().tobytes()
        onnx = require("onnx")
        if any(onnx.external_data_helper.uses_external_data(one) for one in _weights(onnx.load_from_string(graph))):
            raise BundleError(
                "unsafe-file", "the backbone's graph takes weights from other files; train the bundle again"
            )
        return cls(graph, {name: value for name, value in card.items() if name not in ("kind", "stages")})


def load(folder: Path, stages: Sequence[str] = (), crop_px: int | None = None) -> OnnxBackbone:
    """The graph of a folder, its weights taken into it. Raises `ConfigError`, `TrainingError` as `load_backbone`."""
    onnx = require("onnx")
    settings = load_settings(OnnxSettings, folder / SETTINGS_FILE) if (folder / SETTINGS_FILE).is_file() else None
    settings = settings or parse(OnnxSettings, {}, SETTINGS_FILE)
    file = _graph_file(folder, settings.graph)
    try:
        model = onnx.load(str(file))  # with weights that lie beside it
        onnx.checker.check_model(model)
        graph = model.SerializeToString()
    except Exception as error:  # noqa: BLE001  onnx and protobuf raise kinds of their own
        raise TrainingError("weights-missing", f"{file}: found no sound ONNX graph: {error}") from None
    if len(graph) > MAX_GRAPH_BYTES:
        raise TrainingError("weights-missing", f"{file}: {len(graph)} bytes, at most {MAX_GRAPH_BYTES} can be stored")
    name, planes, height, width = _input(model, file, settings.size_px)
    if crop_px is not None and height is not None and width is not None and crop_px > min(height, width):
        raise ConfigError("bad-config", _too_large(crop_px, height, width))
    outputs = _outputs(model, file, settings)
    kept = choose_stages(tuple(outputs), stages, str(folder))
    normalisation = _normalisation(folder, settings, planes)
    card = {
        "outputs": {stage: outputs[stage] for stage in kept},
        "input": name,
        "planes": planes,
        "height": height,
        "width": width,
        "patch_px": settings.patch_px,
        "mean": list(normalisation.mean),
        "std": list(normalisation.std),
        "licence": settings.licence,
        "source": folder.name,
    }
    return OnnxBackbone(graph, card)


def _graph_file(folder: Path, name: str | None) -> Path:
    files = sorted(folder.glob("*.onnx"))
    chosen = [file for file in files if name is None or file.name == name]
    if len(chosen) != 1:
        raise ConfigError(
            "bad-config",
            f"{folder}: found {', '.join(file.name for file in files)}; expected one graph, or its name as `graph` in "
            f"{SETTINGS_FILE}",
        )
    return chosen[0]


def _input(model: Any, file: Path, size_px: int | None) -> tuple[str, int, int | None, int | None]:
    """Name, planes, height and width of the one input; the sides are None where they are open."""
    constants = {one.name for one in model.graph.initializer}
    inputs = [one for one in model.graph.input if one.name not in constants]
    shapes = [[dim.dim_value or None for dim in one.type.tensor_type.shape.dim] for one in inputs]
    if len(inputs) != 1 or len(shapes[0]) != 4 or shapes[0][1] not in (1, 3):
        found = ", ".join(f"{one.name} {shape}" for one, shape in zip(inputs, shapes, strict=True))
        raise ConfigError(
            "bad-config", f"{file}: found inputs {found}; expected one image, [batch, 1 or 3 planes, height, width]"
        )
    _, planes, height, width = shapes[0]
    assert planes is not None
    return inputs[0].name, planes, height or size_px, width or size_px


def _outputs(model: Any, file: Path, settings: OnnxSettings) -> dict[str, str]:
    """Stage names and outputs of the graph that are maps, or tokens where `patch_px` says how to read them."""
    ranks = {one.name: len(one.type.tensor_type.shape.dim) for one in model.graph.output}
    usable = [name for name, rank in ranks.items() if rank == 4 or (rank == 3 and settings.patch_px)]
    chosen = settings.outputs or usable
    named = chosen if isinstance(chosen, dict) else {name: name for name in chosen}
    strangers = [output for output in named.values() if output not in usable]
    if strangers or not named:
        raise ConfigError(
            "bad-config",
            f"{file}: found outputs {', '.join(f'{name} of {rank} axes' for name, rank in ranks.items())}"
            f"{'; asked for ' + ', '.join(strangers) if strangers else ''}; expected maps [batch, channels, rows, "
            f"columns], or tokens [batch, tokens, channels] and `patch_px` in {SETTINGS_FILE}",
        )
    return named


def _normalisation(folder: Path, settings: OnnxSettings, planes: int) -> Normalisation:
    beside = read_normalisation(folder / "preprocessor_config.json") or Normalisation((0.0,), (1.0,))
    mean = beside.mean if settings.mean is None else _as_tuple(settings.mean)
    std = beside.std if settings.std is None else _as_tuple(settings.std)
    if {len(mean), len(std)} - {1, planes} or 0 in std:
        raise ConfigError(
            "bad-config", f"{folder}: found mean {mean} and std {std}; expected one value or {planes}, no std of 0"
        )
    return Normalisation(mean, std)


def _as_tuple(given: Numbers | float) -> Numbers:
    return given if isinstance(given, tuple) else (given,)


def _weights(model: Any) -> list[Any]:
    """All constant tensors of a graph that may lie in other files."""
    constants = [attribute.t for node in model.graph.node for attribute in node.attribute if attribute.HasField("t")]
    return [*model.graph.initializer, *constants]


def _too_large(side: int, height: int, width: int) -> str:
    return (
        f"found crops of {side} px, but the backbone takes {height}x{width} px and no other size; "
        f"set router.crop_px to {min(height, width)}: crops are never scaled"
    )
