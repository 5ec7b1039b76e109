"""A registry on each kind of store, and three bundles to put into it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sbdzsl.registry import Registry
from tests.bundles import draw_bundle
from tests.stores import memory, s3, s3_endpoint  # noqa: F401  fixtures


@pytest.fixture
def draw(tmp_path: Path) -> Callable[[int], str]:
    """Writes the bundle of a seed, and says where."""

    def written(seed: int) -> str:
        folder = tmp_path / "drawn" / str(seed)
        if not folder.exists():
            draw_bundle(folder, seed)
        return str(folder)

    return written


@pytest.fixture(params=["local", "s3", "memory"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Registry:
    """An empty registry."""
    if request.param == "local":
        return Registry(str(tmp_path / "bundles" / "registry"))
    return Registry(f"{request.getfixturevalue(request.param)}/bundles/registry")


@pytest.fixture
def local(tmp_path: Path) -> Registry:
    """An empty registry in a local folder."""
    return Registry(str(tmp_path / "registry"))
