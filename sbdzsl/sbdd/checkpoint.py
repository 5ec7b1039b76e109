"""Where an interrupted training goes on: one file, tensors and plain JSON, never a pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from sbdzsl import lake


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """State of a training after an epoch: `tensors` by group and name, `state` of plain JSON values."""

    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


class CheckpointFile:
    """One training's checkpoint at a URL. `purpose` says which training: images, settings, seed, as JSON values.

    A checkpoint of another purpose is not resumed from: changed images or settings begin anew, which `report` is told.
    """

    def __init__(self, url: str, purpose: Any, report: Callable[[str], None]) -> None:
        self.url = url
        self._report = report
        self._purpose = hashlib.sha256(json.dumps(purpose, sort_keys=True).encode()).hexdigest()

    def save(self, checkpoint: Checkpoint) -> None:
        """Write the checkpoint in place of the last one, whole or not at all."""
        tensors = {
            f"{group}/{name}": tensor.detach().cpu().contiguous()
            for group, members in checkpoint.tensors.items()
            for name, tensor in members.items()
        }
        metadata = {"purpose": self._purpose, "state": json.dumps(checkpoint.state)}
        lake.write_bytes(self.url, safetensors.torch.save(tensors, metadata))

    def load(self) -> Checkpoint | None:
        """The checkpoint; None where there is none, a damaged one or one of another training. Raises `LakeError`."""
        if not lake.exists(self.url):
            return None
        try:
            metadata, tensors = _read(lake.read_bytes(self.url))
        except (SafetensorError, ValueError) as error:
            self._report(f"the checkpoint {self.url} is damaged ({error}): the training begins anew")
            return None
        if metadata.get("purpose") != self._purpose:
            self._report(f"the checkpoint {self.url} is of other images or settings: the training begins anew")
            return None
        groups: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            group, _, name = key.partition("/")
            groups.setdefault(group, {})[name] = tensor
        return Checkpoint(groups, json.loads(metadata["state"]))


def _read(blob: bytes) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file: the header is JSON after its length in 8 bytes."""
    length = int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8 : 8 + length])
    return header.get("__metadata__", {}), safetensors.torch.load(blob)
