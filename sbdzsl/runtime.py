"""Runs an ONNX graph by ONNX Runtime or OpenVINO: arrays in, arrays out. Knows nothing of what the graph computes.

Both compute in float32 and, on the CPU, give the same bits for any number of threads; the bits of the two, and of
PyTorch, differ from each other. Both are extras: an installation without them lacks nothing but them.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from sbdzsl.errors import ConfigError, ImageError

#: What can run the nets. PyTorch runs them as they are, the others run their exported graphs.
Runtime = Literal["torch", "onnxruntime", "openvino"]

#: The extra of the package that brings each module.
EXTRAS = {
    "onnx": "export",
    "onnxruntime": "export",
    "openvino": "openvino",
    "transformers": "huggingface",
    "paho": "mqtt",
    "asyncua": "opcua",
}


class Session(Protocol):
    """A graph that is ready to run. Not thread-safe: give each thread its own."""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """All outputs by name; they are the caller's own."""


def open_session(graph: bytes | Path, runtime: Runtime, threads: int) -> Session:
    """A session on the CPU over an ONNX graph (for OpenVINO also the path of an IR).

    Raises `ConfigError` "missing-extra" where the package is absent.
    """
    if runtime == "onnxruntime":
        return OnnxRuntimeSession(graph, threads)
    if runtime == "openvino":
        return OpenVinoSession(graph, threads)
    raise ValueError(f"{runtime} does not run graphs")


def require(module: str) -> Any:
    """Import an optional module. Raises `ConfigError` "missing-extra" that names the extra to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise ConfigError(
            "missing-extra", f"{name} is not installed ({error}): pip install 'sbdzsl[{EXTRAS[name]}]'"
        ) from None


class OnnxRuntimeSession:
    """`graph` run by ONNX Runtime."""

    def __init__(self, graph: bytes | Path, threads: int) -> None:
        onnxruntime = require("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Waiting threads would burn the cores that an audit's other actors and readers need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """See `Session.run`."""
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(inputs)), strict=True))


class OpenVinoSession:
    """`graph` run by OpenVINO, compiled anew for each new shape up to `MAX_SHAPES`: fixed shapes run twice as fast."""

    #: A surface's images have one size or a few. Beyond so many, one compilation for all shapes takes over.
    MAX_SHAPES = 4

    def __init__(self, graph: bytes | Path, threads: int) -> None:
        openvino = require("openvino")
        self._core = openvino.Core()
        self._model = self._core.read_model(graph)
        # The default precision may be bfloat16, which moves scores by hundredths.
        self._settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
        }
        self._requests: dict[tuple[tuple[int, ...], ...] | None, Any] = {}

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """See `Session.run`."""
        shapes = {name: array.shape for name, array in inputs.items()}
        try:
            found = self._request(shapes).infer({name: np.ascontiguousarray(array) for name, array in inputs.items()})
        except RuntimeError as error:
            # Its pooling takes no window larger than its input, which the other runtimes clip.
            reason = str(error).strip().splitlines()[-1]
            raise ImageError("too-small", f"OpenVINO cannot run this network on inputs {shapes}: {reason}") from None
        return {output.get_any_name(): np.array(value) for output, value in found.items()}

    def _request(self, shapes: dict[str, tuple[int, ...]]) -> Any:
        key: tuple[tuple[int, ...], ...] | None = tuple(shapes.values())
        if key not in self._requests and len(self._requests) >= self.MAX_SHAPES:
            key = None
        if key not in self._requests:
            model = self._model.clone()
            if key is not None:
                model.reshape({name: list(shape) for name, shape in shapes.items()})
            self._requests[key] = self._core.compile_model(model, "CPU", self._settings).create_infer_request()
        return self._requests[key]
