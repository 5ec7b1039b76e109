"""The manifests for Kubernetes: valid, restricted, of limited time, equal where they say the same. No cluster here."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray
import typer
import yaml
from ray.serve.schema import ServeDeploySchema

from sbdzsl import __version__, config
from sbdzsl.cli import app
from sbdzsl.cluster import FAST_MODE
from sbdzsl.cluster.serve import ServeArgs
from sbdzsl.pipeline import PipelineSettings
from tests.infra.manifests import (
    INFRA,
    KUBERAY,
    OVERLAYS,
    ROOT,
    Object,
    built,
    cluster_spec,
    documents,
    of_kind,
    overlay,
    pod_templates,
    quantity,
    ray_pods,
    strict,
)

KUBERNETES = "1.34"
RAY_KINDS = ("RayCluster", "RayJob", "RayService")
FOREIGN = ("monitoring.coreos.com/", "kueue.x-k8s.io/", "kustomize.config.k8s.io/")


@pytest.fixture(params=OVERLAYS)
def objects(request: pytest.FixtureRequest) -> list[Object]:
    """Every object of an overlay."""
    return overlay(request.param)


@pytest.mark.parametrize("file", sorted(KUBERAY.rglob("*.yaml")), ids=lambda file: str(file.relative_to(KUBERAY)))
def test_every_file_is_read_and_pins_what_it_runs(file: Path) -> None:
    assert documents(file.read_text())
    images = re.findall(r"^\s*(?:- )?image: (\S+)$", file.read_text(), re.MULTILINE)
    for image in images:
        assert re.search(r":v?\d+\.\d+\.\d+[\w.-]*$", image), f"{image} is not pinned"
    assert not re.search(r"^kind: Secret$", file.read_text(), re.MULTILINE), "a secret does not stand in a repository"


def test_images_are_of_this_version(objects: list[Object]) -> None:
    images = {one["image"] for _, template in pod_templates(objects) for one in template["spec"]["containers"]}
    ours = {image for image in images if "/sbdzsl:" in image}
    assert ours
    assert {image.rpartition(":")[2].rpartition("-")[0] for image in ours} == {__version__}
    assert {cluster_spec(one)["rayVersion"] for one in objects if one["kind"] in RAY_KINDS} == {ray.__version__}


@pytest.mark.shared
def test_ray_kinds_keep_their_schemas(objects: list[Object], shared: Path) -> None:
    for kind in RAY_KINDS:
        schema = strict(shared, kind)
        for one in of_kind(objects, kind):
            assert one["apiVersion"] == "ray.io/v1"
            jsonschema.validate(one, schema)


@pytest.mark.shared
def test_a_typo_is_seen(shared: Path) -> None:
    wrong = overlay("cpu")[-1]
    wrong["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["imagePulPolicy"] = "Always"
    with pytest.raises(jsonschema.ValidationError, match="imagePulPolicy"):
        jsonschema.validate(wrong, strict(shared, "RayJob"))


def test_core_kinds_keep_their_schemas(objects: list[Object]) -> None:
    core = [one for one in objects if one["kind"] not in RAY_KINDS]
    assert {"CronJob", "NetworkPolicy", "Role", "Namespace"} <= {one["kind"] for one in core}
    for one in core:
        kubernetes_validate.validate(one, KUBERNETES, strict=True)


def test_pods_keep_their_schemas(objects: list[Object]) -> None:
    for name, template in pod_templates(objects):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"} | template.get("metadata", {})}
        kubernetes_validate.validate(pod | {"spec": template["spec"]}, KUBERNETES, strict=True)
        assert name


def test_pods_are_restricted(objects: list[Object]) -> None:
    """What the profile "restricted" of the Pod Security Standards asks for, and a read-only root beyond it."""
    assert of_kind(objects, "Namespace")[0]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for name, template in pod_templates(objects):
        spec = template["spec"]
        security = spec["securityContext"]
        assert security["runAsNonRoot"], name
        assert security["runAsUser"] == security["runAsGroup"] == 10001, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), name
        assert all(volume.keys() & {"emptyDir", "secret", "configMap"} for volume in spec.get("volumes", [])), name
        for container in spec["containers"] + spec.get("initContainers", []):
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False, name
            assert own["capabilities"] == {"drop": ["ALL"]}, name
            assert own["readOnlyRootFilesystem"] is True, name


def test_memory_is_what_was_asked_for_and_holds_what_is_in_it(objects: list[Object]) -> None:
    for name, template in pod_templates(objects):
        for container in template["spec"]["containers"]:
            resources = container["resources"]
            assert resources["requests"]["memory"] == resources["limits"]["memory"], name
            assert resources["requests"]["cpu"], name
    for one in (one for one in objects if one["kind"] in RAY_KINDS):
        for group, _, template, params in ray_pods(one):
            volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
            shm = quantity(volumes["shm"]["emptyDir"]["sizeLimit"])
            assert int(params["object-store-memory"]) < shm, "objects live in /dev/shm"
            limits = template["spec"]["containers"][0]["resources"]["limits"]
            actors = 0 if group == "head" else (1 if "nvidia.com/gpu" in limits else int(limits["cpu"]))
            # Ray itself 0.5 GB, the store, and of each actor 0.6 GB beside the gigabyte of judging an image.
            assert quantity(limits["memory"]) >= 0.5e9 + int(params["object-store-memory"]) + actors * 1.6e9
            assert {mount["name"]: mount["mountPath"] for mount in template["spec"]["containers"][0]["volumeMounts"]}[
                "shm"
            ] == "/dev/shm"


def test_a_token_is_asked_for_and_no_account_has_rights(objects: list[Object]) -> None:
    for one in (one for one in objects if one["kind"] in RAY_KINDS):
        assert cluster_spec(one)["authOptions"] == {"mode": "token", "secretName": "ray-token"}
        assert cluster_spec(one)["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for name, template in pod_templates(objects):
        spec = template["spec"]
        assert (spec["serviceAccountName"] == "sbdzsl") is (name != "nightly")
        assert spec.get("automountServiceAccountToken", True) is (name == "nightly")
    (role,) = of_kind(objects, "Role")
    assert role["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create"]}]
    (binding,) = of_kind(objects, "RoleBinding")
    assert [one["name"] for one in binding["subjects"]] == ["audit-nightly"]


def test_no_secret_is_in_an_environment(objects: list[Object]) -> None:
    """An environment shows in dashboards and dumps; KubeRay's own token is the exception, and its doing."""
    for name, template in pod_templates(objects):
        for container in template["spec"]["containers"]:
            assert not any("secretRef" in source for source in container.get("envFrom", [])), name
            for variable in container.get("env", []):
                assert not re.search("TOKEN|PASSWORD|SECRET|ACCESS_KEY", variable["name"]), name
                assert "valueFrom" not in variable, name


def test_each_audit_ends_before_the_next_begins(objects: list[Object]) -> None:
    (job,) = of_kind(objects, "RayJob")
    spec = job["spec"]
    (cron,) = of_kind(objects, "CronJob")
    assert re.fullmatch(r"\d+ \d+ \* \* \*", cron["spec"]["schedule"]), "once a day"
    assert cron["spec"]["concurrencyPolicy"] == "Forbid"
    assert (1 + spec["backoffLimit"]) * spec["activeDeadlineSeconds"] + spec["ttlSecondsAfterFinished"] < 24 * 3600
    assert spec["preRunningDeadlineSeconds"] < spec["activeDeadlineSeconds"]
    assert _max_minutes(spec["entrypoint"]) * 60 + spec["preRunningDeadlineSeconds"] < spec["activeDeadlineSeconds"]
    # KubeRay refuses deletion rules beside it, Kueue a RayJob without it.
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["deletionStrategy"].keys() == {"onSuccess", "onFailure"}
    assert len(job["metadata"]["generateName"]) + 5 <= 47


def _words(entrypoint: str) -> list[str]:
    return shlex.split(entrypoint)


def _audit_settings(entrypoint: str) -> config.AuditSettings:
    words = _words(entrypoint)
    file = words[words.index("--config") + 1].removeprefix("/opt/sbdzsl/")
    return config.load(config.AuditSettings, str(ROOT / file))


def _max_minutes(entrypoint: str) -> float:
    words = _words(entrypoint)
    if "--max-minutes" in words:
        return float(words[words.index("--max-minutes") + 1])
    found = _audit_settings(entrypoint).max_minutes
    assert found is not None
    return found


def test_the_job_calls_what_there_is(objects: list[Object]) -> None:
    """Its options are those of the command, its variables those of the site, its files those of the image."""
    (job,) = of_kind(objects, "RayJob")
    words = _words(job["spec"]["entrypoint"])
    assert words[:2] == ["python", "/opt/sbdzsl/jobs/audit.py"]
    assert (ROOT / "jobs" / "audit.py").is_file()
    run = typer.main.get_command(app).commands["audit"].commands["run"]  # type: ignore[attr-defined]
    options = {name for parameter in run.params for name in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options
    assert {"--only-new", "--bundle", "--lake", "--out"} <= set(words)
    site = next(one for one in of_kind(objects, "ConfigMap") if one["metadata"]["name"] == "site")
    used = set(re.findall(r"\$(\w+)", job["spec"]["entrypoint"]))
    assert used <= site["data"].keys()
    settings = _audit_settings(job["spec"]["entrypoint"])
    workers = next(template for group, _, template, _ in ray_pods(job) if group != "head")
    limits = workers["spec"]["containers"][0]["resources"]["limits"]
    assert (settings.gpus_per_actor or 0) <= int(limits.get("nvidia.com/gpu", 0))
    assert (settings.cpus_per_actor or 1) <= int(limits["cpu"])
    submitter = job["spec"]["submitterPodTemplate"]["spec"]["containers"][0]
    assert submitter["envFrom"] == [{"configMapRef": {"name": "site"}}], "its shell puts the variables in"


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_training_is_run_as_an_audit_is(name: str) -> None:
    """Another command and other deadlines: all else was checked above."""
    (job,) = documents((KUBERAY / "overlays" / name / "pipeline.yaml").read_text())
    (audit,) = documents((KUBERAY / "overlays" / name / "audit.yaml").read_text())
    own = {"entrypoint", "activeDeadlineSeconds"}
    assert {key: job["spec"][key] for key in job["spec"].keys() - own} == {
        key: audit["spec"][key] for key in audit["spec"].keys() - own
    }
    assert job["metadata"] == audit["metadata"] | {"generateName": "pipeline-"}
    words = _words(job["spec"]["entrypoint"])
    assert words[:2] == ["python", "/opt/sbdzsl/jobs/pipeline.py"]
    assert (ROOT / "jobs" / "pipeline.py").is_file()
    command = typer.main.get_command(app).commands["pipeline"]  # type: ignore[attr-defined]
    assert {word for word in words if word.startswith("--")} <= {o for one in command.params for o in one.opts}
    site = next(one for one in of_kind(overlay(name), "ConfigMap") if one["metadata"]["name"] == "site")
    assert set(re.findall(r"\$(\w+)", job["spec"]["entrypoint"])) <= site["data"].keys()
    file = words[words.index("--config") + 1].removeprefix("/opt/sbdzsl/")
    settings = config.load(PipelineSettings, str(ROOT / file))
    deadline = job["spec"]["activeDeadlineSeconds"]
    assert settings.cluster.max_minutes * 60 + job["spec"]["preRunningDeadlineSeconds"] < deadline


@pytest.mark.shared
@pytest.mark.parametrize("name", OVERLAYS)
def test_a_training_keeps_its_schema(name: str, shared: Path) -> None:
    (job,) = documents((KUBERAY / "overlays" / name / "pipeline.yaml").read_text())
    jsonschema.validate(job, strict(shared, "RayJob"))


def test_the_pods_of_an_overlay_differ_only_where_they_must(objects: list[Object]) -> None:
    """Audits run on the nodes of the standing cluster's kind; inspection adds its doors, keys and mode."""
    bare = cluster_spec(of_kind(objects, "RayCluster")[0])
    assert cluster_spec(of_kind(objects, "RayJob")[0]) == bare
    service = of_kind(objects, "RayService")[0]
    for (_, _, ours, _), (_, _, theirs, _) in zip(
        ray_pods(service), ray_pods(of_kind(objects, "RayCluster")[0]), strict=True
    ):
        mine, other = ours["spec"]["containers"][0], theirs["spec"]["containers"][0]
        assert mine["resources"] == other["resources"]
        assert mine["image"] == other["image"]
        assert mine["securityContext"] == other["securityContext"]
        env = {one["name"]: one["value"] for one in mine["env"]}
        assert env.items() >= FAST_MODE.items()
        assert env["RAY_SERVE_DEFAULT_HTTP_HOST"] == "0.0.0.0"


def _serve_config(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def test_serve_configs_are_those_of_the_repository(objects: list[Object]) -> None:
    (service,) = of_kind(objects, "RayService")
    found = _serve_config(service["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(found)
    expected = _serve_config((ROOT / "ray_configs" / "serve_routed.yaml").read_text())
    # A second cluster must not write into the first one's journal: nothing is kept here.
    expected["applications"] = [one for one in expected["applications"] if one["name"] != "memory"]
    args = found["applications"][0].pop("args")
    theirs = expected["applications"][0].pop("args")
    del theirs["service"]["data"]
    assert found == expected
    differing = {key for key in args.keys() | theirs.keys() if args.get(key) != theirs.get(key)}
    has_gpu = any(group == "gpu" for group, *_ in ray_pods(service))
    assert differing == ({"gpus", "detector_gpus", "service"} if has_gpu else set())
    if has_gpu:
        assert args["service"] == {**theirs["service"], "device": "cuda"}
    keys = Path(ServeArgs(**args).service.keys or "")
    for _, _, template, _ in ray_pods(service):
        mounts = {one["name"]: one["mountPath"] for one in template["spec"]["containers"][0]["volumeMounts"]}
        assert mounts["keys"] == str(keys.parent)


def test_inspection_fits_and_can_be_replaced(objects: list[Object]) -> None:
    """For as many surfaces as the manifest says; and a new replica has room while the old one still stands."""
    text = (KUBERAY / "base" / "service.yaml").read_text()
    surfaces = int(re.search(r"(\d+) surfaces take", text)[1])  # type: ignore[index]
    (service,) = of_kind(objects, "RayService")
    args = ServeArgs(**_serve_config(service["spec"]["serveConfigV2"])["applications"][0]["args"])
    has = {"cpu": 0.0, "nvidia.com/gpu": 0.0}
    for group, replicas, template, _ in ray_pods(service):
        if group != "head":
            limits = template["spec"]["containers"][0]["resources"]["limits"]
            has = {key: has[key] + replicas * float(limits.get(key, 0)) for key in has}
    detectors = surfaces * args.detector_replicas
    cpus = args.replicas * args.cpus + detectors * args.detector_cpus
    gpus = args.replicas * args.gpus + detectors * args.detector_gpus
    assert cpus + max(args.cpus, args.detector_cpus) <= has["cpu"]
    assert gpus + max(args.gpus, args.detector_gpus) <= has["nvidia.com/gpu"]


def test_nothing_passes_that_is_not_named(objects: list[Object]) -> None:
    policies = {one["metadata"]["name"]: one["spec"] for one in of_kind(objects, "NetworkPolicy")}
    assert policies["deny-all"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for name, spec in policies.items():
        for rule in spec.get("ingress", []):
            assert rule.get("from"), f"{name} lets everybody in"
            assert all(peer for peer in rule["from"]), name
            assert "ipBlock" not in str(rule), name
    ports = {
        port["containerPort"]
        for one in objects
        if one["kind"] in RAY_KINDS
        for _, _, template, _ in ray_pods(one)
        for port in template["spec"]["containers"][0]["ports"]
    }
    named = {
        port["port"] for spec in policies.values() for rule in spec.get("ingress", []) for port in rule.get("ports", [])
    }
    assert named <= ports
    labels = [template.get("metadata", {}).get("labels", {}) for _, template in pod_templates(objects)]
    components = {one.get("app.kubernetes.io/component") for one in labels} - {None}
    selected = set(re.findall(r"app.kubernetes.io/component': '([\w-]+)'", str(policies)))
    assert selected == components == {"submitter", "inspection", "nightly"}


@pytest.mark.parametrize("component", ["monitoring", "kueue"])
@pytest.mark.parametrize("name", OVERLAYS)
def test_components_fit_the_overlays(component: str, name: str, tmp_path: Path) -> None:
    # kustomize takes components and resources from below its root or beside it, by relative paths alone.
    (tmp_path / "kuberay").symlink_to(KUBERAY)
    (tmp_path / "kustomization.yaml").write_text(
        f"namespace: sbdzsl\nresources: [kuberay/overlays/{name}]\ncomponents: [kuberay/components/{component}]\n"
    )
    found = built(tmp_path)
    if component == "monitoring":
        monitors = of_kind(found, "PodMonitor")
        declared = {
            port["name"]
            for one in found
            if one["kind"] in ("RayCluster", "RayService")
            for _, _, template, _ in ray_pods(one)
            for port in template["spec"]["containers"][0]["ports"]
        }
        used = {end["port"] for one in monitors for end in one["spec"]["podMetricsEndpoints"]}
        assert used <= declared
        return
    (queue,) = of_kind(found, "ClusterQueue")
    (local,) = of_kind(found, "LocalQueue")
    assert (local["metadata"]["name"], local["spec"]["clusterQueue"]) == ("default", queue["metadata"]["name"])
    for kind in ("RayCluster", "RayService"):
        assert of_kind(found, kind)[0]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "default"
    quota = {
        one["name"]: quantity(one["nominalQuota"])
        for one in queue["spec"]["resourceGroups"][0]["flavors"][0]["resources"]
    }
    assert {key: _needed(overlay(name), key) <= quota[key] for key in quota} == dict.fromkeys(quota, True)


def _needed(objects: list[Object], resource: str) -> float:
    """Of a standing cluster, a night's audit with its submitter, and inspection twice over."""
    total = 0.0
    for one in (one for one in objects if one["kind"] in RAY_KINDS):
        for _, replicas, template, _ in ray_pods(one):
            requests = template["spec"]["containers"][0]["resources"]["requests"]
            total += quantity(requests.get(resource, 0)) * replicas * (2 if one["kind"] == "RayService" else 1)
        if one["kind"] == "RayJob":
            submitter = one["spec"]["submitterPodTemplate"]["spec"]["containers"][0]
            total += quantity(submitter["resources"]["requests"].get(resource, 0))
    return total


def test_no_manifest_is_of_an_unknown_group() -> None:
    for file in KUBERAY.rglob("*.yaml"):
        for one in documents(file.read_text()):
            if isinstance(one, dict):
                version = one["apiVersion"]
                assert version.startswith(FOREIGN) or version in (
                    "v1",
                    "batch/v1",
                    "ray.io/v1",
                    "networking.k8s.io/v1",
                    "rbac.authorization.k8s.io/v1",
                ), file
    assert INFRA.is_dir()
