"""What every backbone needs around its net: which stages, a digest, crops that are too small, tokens as maps."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sbdzsl.errors import ConfigError


def choose_stages(known: Sequence[str], chosen: Sequence[str], net: str) -> tuple[str, ...]:
    """The chosen of the `known` stages, in the net's own order; all if none is chosen. Raises `ConfigError`."""
    if strangers := [name for name in chosen if name not in known]:
        raise ConfigError(
            "bad-config", f"router.stages: found {', '.join(strangers)}, expected stages of {net}: {', '.join(known)}"
        )
    return tuple(name for name in known if not chosen or name in chosen)


def digest_of(tensors: Mapping[str, Tensor], *settings: object) -> str:
    """SHA-256 over names, types, shapes and values of all tensors and over the `repr` of `settings`, in hexadecimal."""
    digest = hashlib.sha256(repr(settings).encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def mirrored(grey: Tensor, height: int, width: int) -> Tensor:
    """[B, C, H, W] -> at least [B, C, height, width]: what is missing is the image itself, mirrored at its edges.

    A texture stays the texture it is, at its own scale; zeros or repeated edges would be another one.
    """
    for dim, least in ((-2, height), (-1, width)):
        size = grey.shape[dim]
        if size < least:
            place = torch.arange(least, device=grey.device) % (2 * size)
            grey = grey.index_select(dim, torch.minimum(place, 2 * size - 1 - place))
    return grey


def as_map(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """Tokens [B, L, C] of a transformer -> [B, C, rows, columns]; class and register tokens stand first and go."""
    patches = tokens[:, tokens.shape[1] - rows * columns :]
    return patches.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], rows, columns)
