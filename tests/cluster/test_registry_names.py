"""What runs in many processes is of one bundle, though the name that it was given by moves. No cluster is started."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sbdzsl.cluster.judge import InspectorLoader
from sbdzsl.cluster.request import AuditRequest, prepare
from sbdzsl.cluster.serve import ServeArgs, build
from sbdzsl.registry import Registry
from tests.bundles import draw_bundle
from tests.cluster.plans import plan_of
from tests.conftest import SEEN, Trained


@pytest.fixture
def registry(trained: Trained, tmp_path: Path) -> Registry:
    found = Registry(str(tmp_path / "registry"))
    found.promote(found.push(trained.bundle_url), "production", "anna", "the first")
    return found


def move(registry: Registry, tmp_path: Path) -> None:
    """Let the name stand for another bundle."""
    draw_bundle(tmp_path / "drawn", 1)
    registry.promote(registry.push(str(tmp_path / "drawn")), "production", "anna", "another")


def test_the_actors_of_an_audit(trained: Trained, registry: Registry, tmp_path: Path) -> None:
    request = AuditRequest(f"{registry.url}@production", str(tmp_path / "out"), manifest_uri=trained.manifest_uri)
    audit = prepare(request)
    move(registry, tmp_path)
    assert audit.identity.bundle_digest == trained.bundle.digest
    assert audit.request.bundle_url == registry.bundle_url(trained.bundle.digest)
    plan = replace(plan_of(tmp_path / "plan"), identity=audit.identity)
    assert InspectorLoader(audit.request)(plan, "cpu").bundle.digest == trained.bundle.digest


@pytest.mark.parametrize("shape", ["fused", "routed"])
def test_the_replicas_of_a_service(trained: Trained, registry: Registry, shape: str) -> None:
    args = {"bundle": f"{registry.url}@production", "shape": shape, "service": {"keys": "keys.json"}}
    application = build(ServeArgs.model_validate(args))
    ingress = application._bound_deployment
    detectors = [one._bound_deployment for one in ingress.init_args[1].values()]
    assert len(detectors) == (len(SEEN) if shape == "routed" else 0)
    expected = registry.bundle_url(trained.bundle.digest)
    assert {one.user_config["bundle"] for one in (ingress, *detectors)} == {expected}
