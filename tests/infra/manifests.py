"""The manifests of infra/ as the API server would see them, and the strict form of their schemas."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
KUBERAY = INFRA / "kuberay"
OVERLAYS = ("cpu", "gpu")

Object = dict[str, Any]


def documents(text: str) -> list[Object]:
    """The documents of a YAML text."""
    return [found for found in yaml.safe_load_all(text) if found is not None]


def built(folder: Path) -> list[Object]:
    """What `kubectl apply -k` would send; skips where there is no kubectl, whose kustomize builds it."""
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl on this machine: kustomizations cannot be built")
    done = subprocess.run(
        ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return documents(done.stdout)


def overlay(name: str) -> list[Object]:
    """All objects of an overlay, and the RayJob that its nightly pod creates."""
    found = built(KUBERAY / "overlays" / name)
    audit = next(one for one in found if one["kind"] == "ConfigMap" and one["metadata"]["name"] == "audit")
    return [*found, *documents(audit["data"]["audit.yaml"])]


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    """Objects of a kind, of which there has to be one at least."""
    found = [one for one in objects if one["kind"] == kind]
    assert found, f"no {kind}"
    return found


def cluster_spec(one: Object) -> Object:
    """The cluster that a RayCluster, RayJob or RayService describes."""
    path = {"RayCluster": ["spec"], "RayJob": ["spec", "rayClusterSpec"], "RayService": ["spec", "rayClusterConfig"]}
    found = one
    for step in path[one["kind"]]:
        found = found[step]
    return found


def ray_pods(one: Object) -> Iterator[tuple[str, int, Object, Object]]:
    """Of each group of a cluster: its name, how many pods, their template, their parameters of `ray start`."""
    spec = cluster_spec(one)
    yield "head", 1, spec["headGroupSpec"]["template"], spec["headGroupSpec"]["rayStartParams"]
    for group in spec["workerGroupSpecs"]:
        yield group["groupName"], group["maxReplicas"], group["template"], group["rayStartParams"]


def pod_templates(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """Every pod template there is, whoever makes pods of it."""
    for one in objects:
        if one["kind"] in ("RayCluster", "RayJob", "RayService"):
            for group, _, template, _ in ray_pods(one):
                yield f"{one['kind']} {group}", template
        if one["kind"] == "RayJob":
            yield "submitter", one["spec"]["submitterPodTemplate"]
        if one["kind"] == "CronJob":
            yield "nightly", one["spec"]["jobTemplate"]["spec"]["template"]


def strict(shared: Path, kind: str) -> Object:
    """The schema of a kind of KubeRay's, closed: the API server drops unknown fields, so that a typo goes unseen."""
    file = shared / "schemas" / "kuberay" / f"{kind.lower()}.schema.json"
    if not file.is_file():
        pytest.skip(f"no {file}: KubeRay's schemas are not in the repository")
    return _closed(json.loads(file.read_text())["versions"]["v1"]["schema"])


def _closed(node: Any) -> Any:
    if isinstance(node, list):
        return [_closed(one) for one in node]
    if not isinstance(node, dict):
        return node
    found = {key: _closed(value) for key, value in copy.copy(node).items()}
    if found.get("x-kubernetes-int-or-string"):
        found.pop("type", None)
        found["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    free = found.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in found
    # ObjectMeta is an open object in a CRD's schema, and has no properties there.
    if isinstance(found.get("properties"), dict) and found.get("type") == "object" and not free:
        found["additionalProperties"] = False
    return found


def quantity(word: str | int) -> float:
    """Bytes or CPUs of a quantity of Kubernetes."""
    units = {"m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
    text = str(word)
    for unit, factor in units.items():
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * factor
    return float(text)
